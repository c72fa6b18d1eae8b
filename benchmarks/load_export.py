"""Loads a checkpoint of Qwen3-VL-4B's shapes onto eight devices and writes it back: memory, seconds, and equal bytes.

    python benchmarks/load_export.py --workdir=runs/load_export --json=docs/results/load_export.json

Makes random bfloat16 weights (9 GB, in two shards, by the safetensors library), then, in a process with eight CPU
devices, loads them divided over all, saves them, compares the files, and decodes a token. Memory is the anonymous part
of the resident set: pages of mapped files are the system's to drop. Ends with status 1 if the files differ, or if
loading or saving takes more of it than 1.35 times the size of the checkpoint. Needs 18 GB of disk.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import flags
from flax import nnx
from places import check_places
from safetensors.numpy import save_file

import actfer_jax.models
from actfer_jax import cli
from actfer_jax.files import write_atomically
from actfer_jax.models import Qwen3VL, Qwen3VLConfig, load_pretrained, save_pretrained
from actfer_jax.models.cache import Past, init_cache
from actfer_jax.models.huggingface import tensor_shapes
from actfer_jax.parallel.sharding import MeshConfig, make_meshes

_WORKDIR = flags.DEFINE(
    cli.PathFlag(), "workdir", "runs/load_export", "Where the checkpoint and its copy are made, and deleted in the end."
)
_CONFIG = flags.DEFINE(cli.PathFlag(), "model_config", None, "A config.json; that of Qwen3-VL-4B by default.")
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest shard.")
_JSON = flags.DEFINE(cli.PathFlag(), "json", None, "File for the figures.")
_MEASURE = flags.DEFINE_boolean("measure", False, "Used by the script itself, for the process with eight devices.")

LIMIT = 1.35
"""Most anonymous memory of the process, in sizes of the checkpoint."""

_XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Eight devices on few cores may wait long for each other.
    "--xla_cpu_collective_call_terminate_timeout_seconds=900",
    # CPUs multiply in float32: without this, all layers are converted before the loop over them.
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion",
)


def make_checkpoint(directory: Path, config_path: Path) -> None:
    """Random weights of magnitude 2^-7, shard by shard as transformers cuts them."""
    directory.mkdir(parents=True)
    shutil.copyfile(config_path, directory / "config.json")
    shapes = tensor_shapes(Qwen3VLConfig.from_json(config_path))
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(shapes):
        nbytes = 2 * int(np.prod(shapes[name]))
        if size + nbytes > _SHARD_GB.value * 1e9:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    rng = np.random.default_rng(0)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            bits = rng.integers(0, 2**16, shapes[name], np.uint16) & 0x807F | 0x3C00
            tensors[name] = bits.view(ml_dtypes.bfloat16)
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


class AnonymousMemory(threading.Thread):
    """Watches this process's anonymous resident memory, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def now(self) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.02)


def measure(source: Path, copy: Path) -> dict[str, Any]:
    """Loads, saves and decodes, with what each took."""
    # As rollouts have them: divided over heads, so that decoding need not gather a layer on every device.
    mesh = make_meshes(MeshConfig(update=(1, 1, 8), rollout=(1, 1, 8))).update
    memory = AnonymousMemory()
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    figures: dict[str, Any] = {
        "devices": jax.device_count(),
        "checkpoint_gb": size / 1e9,
        "anonymous_before_gb": memory.now() / 1e9,
    }

    def timed(name: str, work: Callable[[], Any]) -> Any:
        memory.peak = 0
        began = time.perf_counter()
        result = work()
        figures[name] = {
            "seconds": time.perf_counter() - began,
            "anonymous_peak_gb": memory.peak / 1e9,
            "anonymous_peak_over_checkpoint": memory.peak / size,
        }
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
        return result

    model = timed("load", lambda: load_pretrained(source, dtype=jnp.bfloat16, mesh=mesh))
    held = [0] * jax.device_count()
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    figures["largest_share_of_a_device"] = max(held) / sum(held)
    timed("save", lambda: save_pretrained(model, copy))
    timed("decode_a_token", lambda: decode(model))
    return figures


def decode(model: Qwen3VL) -> int:
    """One token after an empty prompt, through the cache."""
    graph, state = nnx.split(model)

    @jax.jit
    def step(state: nnx.State) -> jax.Array:
        model = nnx.merge(graph, state)
        tokens = jnp.zeros((8, 1), jnp.int32)
        x, _ = model.embed(tokens)
        past = Past(*init_cache(model.config, 8, 16, jnp.bfloat16), jnp.zeros(8, jnp.int32), jnp.arange(8))
        positions = jnp.zeros((8, 1, 3), jnp.int32)
        hidden, _ = model.hidden(x, None, positions, tokens + 1, [past])
        return model.unembed(hidden[:, 0]).argmax(-1)

    return int(step(state)[0])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str]) -> None:
    del argv
    workdir = Path(_WORKDIR.value)
    source, copy = workdir / "source", workdir / "copy"
    if _MEASURE.value:
        print(json.dumps(measure(source, copy)))
        return
    check_places(json=_JSON.value, workdir=workdir)
    for directory in (source, copy):
        shutil.rmtree(directory, ignore_errors=True)
    published = Path(actfer_jax.models.__file__).parent / "qwen3_vl_4b.json"
    make_checkpoint(source, Path(_CONFIG.value or published))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(_XLA_FLAGS),
    }
    command = [sys.executable, __file__, f"--workdir={workdir}", "--measure"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout)
    files = sorted(path.name for path in source.glob("model*"))
    figures["files"] = files
    figures["same_bytes"] = files == sorted(path.name for path in copy.glob("model*")) and all(
        digest(source / name) == digest(copy / name) for name in files
    )
    text = json.dumps(figures, indent=1)
    print(text)
    if _JSON.value:
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_JSON.value, text + "\n")
    for directory in (source, copy):
        shutil.rmtree(directory)
    if problems := shortcomings(figures):
        sys.exit("\n".join(problems))


def shortcomings(figures: dict[str, Any]) -> list[str]:
    """What the figures do not show that they should."""
    problems = [] if figures["same_bytes"] else ["error: the files that were saved are not those that were loaded"]
    for name in ("load", "save"):
        share = figures[name]["anonymous_peak_over_checkpoint"]
        if share > LIMIT:
            problems.append(f"error: {name}: anonymous memory was {share:.2f} times the checkpoint, above {LIMIT}")
    return problems


if __name__ == "__main__":
    cli.run(main)
