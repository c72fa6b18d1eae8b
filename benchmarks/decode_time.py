"""How long decoding takes a token on the devices at hand, by how much of the cache is filled, and beside other code.

    python benchmarks/decode_time.py --json=docs/results/decode_time.json --other=CHECKOUT

At the demo's size, and at a middle one with the vocabulary of Qwen3-VL, with random weights in float32: rows that are
all nearly full, rows of all lengths, and one row in eight that is still decoding. Eight rows share a prompt. `--other`
is a checkout of another version of this repository: both decode in turn, each by its own copy of this command and in a
process of its own, and the table has the ratio. Prints medians of milliseconds a token, with the least and the most, of
wall time and of processor time.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from places import check_places

from actfer_jax import cli
from actfer_jax.evaluation.tables import align
from actfer_jax.models import KVCache, Qwen3VL, Qwen3VLConfig, demo_checkpoint, init_cache
from actfer_jax.outputs import write_file
from actfer_jax.rollout.programs import Programs, RowState, row_keys

ROOT = Path(__file__).parents[1]
CHUNK = 4
GROUP = 8
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows, their capacity, how much of it is the prompt, and what the decoder has in place of the demo's sizes."""

    rows: int
    capacity: int
    prompt: int
    decoder: dict[str, Any]


SIZES = {
    "demo": Size(128, 208, 24, {}),
    "middle": Size(
        16,
        1024,
        384,
        {
            "hidden_size": 768,
            "intermediate_size": 2304,
            "num_hidden_layers": 8,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "vocab_size": 151_936,
            "mrope_section": (12, 10, 10),
        },
    ),
}
FILLED = ("full", "spread", "few left")


def lengths(filled: str, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row, and whether it is decoding."""
    most = size.capacity - CHUNK - 1
    if filled == "spread":
        return np.linspace(size.prompt + 1, most, size.rows).astype(np.int32), np.ones(size.rows, bool)
    return np.full(size.rows, most, np.int32), np.arange(size.rows) % 8 < (1 if filled == "few left" else 8)


class Decoder:
    """The decode program of a model with random weights."""

    def __init__(self, size: Size):
        config = Qwen3VLConfig.from_json(Path(demo_checkpoint()) / "config.json")
        self.size, self.config = (
            size,
            dataclasses.replace(
                config,
                text=dataclasses.replace(config.text, **size.decoder),
                vision=dataclasses.replace(
                    config.vision, out_hidden_size=size.decoder.get("hidden_size", config.text.hidden_size)
                ),
            ),
        )
        graphdef, self.params = nnx.split(Qwen3VL(self.config, rngs=nnx.Rngs(0)), nnx.Param)
        vocabulary = self.config.text.vocab_size
        self.programs = Programs(
            graphdef,
            group_size=GROUP,
            length=size.capacity,
            suffix=size.capacity - size.prompt,
            chunk=CHUNK,
            turn_tokens=size.capacity,
            turn_end_id=0,
            temperature=1.0,
            banned_V=np.arange(vocabulary) == 0,  # so that no row ends
        )

    def filled(self, rows: int, positions: int) -> KVCache:
        return KVCache(*(x + 0.1 for x in init_cache(self.config, rows, positions, jnp.float32)))

    def milliseconds(self, filled: str) -> tuple[float, float]:
        """Wall time and processor time a token."""
        rows, capacity = self.size.rows, self.size.capacity
        length_R, active_R = lengths(filled, self.size)
        state = RowState(
            tokens=jnp.where(jnp.arange(capacity)[None] < length_R[:, None], 1, -1),
            loss_mask=jnp.zeros((rows, capacity), bool),
            log_probs=jnp.zeros((rows, capacity)),
            raw_log_probs=jnp.zeros((rows, capacity)),
            length=jnp.asarray(length_R),
            position=jnp.asarray(length_R) - 1,
            limit=jnp.full(rows, capacity),
            active=jnp.asarray(active_R),
            keys=row_keys(0, 0, np.arange(rows), 1),
            cache=self.filled(rows, self.programs.cached),
            prompt=self.filled(rows // GROUP, self.size.prompt),
            prompt_length=jnp.full(rows, self.size.prompt),
        )
        jax.block_until_ready(state)
        began = time.perf_counter(), time.process_time()
        jax.block_until_ready(self.programs.decode(self.params, state))
        ended = time.perf_counter(), time.process_time()
        wall, processor = ((end - begin) / CHUNK * 1e3 for begin, end in zip(began, ended, strict=True))
        return wall, processor


def serve() -> None:
    """Times what standard input asks for, a line each: the name of a size, and how far its rows are filled."""
    decoders: dict[str, Decoder] = {}
    for line in sys.stdin:
        name, filled = json.loads(line)
        if name not in decoders:
            decoders[name] = Decoder(SIZES[name])
        print(json.dumps(decoders[name].milliseconds(filled)), flush=True)


def measure(other: str) -> list[dict[str, Any]]:
    """Milliseconds a token of every size and filling, by version: this one, and the other if there is one."""
    checkouts = {"this": str(ROOT)} | ({"other": other} if other else {})
    servers = {
        version: subprocess.Popen(
            [sys.executable, f"{checkout}/benchmarks/decode_time.py", "--serve"],
            env=os.environ | {"PYTHONPATH": checkout},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version, checkout in checkouts.items()
    }

    def ask(version: str, *question: str) -> tuple[float, float]:
        pipes = servers[version]
        assert pipes.stdin is not None and pipes.stdout is not None
        pipes.stdin.write(json.dumps(question) + "\n")
        pipes.stdin.flush()
        wall, processor = json.loads(pipes.stdout.readline())
        return wall, processor

    measured = []
    for name in SIZES:
        for filled in FILLED:
            for version in servers:
                ask(version, name, filled)  # compiles
            rounds = [{version: ask(version, name, filled) for version in servers} for _ in range(ROUNDS)]
            for place, clock in enumerate(("wall", "processor")):
                times = {version: [one[version][place] for one in rounds] for version in servers}
                measured.append({"size": name, "filled": filled, "clock": clock, "milliseconds": times})
                print(row(measured[-1]), flush=True)
    for server in servers.values():
        server.communicate()
    return measured


def row(measured: dict[str, Any]) -> list[str]:
    """Of the table."""
    times = list(measured["milliseconds"].values())
    medians = [float(np.median(x)) for x in times]
    cells = [f"{median:.2f} ({min(x):.2f} to {max(x):.2f})" for median, x in zip(medians, times, strict=True)]
    return [
        measured["size"],
        measured["filled"],
        measured["clock"],
        *cells,
        *(f"{x / medians[0]:.2f}" for x in medians[1:]),
    ]


def main(argv: Sequence[str]) -> None:
    del argv
    if flags.FLAGS.serve:
        serve()
        return
    check_places(json=flags.FLAGS.json)
    measured = measure(flags.FLAGS.other)
    versions = list(measured[0]["milliseconds"])
    head = ["size", "filled", "clock", *versions, *(f"{version} / this" for version in versions[1:])]
    print(align([head, *map(row, measured)], left=3))
    if flags.FLAGS.json:
        figures = {"device": jax.devices()[0].device_kind, "chunk": CHUNK, "measured": measured}
        write_file(flags.FLAGS.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("other", "", "A checkout of another version, to be timed beside this one.")
    flags.DEFINE_bool("serve", False, "Answer on standard output; for this command's own processes.")
    flags.DEFINE(cli.PathFlag(), "json", None, "File for the figures.")
    cli.run(main)
