"""Runs that train adapters, or a part of the model, and leave the rest as it is."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from etils import epath
from flagship import needs_words, write_narrow_model
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.config import ConfigError
from actfer_jax.faces.views import ViewConfig
from actfer_jax.models import Qwen3VLConfig, demo_checkpoint, load_pretrained, logits
from actfer_jax.models.frozen import fingerprint, split_frozen
from actfer_jax.models.lora import LoraConfig
from actfer_jax.parallel.hosts import Termination
from actfer_jax.rollout.agent import ModelConfig, load_agent
from actfer_jax.rollout.engine import RolloutConfig
from actfer_jax.runs.checkpoints import CheckpointError, Checkpoints, read_checkpoint
from actfer_jax.runs.metrics import is_timing, read_metrics
from actfer_jax.training.config import TrainConfig, read_train_config
from actfer_jax.training.export import export
from actfer_jax.training.loop import train
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.state import abstract_state, check_base, initial_state
from configs import sft, ucgrpo


def config_of(**changes: object) -> TrainConfig:
    raw = ucgrpo.get_config("demo+lora")
    raw.update_from_flattened_dict(changes)
    return read_train_config(raw)


@pytest.fixture(scope="module")
def base() -> nnx.State:
    return nnx.state(load_pretrained(demo_checkpoint()), nnx.Param)


def test_a_checkpoint_holds_adapters_and_belongs_to_its_base(base: nnx.State, tmp_path: Path) -> None:
    config = config_of()
    sizes = Qwen3VLConfig.from_json(Path(demo_checkpoint()) / "config.json")
    graph, abstract = abstract_state(config, sizes, None)
    adapters = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), abstract.train.params)
    state = initial_state(nnx.merge_state(adapters, base), make_optimizer(config.optimizer, 1), config)
    assert {type(leaf) for _, leaf in nnx.to_flat_state(state.train.params)} == {nnx.LoRAParam}
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, state.without_frozen, {"base": fingerprint(state.train.frozen)})
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    ours, theirs = (sum(x.nbytes for x in jax.tree.leaves(part)) for part in (adapters, base))
    assert 3 * ours < 2 * theirs and written < 3.5 * ours

    _, restored, extra = read_checkpoint(tmp_path / "checkpoints", abstract.without_frozen)
    for found, expected in zip(jax.tree.leaves(restored.with_frozen(base)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(found, expected)
    check_base("checkpoints/1", extra, fingerprint(base), "demo")
    kernel = base["language_model"]["layers"]["mlp"]["up_proj"]["kernel"]
    other = jax.tree.map(jnp.copy, base)
    other["language_model"]["layers"]["mlp"]["up_proj"]["kernel"] = kernel.replace(kernel[...].at[1, 2, 3].add(1e-6))
    with pytest.raises(CheckpointError, match="trained with another base than the one in 'elsewhere'"):
        check_base("checkpoints/1", extra, fingerprint(other), "elsewhere")


def test_what_is_frozen_is_named_by_patterns(base: nnx.State) -> None:
    trained, frozen = split_frozen(base, ("visual.*", "*norm.scale"), jnp.bfloat16)
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(trained)}
    assert "language_model.layers.mlp.up_proj.kernel" in names and "language_model.norm.scale" not in names
    assert not any(name.startswith("visual.") for name in names)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    with pytest.raises(ConfigError, match=r"config\.model\.frozen\[1\] is 'vision\.\*'.*visual\.blocks\.attn\.qkv"):
        split_frozen(base, ("visual.*", "vision.*"), jnp.float32)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        split_frozen(base, ("*",), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.frozen": ("visual.*",)}, r"config\.model\.frozen is .*it must be \(\) beside lora"),
        ({"model.initialise": "random"}, r"config\.model\.initialise is 'random'; it must be 'pretrained'"),
        ({"model.adapter": "somewhere", "lora": None}, r"config\.model\.adapter is 'somewhere'; it must be ''"),
        ({"lora.dropout": 1.0}, r"config\.lora\.dropout is 1\.0"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


def test_rollouts_share_what_is_frozen() -> None:
    card, model = PolicyCard.load(demo_checkpoint()), ModelConfig("demo", dtype="bfloat16")
    agent = load_agent(
        model, ViewConfig(**card.views), RolloutConfig(**card.rollout), lora=LoraConfig(rank=4, vision=True)
    )
    weights = agent.engine(queries=1, group_size=1).programs.weights(agent.params)
    for (path, mine), (_, given) in zip(nnx.to_flat_state(weights), nnx.to_flat_state(agent.params), strict=True):
        assert mine.dtype == jnp.bfloat16
        is_adapter, pointers = "adapter" in path, {x[...].unsafe_buffer_pointer() for x in (mine, given)}
        assert len(pointers) == (2 if is_adapter else 1), path


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the flagship's words and small width, as transformers writes it; and pictures of a person."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = write_narrow_model(tmp_path_factory.mktemp("narrow") / "model")
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(transformers.AutoConfig.from_pretrained(directory))
    model.save_pretrained(directory)
    return directory


def teach(narrow: Path, workdir: Path, steps: int) -> None:
    """Trains adapters everywhere on traces of rendered faces, with dropout; goes on with what is in the workdir."""
    raw = sft.get_config("lora")
    raw.model.path, raw.model.dtype, raw.evaluation, raw.steps = str(narrow), "float32", None, steps
    raw.data.cache_directory, raw.data.size = str(workdir.parent / "data"), 6
    raw.batch.queries, raw.batch.microbatches, raw.batch.chunk, raw.mesh.rollout = 1, 1, 256, (-1, 1, 1)
    raw.batch.length, raw.traces.two_zooms = 2048, 0.0
    raw.optimizer.schedule, raw.optimizer.warmup_steps, raw.checkpoint.every = "constant", 0, 1
    raw.lora.merger = raw.lora.vision = True
    raw.lora.dropout = 0.1
    train(read_train_config(raw), epath.Path(workdir), raw, Termination())


@needs_words
@pytest.mark.slow
def test_adapters_with_the_flagships_words_resume_and_are_loaded_by_peft(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, peft, transformers = map(pytest.importorskip, ("torch", "peft", "transformers"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))  # One run compiles for all.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    teach(narrow, whole, 2)
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("policy"))
    shutil.rmtree(parts / "checkpoints" / "2")
    teach(narrow, parts, 2)
    learned, again = (load_file(run / "policy" / "adapter_model.safetensors") for run in (whole, parts))
    assert learned.keys() == again.keys()
    for name, value in learned.items():
        np.testing.assert_array_equal(again[name], value)
    assert all(np.abs(value).max() > 0 for value in learned.values())
    first, second = (
        [{name: value for name, value in record.items() if not is_timing(name)} for record in read_metrics(run)]
        for run in (whole, parts)
    )
    assert first == second and len(first) == 2

    jax.config.update("jax_compilation_cache_dir", None)

    export(epath.Path(parts), epath.Path(tmp_path / "merged"), merged=True)
    image = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((256, 256)))
    agent = load_agent(ModelConfig(str(parts / "policy"), dtype="float32"), ViewConfig(), RolloutConfig())
    patches, grid = agent.encoder(image)
    config = agent.model_config
    ids = [config.vision_start_token_id, *[config.image_token_id] * 64, config.vision_end_token_id]
    ids = np.array([[*ids, *agent.chat.tokenizer.encode("Which emotion does the face show?")]])
    found = np.asarray(logits(nnx.merge(agent.graphdef, agent.params), ids, None, patches, [grid]))

    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones(ids.shape, dtype=torch.long),
        "mm_token_type_ids": torch.tensor(ids == config.image_token_id).long(),
        "pixel_values": torch.tensor(patches),
        "image_grid_thw": torch.tensor([grid]),
    }
    loaded = transformers.Qwen3VLForConditionalGeneration.from_pretrained
    with torch.no_grad():
        base = loaded(narrow, dtype="float32").eval()
        before = base(**inputs).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, parts / "policy")(**inputs).logits.numpy()
        merged = loaded(tmp_path / "merged", dtype="float32").eval()(**inputs).logits.numpy()
    assert np.abs(adapted - before).max() > 1e-3
    np.testing.assert_allclose(found, adapted, atol=1e-5 + 1e-4 * np.abs(adapted).max())
    np.testing.assert_allclose(found, merged, atol=1e-5 + 1e-4 * np.abs(adapted).max())
