"""Times this package beside transformers and PyTorch: the same weights, pictures, tokens and precision, in turn.

    python benchmarks/peers.py --compare=generation --json=docs/results/peers_generation.json
    python benchmarks/peers.py --compare=episodes --json=docs/results/peers_episodes.json
    python benchmarks/peers.py --compare=update --json=docs/results/peers_update.json

Needs PyTorch. Both sides compute in float32 on the cores that the process may use: `taskset -c 0` gives them one. What
is compared (docs/speed.md says more):

- generation: greedy tokens after prompts with a picture, from the picture to the ids: a rollout of one turn beside
  `generate` with its dynamic and its static cache.
- episodes: greedy episodes of several turns, whose calls return crops: a rollout beside a batched loop that keeps its
  cache between turns. Both have the same environment, tools and detected faces.
- update: a supervised update with Adam on traces of such episodes, beside transformers' own loss and `AdamW`.

`demo` is the policy of the package, on its own small views. `middle` has 116 M random parameters and views of 256 x 256
pixels; whatever it writes is read as calls and then an answer, and its turns have all of their tokens.

The sides take turns, and a ratio is that of a round: above 1, this package is faster. Prints medians, with the least
and the most. The first time of each side, with what it compiles, is printed and left out. Where other programs use the
same cores, processor time is the fairer clock. Ends with status 1 where the sides disagree: where more than 5% of the
rows have other tokens, or a loss differs by more than 1e-3 of itself.
"""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from places import check_places
from step_time import CallingChat, Faces
from transformers_peer import CACHES, Peer

from actfer_jax import cli
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.tables import align
from actfer_jax.models import Qwen3VL, Qwen3VLConfig, demo_checkpoint, save_pretrained
from actfer_jax.outputs import write_file
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import Sequence as Row
from actfer_jax.rollout.batch import make_batch
from actfer_jax.rollout.engine import Query, view_slots
from actfer_jax.training.optimizer import OptimizerConfig, make_optimizer
from actfer_jax.training.sft_steps import trace_maker
from actfer_jax.training.traces import TraceConfig
from actfer_jax.training.update import init_train_state, make_sft_update, split_batch

OURS = "actfer_jax"
OPTIMIZER = OptimizerConfig(learning_rate=1e-5, weight_decay=0.0)
LEAST_SAME = 0.95
"""Share of the rows that have to have the same tokens on both sides: rounding decides between tokens that are equally
likely."""
MOST_APART = 1e-3
"""How much of itself a loss may differ by: Adam divides gradients by their size, and those that are zero but for
rounding move parameters too."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done at a time: rows of generation and episodes, and tokens that `generation` adds to each."""

    rows: int
    new_tokens: int


SIZES = {"demo": Size(rows=32, new_tokens=64), "middle": Size(rows=4, new_tokens=32)}
MIDDLE = {
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 10,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32_768,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [12, 10, 10]},
    },
    "vision_config": {
        "depth": 6,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_heads": 6,
        "out_hidden_size": 768,
        "num_position_embeddings": 256,
    },
}
SIDE = 256
MIDDLE_VIEWS = {
    "multiple": 32,
    "scene_min_pixels": SIDE**2 // 4,
    "scene_max_pixels": SIDE**2,
    "aligned_side": SIDE,
    "zoom_min_pixels": SIDE**2 // 4,
    "zoom_max_pixels": SIDE**2,
}
MIDDLE_ROLLOUT = {
    "prompt_style": "brief",
    "max_turns": 3,
    "prompt_tokens": 96,
    "turn_tokens": 32,
    "reply_tokens": 104,
    "max_length": 416,
    "chunk": 32,
    "fill_rows": 4,
}


def make_middle(directory: Path) -> Path:
    """A policy with random weights and the demo's words, as a Hugging Face directory."""
    words, policy = directory / "words", directory / "policy"
    shutil.copytree(demo_checkpoint(), words, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    for name, changes in (
        ("config.json", MIDDLE),
        ("preprocessor_config.json", {"size": {"shortest_edge": SIDE**2 // 4, "longest_edge": SIDE**2}}),
    ):
        value = json.loads((words / name).read_text())
        for key, change in changes.items():
            value[key] = value[key] | change
        (words / name).write_text(json.dumps(value))
    card = PolicyCard.load(words)
    dataclasses.replace(card, views=MIDDLE_VIEWS, rollout=MIDDLE_ROLLOUT).save(words)
    model = Qwen3VL(Qwen3VLConfig.from_json(words / "config.json"), rngs=nnx.Rngs(0))
    model.source = str(words)
    save_pretrained(model, policy)
    return policy


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Sides that do the same work, this package first.

    Attributes:
      work: what that is.
      sides: each does it once, and returns the token ids of its rows, or a loss.
    """

    work: str
    sides: dict[str, Callable[[], Any]]


def rollouts(agent: Agent, size: Size) -> tuple[list[Query], Callable[[], list[Row]]]:
    """Queries, and a function that plays them greedily, all in one batch."""
    queries = [Query(**vars(sample), index=index) for index, sample in enumerate(Faces(size.rows).samples)]
    engine = agent.engine(queries=size.rows, group_size=1, greedy=True)

    def play() -> list[Row]:
        played = engine.run(agent.params, queries, seed=0, step=0)
        return [rollout.sequence for (rollout,) in played.rollouts]

    return queries, play


def generation(name: str, directory: Path, agent: Agent) -> Comparison:
    size, prompt = SIZES[name], agent.rollout.prompt_tokens
    rollout = dataclasses.replace(
        agent.rollout,
        max_turns=1,
        turn_tokens=size.new_tokens,
        max_length=prompt + size.new_tokens,
        chunk=size.new_tokens,
    )
    agent = dataclasses.replace(agent, rollout=rollout, chat=CallingChat(agent.chat, size.rows, 1))
    peer, (queries, play) = Peer(directory, agent), rollouts(agent, size)
    sides: dict[str, Callable[[], Any]] = {OURS: lambda: [row.tokens for row in play()]}
    for cache in CACHES:
        sides[f"transformers, {cache} cache"] = partial(peer.generate, queries, cache)
    return Comparison(f"{size.rows} prompts with a picture, {size.new_tokens} new tokens each", sides)


def episodes(name: str, directory: Path, agent: Agent) -> Comparison:
    size = SIZES[name]
    if name == "middle":
        agent = dataclasses.replace(agent, chat=CallingChat(agent.chat, size.rows, agent.rollout.max_turns))
    peer, (queries, play) = Peer(directory, agent), rollouts(agent, size)
    sides = {OURS: lambda: [row.tokens for row in play()], "transformers": partial(peer.play, queries)}
    return Comparison(f"{len(queries)} episodes of up to {agent.rollout.max_turns} turns", sides)


def update(name: str, directory: Path, agent: Agent) -> Comparison:
    maker = trace_maker(TraceConfig(two_zooms=0.0), agent)
    rows = [maker.episode(face, np.random.default_rng(n)) for n, face in enumerate(Faces(SIZES[name].rows).samples)]
    length, config = max(len(row.tokens) for row in rows), agent.model_config
    slots = view_slots(agent.rollout, maker.toolbox.view_config, config)
    packed = make_batch(rows, 1, length, slots, config, policy_tokens=agent.rollout.policy_tokens)
    batch, optimizer = split_batch(packed, 1), make_optimizer(OPTIMIZER, 1)
    program, state = make_sft_update(agent.graphdef, optimizer, chunk=2048), init_train_state(agent.params, optimizer)

    def step() -> float:
        nonlocal state
        state, metrics = program(state, batch)
        return float(jax.block_until_ready(metrics)["sft/loss"])

    work = f"{len(rows)} rows of up to {length} tokens, {sum(len(row.views) for row in rows)} pictures"
    return Comparison(work, {OURS: step, "transformers": Peer(directory, agent).updates(rows, OPTIMIZER)})


COMPARISONS = {"generation": generation, "episodes": episodes, "update": update}


def timed(side: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds by the clock and of the processor, and what the side returned."""
    began = time.perf_counter(), time.process_time()
    returned = side()
    ended = time.perf_counter(), time.process_time()
    return (ended[0] - began[0], ended[1] - began[1]), returned


def apart(ours: Any, theirs: Any) -> float:
    """Of two losses, by how much of itself they differ; of rows of token ids, the share that differs."""
    if isinstance(ours, float):
        return abs(ours - theirs) / abs(ours)
    return sum(one != other for one, other in zip(ours, theirs, strict=True)) / len(ours)


def measure(name: str, directory: Path) -> dict[str, Any]:
    """The figures of one size."""
    agent, _ = load_policy(str(directory), "float32")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(agent.params))
    comparison = COMPARISONS[flags.FLAGS.compare](name, directory, agent)
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in comparison.sides}
    differ = dict.fromkeys(comparison.sides, 0.0)
    for number in range(flags.FLAGS.rounds + 1):
        found = {side: timed(work) for side, work in comparison.sides.items()}
        for side, (seconds, returned) in found.items():
            times[side].append(seconds)
            differ[side] = max(differ[side], apart(found[OURS][1], returned))
            print(f"{name}, round {number}: {side} {seconds[0]:.2f} s, processor {seconds[1]:.2f} s", flush=True)
    return {
        "size": name,
        "parameters": parameters,
        "work": comparison.work,
        "seconds": {side: [wall for wall, _ in seconds] for side, seconds in times.items()},
        "processor_seconds": {side: [used for _, used in seconds] for side, seconds in times.items()},
        "apart": differ,
    }


def spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(measured: list[dict[str, Any]]) -> str:
    """Median seconds of each side without its first time, and what it took relative to this package."""
    rows = [["size", "side", "seconds", "ratio", "processor seconds", "ratio", "the first"]]
    for figures in measured:
        for side in figures["seconds"]:
            row = [figures["size"], side]
            for clock in ("seconds", "processor_seconds"):
                (_, *ours), (first, *theirs) = figures[clock][OURS], figures[clock][side]
                ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
                row += [spread(theirs), "" if side == OURS else spread(ratios)]
            rows.append([*row, f"{first:.1f}"])
    return align(rows, left=2)


def main(argv: Sequence[str]) -> None:
    del argv
    check_places(json=flags.FLAGS.json)
    jax.config.update("jax_platforms", "cpu")
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        measured = [
            measure(name, Path(demo_checkpoint()) if name == "demo" else make_middle(Path(directory)))
            for name in flags.FLAGS.sizes
        ]
    print(table(measured))
    limit, what = (MOST_APART, "losses") if flags.FLAGS.compare == "update" else (1 - LEAST_SAME, "rows")
    for figures in measured:
        others = ", ".join(f"{side} {value:.2g}" for side, value in figures["apart"].items() if side != OURS)
        print(f"{figures['size']}, {figures['work']}: {what} that differ, as a part: {others}")
    if flags.FLAGS.json:
        figures = {
            "comparison": flags.FLAGS.compare,
            "cores": cores,
            "load_before": load,
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers")},
            "measured": measured,
        }
        write_file(flags.FLAGS.json, json.dumps(figures, indent=1) + "\n")
    if any(value > limit for figures in measured for value in figures["apart"].values()):
        sys.exit(f"error: the two sides do not agree: more than {limit:.2g} of other {what}")


if __name__ == "__main__":
    flags.DEFINE_enum("compare", None, list(COMPARISONS), "What is done on both sides.")
    flags.DEFINE_multi_enum("sizes", list(SIZES), list(SIZES), "Of the model and its work.")
    flags.DEFINE_integer("rounds", 5, "In which each side works once, after one that compiles.")
    flags.DEFINE(cli.PathFlag(), "json", None, "File for the figures.")
    flags.mark_flag_as_required("compare")
    cli.run(main)
