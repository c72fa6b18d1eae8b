"""How long a step of reinforcement learning takes on the devices at hand, at the true size of Qwen3-VL-4B.

    python benchmarks/step_time.py --config=configs/ucgrpo.py --words=DIR --json=docs/results/step_time.json
    python benchmarks/step_time.py --config=configs/ucgrpo.py --words=DIR --config.batch.queries=4 \
        --config.batch.microbatches=4 --config.rollout.fill_rows=16 "--config.mesh.rollout=(-1,1,1)"

The steps are those of training, with its meshes, prompt, views, face tools and rendered faces. Two things stand in: a
config without `config.model.path` gets random weights in the sizes of Qwen3-VL-4B, with the tokenizer, chat template
and processor in `--words` (by default ACTFER_QWEN3_VL of the environment); and whatever the policy writes is read as a
call, align and then zooms, and in the last turn as one answer or another, so that every episode has all of its turns,
at their full length, and views. The first step compiles and is left out.

Prints the median of each phase, with the TFLOP that the model's formulas count (`flops`), what the sampler and the
trainer say of the same tokens, and the most memory that a device held. Ends with status 1 if a gradient is not finite.
"""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from places import check_places

from actfer_jax import cli
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.compile_check import flops
from actfer_jax.compile_check.check import PUBLISHED
from actfer_jax.data.datasets import synth_faces
from actfer_jax.errors import UserError
from actfer_jax.evaluation.tables import align
from actfer_jax.models import Qwen3VLConfig
from actfer_jax.outputs import write_file
from actfer_jax.parallel import hosts
from actfer_jax.parallel.sharding import make_meshes
from actfer_jax.rollout.agent import load_agent
from actfer_jax.rollout.batch import abstract_batch, longest_row
from actfer_jax.rollout.engine import view_slots
from actfer_jax.training.config import RowLayout, TrainConfig, read_train_config, row_layout
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.rl_steps import rl_steps
from actfer_jax.training.state import initial_state

ALIGN = '<think></think>\n<tool_call>\n{"name": "align_face", "arguments": {}}\n</tool_call>'
ANSWER = "<think></think>\n<aus>none</aus>\n<answer>{}</answer>"
ZOOM = '<think></think>\n<tool_call>\n{"name": "zoom", "arguments": {"region": "mouth"}}\n</tool_call>'
PHASES = ("prefill", "decode", "fill", "tools", "host", "data", "train")


class CallingChat(Chat):
    """Reads the first turn of each episode as a call to align the face, the last as an answer, others as zooms.

    No turn ends before it has all of its tokens, so that all rows end theirs together.

    Args:
      rows: episodes that are played together.
      turns: of each.
    """

    def __init__(self, chat: Chat, rows: int, turns: int):
        super().__init__(chat.tokenizer, "the benchmark's tokenizer")
        self.rows, self.turns, self.read = rows, turns, 0

    def banned(self, vocabulary_size: int) -> np.ndarray:
        banned_V = super().banned(vocabulary_size)
        banned_V[self.turn_end_id] = True
        return banned_V

    def turn_text(self, ids: list[int]) -> str:
        del ids
        turn, row = divmod(self.read, self.rows)
        self.read = (self.read + 1) % (self.rows * self.turns)
        if turn == self.turns - 1:
            return ANSWER.format(synth_faces.DEMO_EMOTIONS[row % len(synth_faces.DEMO_EMOTIONS)])
        return ZOOM if turn else ALIGN


class Faces:
    """Rendered faces, one for each query."""

    def __init__(self, count: int):
        self.samples = []
        for index in range(count):
            face = synth_faces.face_of("train", index)
            reference = Reference(labels=synth_faces.DEMO_EMOTIONS, emotion=face.emotion, aus=frozenset(face.aus))
            self.samples.append(Sample("synth_faces", f"train/{index}", (synth_faces.render(face).image,), reference))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def strata(self, index: int) -> tuple[str, ...]:
        return ()


def true_size(directory: Path, words: str) -> None:
    """A model directory with the sizes of Qwen3-VL-4B, the words of a Qwen3-VL, and no weights."""
    if not (Path(words) / "tokenizer_config.json").is_file():
        raise UserError(
            f"--words is {words!r}; give a directory with the tokenizer, chat template and processor of a Qwen3-VL, or "
            "a whole model as --config.model.path"
        )
    for path in Path(words).iterdir():
        if path.suffix in (".json", ".jinja", ".txt"):
            shutil.copyfile(path, directory / path.name)
    shutil.copyfile(PUBLISHED, directory / "config.json")


def work(config: TrainConfig, model_config: Qwen3VLConfig, layout: RowLayout, length: int) -> dict[str, float]:
    """TFLOP of the phases of a step that compute, with every slot and position that they have.

    Args:
      layout, length: of the rows in the update.
    """
    size, rollout = config.batch, config.rollout
    rows, slots = size.queries * size.rollouts, view_slots(rollout, config.views, model_config)
    no_views, one_view = (
        dataclasses.replace(slots, views=0),
        dataclasses.replace(slots, scene=slots.view, scenes=1, views=0),
    )
    prompts = abstract_batch(size.queries, 1, rollout.prompt_tokens, no_views, model_config)
    replies = abstract_batch(rollout.fill_rows, 1, rollout.reply_tokens + 2, one_view, model_config)
    fills = (rollout.max_turns - 1) * -(-rows // rollout.fill_rows)
    rooms: dict[str, Any] = {"prefix": layout.prefix, "policy_tokens": config.policy_tokens}
    episodes = abstract_batch(rows, layout.group_size, length, slots, model_config, **rooms)
    steps = rollout.max_turns * rollout.turn_tokens
    counted = {
        "prefill": flops.prefill(model_config, prompts),
        "decode": flops.decode(model_config, rows, steps, rollout.max_length),
        "fill": fills * flops.fill(model_config, replies, rollout.max_length),
        "train": flops.update(model_config, episodes),
    }
    return {phase: count / 1e12 for phase, count in counted.items()}


def measure(config: TrainConfig) -> dict[str, Any]:
    """Trains `--steps` steps, and what they took."""
    meshes = make_meshes(config.mesh)
    config.check_meshes(meshes)
    agent = load_agent(config.model, config.views, config.rollout, faces=config.faces, seed=config.seed, meshes=meshes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(agent.params))
    print(f"{parameters:,} parameters on {jax.device_count()} x {jax.devices()[0].device_kind}", flush=True)
    optimizer = make_optimizer(config.optimizer, config.steps)
    chat = CallingChat(agent.chat, config.batch.queries * config.batch.rollouts, config.rollout.max_turns)
    agent = dataclasses.replace(agent, chat=chat)
    state = initial_state(agent.params, optimizer, config, meshes.update)
    step_function = rl_steps(config, agent, Faces(config.batch.queries), optimizer, 0, hosts.Termination())
    agent = dataclasses.replace(agent, params=state.train.weights)
    steps = []
    for step in range(1, config.steps + 1):
        output = step_function(state, step)
        assert output.episodes is not None
        state, metrics, rollouts = output.state, output.metrics, output.episodes.rollouts
        metrics = {name: float(value) for name, value in metrics.items()}
        metrics["turns"] = float(np.mean([len(rollout.episode.turns) for group in rollouts for rollout in group]))
        steps.append(metrics)
        seconds = metrics["perf/rollout_s"] + metrics["perf/train_s"]
        print(f"step {step}/{config.steps}: {seconds:.1f} s{', compiling included' * (step == 1)}", flush=True)
    layout = row_layout(config.batch, config.rollout, meshes.update)
    sequences = [rollout.sequence for group in rollouts for rollout in group]
    length = layout.padded(longest_row(sequences, layout.group_size, layout.prefix))
    memory = [device.memory_stats() or {} for device in jax.local_devices()]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "parameters": parameters,
        "rows": config.batch.queries * config.batch.rollouts,
        "memory_gib": max(stats.get("peak_bytes_in_use", 0) for stats in memory) / 2**30,
        "teraflop": work(config, agent.model_config, layout, length),
        "steps": steps,
    }


def table(figures: dict[str, Any]) -> str:
    """Medians over the steps but the first."""
    rows = [["phase", "seconds", "TFLOP", "TFLOP/s a device"]]
    for phase in PHASES:
        seconds = np.median([step[f"perf/{phase}_s"] for step in figures["steps"][1:]])
        count = figures["teraflop"].get(phase)
        rate = f"{count / seconds / figures['devices']:.0f}" if count else "-"
        rows.append([phase, f"{seconds:.2f}", f"{count:.0f}" if count else "-", rate])
    return align(rows, left=1)


def main(argv: Sequence[str]) -> None:
    del argv
    check_places(json=flags.FLAGS.json)
    raw = flags.FLAGS.config
    with tempfile.TemporaryDirectory() as directory, raw.unlocked():
        if not raw.model.path:
            true_size(Path(directory), flags.FLAGS.words)
            raw.model.path, raw.model.initialise = directory, "random"
        raw.steps, raw.evaluation = flags.FLAGS.steps + 1, None
        figures = measure(read_train_config(raw))
    print(table(figures))
    names = ("turns", "perf/tokens_per_s", "mismatch/logp_abs_diff", "mismatch/logp_abs_diff_max", "policy/grad_norm")
    print("; ".join(f"{name} {np.median([step[name] for step in figures['steps'][1:]]):.4g}" for name in names))
    print(f"peak of a device's memory: {figures['memory_gib']:.1f} GiB")
    if flags.FLAGS.json:
        write_file(flags.FLAGS.json, json.dumps(figures, indent=1) + "\n")
    if not all(0 < step["policy/grad_norm"] < np.inf for step in figures["steps"]):
        sys.exit("error: a gradient was not finite, or there was none")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config file.")
    flags.DEFINE_string("words", os.environ.get("ACTFER_QWEN3_VL", ""), "Directory with a Qwen3-VL's tokenizer.")
    flags.DEFINE_integer("steps", 3, "Steps that are timed, after one that compiles.")
    flags.DEFINE(cli.PathFlag(), "json", None, "File for the figures.")
    flags.mark_flag_as_required("config")
    cli.run(main)
