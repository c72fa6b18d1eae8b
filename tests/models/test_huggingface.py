"""Hugging Face directories: round trips, what goes wrong with them, and sharded loading in two real processes."""

import fnmatch
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import moments
import numpy as np
import pytest
import transformers
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from actfer_jax.agent.chat import Chat
from actfer_jax.agent.prompts import Prompt
from actfer_jax.compile_check.check import PUBLISHED
from actfer_jax.faces.views import ViewConfig
from actfer_jax.models import (
    Qwen3VL,
    Qwen3VLConfig,
    demo_checkpoint,
    huggingface,
    load_pretrained,
    local_directory,
    logits,
    save_pretrained,
)
from actfer_jax.outputs import OutputError
from actfer_jax.parallel.finite import NotFiniteError
from actfer_jax.rollout.encoder import ViewEncoder

ROOT = Path(__file__).parents[2]
WEIGHTS = "model.safetensors"
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return fixtures.write_checkpoint(tmp_path / "checkpoint")


def same_weights(first: Path, second: Path) -> bool:
    one, two = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_gives_back_every_tensor_and_the_files_beside_them(tmp_path: Path, tied: bool) -> None:
    source = fixtures.write_checkpoint(tmp_path / "source", tied=tied)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7  # a key that the model does not use
    (source / "config.json").write_text(json.dumps(config))
    save_pretrained(load_pretrained(source), tmp_path / "copy")
    assert same_weights(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == "{{ messages }}"
    saved = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert saved["text_config"]["eos_token_id"] == 7 and saved["dtype"] == "float32"
    assert Qwen3VLConfig.from_json(tmp_path / "copy" / "config.json") == Qwen3VLConfig.from_json(source / "config.json")


def test_transformers_loads_what_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    save_pretrained(load_pretrained(checkpoint, dtype=jnp.bfloat16), tmp_path / "copy")
    model, report = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "copy", output_loading_info=True, dtype="auto"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    expected = torch.tensor(load_file(checkpoint / WEIGHTS)[Q_PROJ]).to(torch.bfloat16)
    assert torch.equal(model.model.language_model.layers[1].self_attn.q_proj.weight, expected)
    rope = model.config.text_config.rope_parameters
    assert rope["rope_theta"] == 10000.0 and rope["mrope_section"] == [4, 2, 2]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_transformers_saves_comes_back_byte_for_byte(checkpoint: Path, tmp_path: Path, dtype: Any) -> None:
    """Its config has the rope keys in another form, and its weights come in shards."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    name = np.dtype(dtype).name
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=name)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100kB")
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "theirs").glob("*.safetensors")}
    assert len(theirs) > 2
    save_pretrained(load_pretrained(tmp_path / "theirs", dtype=dtype), tmp_path / "ours")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").glob("*.safetensors")} == theirs
    index, other = (
        json.loads((tmp_path / who / "model.safetensors.index.json").read_text()) for who in ("ours", "theirs")
    )
    assert index["weight_map"] == other["weight_map"]
    assert index["metadata"]["total_size"] == other["metadata"]["total_size"]


def test_large_models_are_saved_in_shards(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actfer_jax.models.huggingface._SHARD_BYTES", 200_000)
    save_pretrained(load_pretrained(checkpoint), tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and files == {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    save_pretrained(load_pretrained(tmp_path / "shards"), tmp_path / "again")
    assert {name for file in files for name in load_file(tmp_path / "shards" / file)} == set(index["weight_map"])
    for file in files:
        for name, tensor in load_file(tmp_path / "shards" / file).items():
            assert index["weight_map"][name] == file
            np.testing.assert_array_equal(tensor, load_file(checkpoint / WEIGHTS)[name])


def test_one_shard_with_an_index_stays_one(checkpoint: Path, tmp_path: Path) -> None:
    one, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    (checkpoint / WEIGHTS).rename(checkpoint / one)
    weight_map = dict.fromkeys(load_file(checkpoint / one), one)
    (checkpoint / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_pretrained(load_pretrained(checkpoint), tmp_path / "copy")
    assert (tmp_path / "copy" / one).read_bytes() == (checkpoint / one).read_bytes()
    assert json.loads((tmp_path / "copy" / index).read_text())["weight_map"] == weight_map
    load_pretrained(tmp_path / "copy")


def test_own_files_are_replaced_and_others_stay(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards by one file, by which no loader can take a part of each; also without a marker, as long ago."""
    model, target = load_pretrained(checkpoint), tmp_path / "target"
    for has_marker in (True, False):
        monkeypatch.setattr("actfer_jax.models.huggingface._SHARD_BYTES", 200_000)
        save_pretrained(model, target)
        (target / "README.md").write_text("A model card.")
        (target / "actfer.json").write_text("{}")
        if not has_marker:
            (target / ".actfer_output.json").unlink()
        monkeypatch.undo()
        save_pretrained(model, target)
        names = {path.name for path in target.iterdir()}
        # Written by somebody else, as far as the marker tells.
        card = {"actfer.json"} if has_marker else set()
        assert names == {".actfer_output.json", "README.md", "config.json", WEIGHTS} | card
        assert same_weights(target, checkpoint) and (target / "README.md").read_text() == "A model card."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "target"]


def test_a_model_of_somebody_else_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    target = fixtures.write_checkpoint(tmp_path / "target", tied=False)
    before = moments.files(tmp_path)
    with pytest.raises(OutputError, match="target holds files that are not of a policy written by actfer_jax"):
        save_pretrained(load_pretrained(checkpoint), target)
    assert moments.files(tmp_path) == before


@pytest.mark.parametrize("shards_first", [True, False])
def test_a_kill_leaves_the_old_model_or_the_new_or_one_that_is_not_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards_first: bool
) -> None:
    """At any moment of a replacement, whichever of the two is in shards; and the same call makes it whole."""
    monkeypatch.setattr("actfer_jax.outputs._THREADS", 1)
    old = load_pretrained(fixtures.write_checkpoint(tmp_path / "other", tied=False))
    new = load_pretrained(checkpoint)
    target, mine = tmp_path / "target", ("README.md", b"A model card.")

    def save(model: Qwen3VL, path: Path, shards: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("actfer_jax.models.huggingface._SHARD_BYTES", 200_000 if shards else 4 * 2**30)
            save_pretrained(model, path)

    def model_files(files: moments.Files) -> moments.Files:
        return {name: content for name, content in files.items() if ".actfer_" not in name}

    save(old, target, shards_first)
    (target / mine[0]).write_bytes(mine[1])
    with moments.moments(target) as states:
        save(new, target, not shards_first)
    before, after = model_files(states[0]), model_files(moments.files(target))
    assert before.keys() ^ after.keys()
    incomplete = 0
    for number, state in enumerate(states):
        assert state[mine[0]] == mine[1]
        if "config.json" in state:
            assert model_files(state) in (before, after)
            continue
        incomplete += 1
        left = tmp_path / f"left-{number}"
        for name, content in state.items():
            (left / name).parent.mkdir(parents=True, exist_ok=True)
            (left / name).write_bytes(content)
        with pytest.raises(FileNotFoundError, match=f"left-{number} is not complete: .*give that command again"):
            load_pretrained(left)
        save(new, left, not shards_first)
        assert model_files(moments.files(left)) == after
    assert incomplete > 3


KILLED = """
import os, signal, sys
from actfer_jax.models import huggingface
huggingface.publish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
huggingface.save_pretrained(huggingface.load_pretrained(sys.argv[1]), sys.argv[2])
"""


def test_a_save_that_was_killed_leaves_nothing_behind_for_ever(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    killed = subprocess.run([sys.executable, "-c", KILLED, checkpoint, target])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="target is not complete"):
        load_pretrained(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "target"]
    save_pretrained(load_pretrained(checkpoint), target)
    assert sorted(path.name for path in target.iterdir()) == [".actfer_output.json", "config.json", WEIGHTS]


def test_a_full_disk_leaves_the_old_directory_and_nothing_half_written(checkpoint: Path, tmp_path: Path) -> None:
    model = load_pretrained(checkpoint)
    target = tmp_path / "target"
    save_pretrained(load_pretrained(fixtures.write_checkpoint(tmp_path / "other", tied=False)), target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writing more fails, as on a full disk
    try:
        with pytest.raises(OSError, match="target: could not be written.*free some space"):
            save_pretrained(model, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "other", "target"]


def test_parameters_are_pure_pytrees_with_named_axes(checkpoint: Path) -> None:
    model = load_pretrained(checkpoint)
    graph, params = nnx.split(model, nnx.Param)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    for path, variable in nnx.to_flat_state(params):
        assert len(variable.get_metadata("out_sharding")) == variable.ndim, path
    kernel = model.language_model.layers.self_attn.q_proj.kernel
    assert kernel.get_metadata("out_sharding") == ("layers", "embed", "heads")
    doubled = nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, params))
    np.testing.assert_array_equal(doubled.language_model.norm.scale[...], 2 * model.language_model.norm.scale[...])


def edit_config(**changes: Any) -> Callable[[Path], None]:
    """Changes keys of config.json; None removes them; a dot leads into a part."""

    def edit(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        for name, value in changes.items():
            part, _, key = name.rpartition("__")
            target = config[part] if part else config
            if value is None:
                del target[key]
            else:
                target[key] = value
        (directory / "config.json").write_text(json.dumps(config))

    return edit


def edit_tensor(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS)

    return edit


def in_shards_of_nothing(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')


def truncate(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, 50_000)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: (path / "config.json").unlink(), FileNotFoundError, "config.json: no such file"),
        (lambda path: (path / "config.json").write_text("{"), ValueError, "config.json: not valid JSON"),
        (
            edit_config(model_type="llama"),
            ValueError,
            "config.json: model_type is 'llama'; this package runs 'qwen3_vl'",
        ),
        (edit_config(text_config__head_dim=None), ValueError, "config.json: text_config.head_dim is missing"),
        (edit_config(vision_config__depth="x"), ValueError, r"vision_config.depth is 'x' \(str\); it must be int"),
        (edit_config(vision_config__depth=4.5), ValueError, r"vision_config.depth is 4.5 \(float\); it must be int"),
        (edit_config(tie_word_embeddings="false"), ValueError, "config.json: tie_word_embeddings is 'false'"),
        (edit_config(text_config__rms_norm_eps=float("nan")), ValueError, "text_config.rms_norm_eps is nan; it must"),
        (edit_config(quantization_config={"quant_method": "fp8"}), ValueError, "says that the weights are quantized"),
        (edit_config(text_config__attention_dropout=0.1), ValueError, "attention_dropout = 0.1 is not supported"),
        (edit_config(text_config__pad_token_id=160), ValueError, "text_config.pad_token_id is 160; it must be a token"),
        (
            edit_config(text_config__model_type="qwen3_vl_moe_text"),
            ValueError,
            "text_config.model_type = 'qwen3_vl_moe",
        ),
        (edit_config(transformers_weights="other.safetensors"), ValueError, "transformers_weights = 'other"),
        (edit_config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), ValueError, "config.json: rope_scaling = {"),
        (
            edit_config(text_config__num_attention_heads=3),
            ValueError,
            "config.json: text_config.num_key_value_heads is 2; it must divide num_attention_heads, which is 3",
        ),
        (
            edit_config(text_config__rope_scaling={"type": "yarn", "factor": 4.0, "mrope_section": [4, 2, 2]}),
            ValueError,
            "rope_type = 'yarn' is not supported; only 'default' is",
        ),
        (
            edit_config(vision_config__rope_parameters={"rope_type": "linear", "factor": 2.0}),
            ValueError,
            "vision_config.rope_parameters.rope_type = 'linear' is not supported",
        ),
        (
            edit_config(text_config__rope_scaling={"mrope_section": [3, 2, 2]}),
            ValueError,
            r"text_config.mrope_section is \[3, 2, 2\]; it must sum to half of head_dim, 8",
        ),
        (edit_config(vision_config__out_hidden_size=64), ValueError, "vision_config.out_hidden_size is 64; it must be"),
        (
            edit_config(vision_config__num_heads=3),
            ValueError,
            "vision_config.num_heads is 3; it must divide hidden_size",
        ),
        (edit_config(vision_config__num_position_embeddings=26), ValueError, "is 26; it must be a square"),
        (edit_config(image_token_id=160), ValueError, "image_token_id is 160; it must be a token of the vocabulary"),
        (edit_config(text_config__num_hidden_layers=1), ValueError, "num_hidden_layers is 1; it must be at least 2"),
        (
            lambda path: (path / "adapter_config.json").write_text("{}"),
            ValueError,
            "adapter_config.json: adapters are no whole model",
        ),
        (
            lambda path: (path / WEIGHTS).rename(path / "pytorch_model.bin"),
            FileNotFoundError,
            "holds neither .*; save pytorch_model.bin as safetensors",
        ),
        (
            edit_tensor(lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].astype(np.int8)})),
            ValueError,
            f"tensor {Q_PROJ} is of type I8; weights of one of F32, BF16",
        ),
        (
            edit_tensor(lambda tensors: tensors.update({"lm_head.weight": 2 * tensors[EMBEDDING]})),
            ValueError,
            f"tensor lm_head.weight differs from {EMBEDDING}, but config.json says tie_word_embeddings",
        ),
        (
            edit_tensor(lambda tensors: tensors.update({Q_PROJ: np.nan * tensors[Q_PROJ]})),
            NotFiniteError,
            f"{WEIGHTS}: tensor {Q_PROJ} with numbers that are NaN or infinite",
        ),
        (
            lambda path: in_shards(lambda _, first, second, __: second.update({Q_PROJ: first[Q_PROJ]}))(path),
            ValueError,
            f"b.safetensors: tensor {Q_PROJ} is in a.safetensors too",
        ),
        (edit_config(text_config__hidden_act="gelu"), ValueError, "text_config.hidden_act = 'gelu' is not supported"),
        (
            edit_config(text_config__rope_scaling={"rope_type": "yarn", "mrope_section": [4, 2, 2]}),
            ValueError,
            "rope_type = 'yarn' is not supported; only 'default' is",
        ),
        (edit_config(vision_config__deepstack_visual_indexes=[2, 9]), ValueError, "it must be increasing layers"),
        (lambda path: (path / WEIGHTS).unlink(), FileNotFoundError, "holds neither model.safetensors nor"),
        (truncate, ValueError, "model.safetensors: not a sound safetensors file"),
        (edit_tensor(lambda tensors: tensors.pop(Q_PROJ)), ValueError, f"tensor {Q_PROJ} missing from the weights"),
        (
            edit_tensor(lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ][:32]})),
            ValueError,
            rf"model.safetensors: tensor {Q_PROJ} has shape \(32, 48\), but config.json means \(64, 48\)",
        ),
        (
            edit_config(text_config__num_hidden_layers=2),
            ValueError,
            "layers.2.input_layernorm.weight and 10 more tensors in the weights, but config.json has no place",
        ),
        (
            in_shards_of_nothing,
            FileNotFoundError,
            "gone.safetensors: model.safetensors.index.json names this file, but it is not there",
        ),
    ],
)
def test_a_bad_directory_is_refused_with_a_reason(
    checkpoint: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(error, match=message):
        load_pretrained(checkpoint)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory; a Hugging Face model directory is needed"):
        load_pretrained(tmp_path / "nowhere")


SHARDED = """
import sys
import jax
import numpy as np

process, port, source, target, values = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from actfer_jax.models import load_pretrained, logits, save_pretrained

auto = (jax.sharding.AxisType.Auto,) * 3
model = load_pretrained(source, mesh=jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=auto))
kernel = model.language_model.layers.mlp.gate_proj.kernel[...]
assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor"), kernel.sharding
assert kernel.addressable_shards[0].data.shape == (3, 12, 40)
save_pretrained(model, target)
with np.load(values) as arrays:
    found = logits(model, arrays["ids"], arrays["mask"], arrays["pixels"], arrays["grids"])
    shard = found.addressable_shards[0]
    np.testing.assert_allclose(shard.data, arrays["logits"][shard.index], atol=2e-4)
"""


@pytest.mark.slow
def test_two_processes_share_a_model_and_save_it_whole(checkpoint: Path, tmp_path: Path) -> None:
    batch = fixtures.make_batch(fixtures.LAYOUT)
    ids, mask = batch.padded("right")
    expected = logits(load_pretrained(checkpoint), ids, mask, batch.pixel_values, batch.grids)
    np.savez(tmp_path / "values.npz", ids=ids, mask=mask, pixels=batch.pixel_values, grids=batch.grids, logits=expected)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(port), str(checkpoint), str(tmp_path / "saved"), str(tmp_path / "values.npz")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(process), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
    assert same_weights(tmp_path / "saved", checkpoint)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that is offline, with one model in its cache, whose config.json is still to be written."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--a-model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    return snapshot


def test_a_name_on_the_hub_is_the_copy_in_its_cache(hub: Path) -> None:
    (hub / "config.json").write_text(json.dumps(fixtures.CONFIG))
    assert local_directory("someone/a-model") == hub
    with pytest.raises(FileNotFoundError, match="someone/another is no directory here, and the Hugging Face hub"):
        local_directory("someone/another")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "qwen3_vl_moe"}, "model_type is 'qwen3_vl_moe'; this package runs 'qwen3_vl'"),
        ("config.json", fixtures.CONFIG | {"quantization_config": {"quant_method": "awq"}}, "weights are quantized"),
        ("adapter_config.json", {"peft_type": "LORA"}, "adapters are no whole model; merge them into their base"),
    ],
)
def test_a_model_that_is_not_run_is_refused_before_its_weights_are_fetched(
    hub: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: dict[str, Any], message: str
) -> None:
    (hub / file).write_text(json.dumps(content))
    fetched: list[str] = []
    original = huggingface.snapshot_download

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        fetched.extend(allow_patterns)
        return original(name, allow_patterns=allow_patterns, **options)

    monkeypatch.setattr(huggingface, "snapshot_download", download)
    with pytest.raises(ValueError, match=message):
        local_directory("someone/a-model")
    assert not any(fnmatch.fnmatch("model.safetensors", pattern) for pattern in fetched)


def in_shards(change: Callable[..., None]) -> Callable[[Path], None]:
    """Two shards with an index in the place of the one file; `change(directory, first, second, weight_map)` first."""

    def edit(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        (directory / WEIGHTS).unlink()
        half = len(tensors) // 2
        names = sorted(tensors)
        shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
        weight_map = {name: file for file, names in shards.items() for name in names}
        first, second = ({name: tensors[name] for name in names} for names in shards.values())
        change(directory, first, second, weight_map)
        save_file(first, directory / "a.safetensors", metadata={"format": "pt"})
        save_file(second, directory / "b.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return edit


def add_other_weights(directory: Path, first: dict[str, np.ndarray], *_: Any) -> None:
    every = fixtures.write_checkpoint(directory.parent / "every")
    tensors = {name: value / 2 for name, value in load_file(every / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def tensors_as(dtype: Any) -> Callable[[Path], None]:
    return edit_tensor(lambda tensors: tensors.update({name: value.astype(dtype) for name, value in tensors.items()}))


ROPE = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]}


def in_turn(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        for change in changes:
            change(directory)

    return edit


@pytest.mark.parametrize(
    "change",
    [
        in_turn(
            tensors_as(np.float16),
            edit_tensor(lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].copy()})),
            edit_config(text_config__sliding_window=2, text_config__use_sliding_window=True),
            edit_config(hidden_size=64, text_config__tie_word_embeddings=False),
            in_shards(lambda _, first, second, where: second.update({Q_PROJ: first.pop(Q_PROJ)})),  # not as indexed
        ),
        in_turn(
            edit_config(text_config__rope_parameters=ROPE | {"rope_theta": 5e6}),  # beside rope_scaling
            edit_config(vision_config__rope_scaling={"rope_type": "default", "rope_theta": 500.0}),
            in_shards(add_other_weights),
        ),
        edit_config(text_config__rope_scaling=ROPE | {"rope_theta": 5e6}),  # beside rope_theta
    ],
    ids=["settings without effect", "two of everything", "two thetas"],
)
def test_an_odd_directory_is_loaded_as_transformers_loads_it(checkpoint: Path, change: Callable[[Path], None]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    change(checkpoint)
    batch = fixtures.make_batch([[3, (2, 4), 4]])
    ids, mask = batch.padded("right", extra=0)
    theirs = transformers.Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype="float32").eval()
    inputs = {"pixel_values": batch.pixel_values, "image_grid_thw": batch.grids, "input_ids": ids}
    inputs |= {"attention_mask": mask, "mm_token_type_ids": (ids == fixtures.IMAGE).astype(np.int64)}
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    found = logits(load_pretrained(checkpoint), ids, mask, batch.pixel_values, batch.grids)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def published(directory: Path) -> dict[str, np.ndarray]:
    """Writes a config of Qwen3-VL-4B with its vocabulary and depths, 32 wide; the weights that belong to it."""
    config = json.loads(Path(PUBLISHED).read_text())
    config["text_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config["text_config"] |= {"num_key_value_heads": 1}
    config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    shapes = huggingface.tensor_shapes(Qwen3VLConfig.from_json(directory / "config.json"))
    return {name: np.full(shape, 0.01, jnp.bfloat16) for name, shape in shapes.items()}


def test_one_number_that_is_not_finite_is_found_with_its_file_and_tensor(tmp_path: Path) -> None:
    """In the whole vocabulary, and in a layer of a stack; also one that only the parameters' type makes infinite."""
    directory = tmp_path / "model"
    tensors = published(directory)
    assert tensors[EMBEDDING].shape == (151_936, 32)
    layer = "model.language_model.layers.35.mlp.up_proj.weight"
    for name, value, dtype in (
        (EMBEDDING, np.nan, "float32"),
        (layer, -np.inf, "bfloat16"),
        (layer, 3.4e38, "bfloat16"),
    ):
        spoilt = tensors[name].astype(np.float32)
        spoilt[-1, -1] = value
        save_file(tensors | {name: spoilt}, directory / WEIGHTS)
        message = rf"{WEIGHTS}: tensor {name} with numbers that are NaN or infinite as {dtype}"
        with pytest.raises(NotFiniteError, match=message):
            load_pretrained(directory, dtype=jnp.dtype(dtype))
    load_pretrained(directory)  # 3.4e38 is a number in float32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(checkpoint: Path, tmp_path: Path, value: float) -> None:
    model = load_pretrained(checkpoint)
    norm = model.language_model.norm.scale
    norm[...] = norm[...].at[3].set(value)
    with pytest.raises(NotFiniteError, match="copy: not written: 1 parameters .*language_model/norm/scale"):
        save_pretrained(model, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_transformers_makes_the_processor_of_a_policy(tmp_path: Path) -> None:
    """And it prepares what the agent reads itself: the same ids and the same patches."""
    pytest.importorskip("torchvision", reason="transformers needs it for the video processor")
    save_pretrained(load_pretrained(demo_checkpoint()), tmp_path / "policy")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "policy")
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert type(processor.video_processor).__name__ == "Qwen3VLVideoProcessor"
    image = np.full((64, 64, 3), 90, np.uint8)
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": "Read this face."}]
    found = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="np",
    )
    prompt = Prompt("", "Read this face.", None)
    assert found["input_ids"][0].tolist() == Chat.from_pretrained(tmp_path / "policy").prompt_ids(prompt, [4])
    patches, grid = ViewEncoder(
        tmp_path / "policy",
        ViewConfig(
            scene_min_pixels=2048, scene_max_pixels=9216, aligned_side=64, zoom_min_pixels=2048, zoom_max_pixels=6144
        ),
    )(image)
    assert found["image_grid_thw"][0].tolist() == list(grid)
    np.testing.assert_allclose(found["pixel_values"], patches, atol=1e-6)


def test_a_policy_says_which_processor_transformers_is_to_make_of_it(checkpoint: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(demo_checkpoint()), tmp_path / "policy")
    config, _ = transformers.ProcessorMixin.get_processor_dict(tmp_path / "policy")
    assert hasattr(transformers, config["processor_class"])
    assert config["video_processor"]["size"] == {"shortest_edge": 2048, "longest_edge": 9216}
