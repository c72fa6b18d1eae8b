"""Hugging Face directories: round trips, what goes wrong with them, and sharded loading in two real processes."""

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
from flax import nnx
from safetensors.numpy import load_file, save_file

from actfer_jax.models import Qwen3VL, Qwen3VLConfig, load_pretrained, local_directory, logits, save_pretrained
from actfer_jax.outputs import OutputError

ROOT = Path(__file__).parents[1]
WEIGHTS = "model.safetensors"
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"


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
        (edit_config(text_config__head_dim=None), ValueError, "config.json: the key 'text_config.head_dim' is missing"),
        (edit_config(vision_config__depth="x"), ValueError, "config.json: vision_config.depth = 'x' is not usable"),
        (edit_config(text_config__hidden_act="gelu"), ValueError, "text_config.hidden_act = 'gelu' is not supported"),
        (
            edit_config(text_config__rope_scaling={"rope_type": "yarn", "mrope_section": [4, 2, 2]}),
            ValueError,
            "rope_type = 'yarn' is not supported; only 'default' is",
        ),
        (edit_config(vision_config__deepstack_visual_indexes=[2, 9]), ValueError, "not increasing layers of 4"),
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
            lambda path: (path / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "gone.safetensors"}}'
            ),
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


def test_a_name_on_the_hub_is_the_copy_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--a-model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    assert local_directory("someone/a-model") == snapshot
    with pytest.raises(FileNotFoundError, match="someone/another is no directory here, and the Hugging Face hub"):
        local_directory("someone/another")
