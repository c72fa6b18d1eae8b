"""Does training on a mesh of eight devices do what it does on one? Real runs in one process and in two, side by side.

    python benchmarks/equal_training.py --algorithms=sft,rl --json=docs/results/meshes.json
    python benchmarks/equal_training.py --algorithms=lora --json=docs/results/meshes_lora.json

Trains the small policy in float32 (tests/hosts_config.py) on one CPU device, and for every mesh in one process with
eight devices and in two with four each: five supervised steps from random weights, and five steps of reinforcement
learning with episodes of several turns, of all weights and of adapters. Compares what every step measured (its losses
are in there), every advantage, every episode, and in the end the norm of every weight. Prints a table; exits with 1
where a run fails or differs.

Runs that are complete are not run again, so the same command goes on where it was stopped.
"""

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from actfer_jax.episodes.store import read_episodes
from actfer_jax.evaluation.tables import align
from actfer_jax.files import absolute, as_path, write_atomically
from actfer_jax.models import Qwen3VLConfig, demo_checkpoint
from actfer_jax.outputs import check_file
from actfer_jax.rollout.programs import row_keys
from actfer_jax.rollout.sampling import noise
from actfer_jax.runs.manifest import MANIFEST
from actfer_jax.runs.metrics import is_timing, read_metrics

ROOT = Path(__file__).parents[1]

MESHES = [
    # The update mesh and the rollout mesh, (data, fsdp, tensor).
    ((8, 1, 1), (4, 1, 2)),
    ((2, 4, 1), (2, 2, 2)),
    ((1, 2, 4), (1, 1, 8)),  # one group of "tensor" over both processes
    ((2, 2, 2), (2, 1, 4)),  # two key heads do not divide by four
]
PROCESSES = [(1, 8), (2, 4)]
"""How many, and the devices of each."""

STEPS = 5
SIZES = {
    "sft": ["--config.batch.queries=16"],
    "rl": ["--config.batch.queries=4", "--config.rollout.fill_rows=4"],
    "lora": ["--config.batch.queries=4", "--config.rollout.fill_rows=4"],
}
"""Batches that every mesh can divide."""

TOLERANCE = 1e-5
"""Largest relative difference of losses, advantages and norms of weights."""
METRIC_TOLERANCE = 1e-4
"""Of what else a step measures: some are largest differences of nearly equal numbers."""
BIAS_TOLERANCE = 1e-2
"""Largest difference between the norms of biases, and of adapters' B, that began at zero, in learning rates; the norms
are 15 or more."""
TIE = 1e-4
"""How near to each other two tokens are, in log-probability and noise, for either to be drawn."""

TRAIN = ("-m", "actfer_jax.train")


@dataclass
class Comparison:
    """What a run has of another.

    Attributes:
      steps: how many were compared: all, or those before the first step in which episodes part.
      gaps: the largest difference of "losses", other "metrics", "advantages" and "weights", relative, and of "biases",
        in learning rates.
      differences: what differs by more than it may.
      ties: episodes that part at a token where either could be drawn (`is_tie`).
    """

    steps: int = 0
    gaps: dict[str, float] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str, gap: float, allowed: float) -> None:
        """Takes in the difference of one figure."""
        self.gaps[kind] = max(self.gaps.get(kind, 0.0), gap)
        if not gap <= allowed:
            self.differences.append(f"{name} by {gap:.2g}")


def compare(workdir: Path, expected: Path) -> Comparison:
    """Compares two complete runs of the same config.

    Episodes have to be the same, token by token, up to the first tie: the runs then train on different episodes, and
    what comes of that is not compared.
    """
    config = json.loads((expected / MANIFEST).read_text())["config"]
    vocabulary = Qwen3VLConfig.from_json(Path(demo_checkpoint()) / "config.json").text.vocab_size
    sampling = {"seed": config["seed"], "rollouts": config["batch"]["rollouts"], "vocabulary": vocabulary}
    result = Comparison()
    records, other_records = metrics(workdir), metrics(expected)
    played, other_played = episodes(workdir), episodes(expected)
    if records.keys() != other_records.keys() or played.keys() != other_played.keys():
        result.differences.append("which steps and episodes there are")
        return result
    for step, record in records.items():
        names = [name for name in played if name.startswith(f"{step}-")]
        parted = [name for name in names if _exact(played[name]) != _exact(other_played[name])]
        for name in parted:
            tie = is_tie(played[name], other_played[name], **sampling)
            (result.ties if tie else result.differences).append(f"episode {name}")
        if parted:
            if not result.steps:
                result.differences.append("nothing could be compared: episodes part in the first step")
            return result
        if record.keys() != other_records[step].keys():
            result.differences.append(f"which metrics step {step} has")
            return result
        for name, value in record.items():
            # The gap to the sampler is a difference of nearly equal numbers; others may be such sums near zero.
            least = 1.0 if "mismatch" in name else 0.1
            gap = relative(value, other_records[step][name], least)
            kind, allowed = ("losses", TOLERANCE) if "loss" in name else ("metrics", METRIC_TOLERANCE)
            result.add(kind, f"step {step}, {name}", gap, allowed)
        for name in names:
            gap = relative(played[name]["advantage"], other_played[name]["advantage"], 0.1)
            result.add("advantages", f"episode {name}, advantage", gap, TOLERANCE)
        result.steps += 1
    weights, other_weights = (load_file(*(run / "policy").glob("*.safetensors")) for run in (workdir, expected))
    if weights.keys() != other_weights.keys():
        result.differences.append("which weights there are")
        return result
    for name, weight in weights.items():
        norm, other = (float(np.linalg.norm(value.astype(np.float64))) for value in (weight, other_weights[name]))
        # The bias of the patch embedding is fitted to the pictures before the first step.
        is_bias = name.endswith("bias") and "patch_embed" not in name
        if (config["model"]["initialise"] == "random" and is_bias) or name.endswith("lora_B.weight"):
            rates = abs(norm - other) / config["optimizer"]["learning_rate"]
            result.add("biases", name, rates, BIAS_TOLERANCE)
        else:
            result.add("weights", name, relative(norm, other), TOLERANCE)
    return result


def metrics(workdir: Path) -> dict[int, dict[str, Any]]:
    """The metrics of each step, but those that measure the machine."""
    return {
        record["step"]: {name: value for name, value in record.items() if not is_timing(name)}
        for record in read_metrics(workdir)
    }


def episodes(workdir: Path) -> dict[str, dict[str, Any]]:
    """The episodes by their names, without the time that their tools took."""
    records = {record["id"]: record for record in read_episodes(workdir)}
    for record in records.values():
        for turn in record["turns"]:
            del turn["seconds"]
    return records


def _exact(episode: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same in an episode, whatever the rounding."""
    rounded = ("logprobs", "raw_logprobs", "advantage", "reward")
    return {key: value for key, value in episode.items() if key not in rounded}


def relative(value: float | None, other: float | None, least: float = 0.0) -> float:
    """The difference of two numbers relative to the larger of them, or to `least` if that is larger."""
    if value == other:
        return 0.0
    if value is None or other is None:  # not finite
        return 1.0
    return abs(value - other) / max(abs(value), abs(other), least)


def is_tie(episode: Mapping[str, Any], other: Mapping[str, Any], *, seed: int, rollouts: int, vocabulary: int) -> bool:
    """Whether the first token in which two episodes differ was a tie.

    Of the tokens of a block, the one that is drawn has the largest sum of log-probability and Gumbel noise, and the
    noise depends on the seed and on the token's place alone: in a tie, both episodes took a token of nearly the same
    sum. Records do not say what the blocks of a large vocabulary weighed, so tokens of two blocks count as no tie.

    Args:
      episode, other: records of the same id.
      seed, rollouts: of the run, and of each of its queries.
      vocabulary: how many tokens there are.
    """
    pairs = enumerate(zip(episode["token_ids"], other["token_ids"], strict=False))
    place = next((place for place, (token, another) in pairs if token != another), None)
    if place is None or not (episode["loss_mask"][place] and other["loss_mask"][place]):
        return False
    step, query, rollout = map(int, episode["id"].split("-"))
    key = row_keys(seed, step, [query], rollouts)[rollout]
    token_noise, _ = noise(key, place, vocabulary)
    tokens = [run["token_ids"][place] for run in (episode, other)]
    if len({token // len(token_noise) for token in tokens}) > 1:
        return False
    drawn, another = (
        run["logprobs"][place] + float(token_noise[token % len(token_noise)])
        for run, token in zip((episode, other), tokens, strict=True)
    )
    return abs(drawn - another) <= TIE


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(
    workdir: Path,
    arguments: Sequence[str],
    *,
    processes: int = 1,
    devices: int = 1,
    programs: Mapping[int, Sequence[str]] | None = None,
) -> list[subprocess.Popen]:
    """Starts a training; what its processes say goes to `WORKDIR-INDEX.log`.

    Args:
      arguments: of the command, beside its workdir.
      processes: how many; devices: of each.
      programs: by process, what Python runs in place of `TRAIN`.
    """
    arguments = [f"--workdir={workdir}", *arguments]
    if processes > 1:
        arguments += [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}"]
    xla_flags = (
        f"--xla_force_host_platform_device_count={devices}",
        # Many devices on few cores may wait long for each other.
        "--xla_cpu_collective_call_terminate_timeout_seconds=900",
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        # Twice, processes waited for each other for ever. It was not found out why; a collective holds a thread until
        # all devices have come to it, so there are more of them than the cores of a small machine.
        "PJRT_NPROC": "16",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of machine code: compiles faster, and divides programs as ever
        "PYTHONFAULTHANDLER": "1",
        "XLA_FLAGS": " ".join(xla_flags),
    }
    started = []
    for index in range(processes):
        command = [sys.executable, *(programs or {}).get(index, TRAIN), *arguments]
        command += [f"--process={index}"] if processes > 1 else []
        with log_of(workdir, index).open("w") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def log_of(workdir: Path, process: int) -> Path:
    """What a process of a run has said."""
    return workdir.with_name(f"{workdir.name}-{process}.log")


def ends(started: Sequence[subprocess.Popen], seconds: float) -> list[int]:
    """Exit codes; where processes wait for each other for longer, their logs say where they waited.

    Raises:
      TimeoutExpired: they did.
    """
    try:
        return [process.wait(timeout=seconds) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.send_signal(signal.SIGABRT)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        raise
    finally:
        for process in started:
            process.kill()


def train(workdir: Path, algorithm: str, *arguments: str, processes: int = 1, devices: int = 1) -> bool:
    """Runs one training to its end, unless it has ended; whether it got there."""
    if any((workdir / "policy" / name).exists() for name in ("config.json", "adapter_config.json")):
        return True
    began = time.monotonic()
    command = [f"--config=tests/hosts_config.py:{algorithm}", f"--config.data.cache_directory={workdir.parent}/data"]
    command += [f"--config.steps={STEPS}", f"--config.checkpoint.every={STEPS}", *SIZES[algorithm], *arguments]
    try:
        codes = ends(start(workdir, command, processes=processes, devices=devices), 3600)
    except subprocess.TimeoutExpired:
        codes = [1]
    took = f"{(time.monotonic() - began) / 60:.1f} minutes"
    print(f"{workdir.name}: {f'failed, see {log_of(workdir, 0)}' if any(codes) else took}", file=sys.stderr, flush=True)
    return not any(codes)


def measure(root: Path, algorithm: str) -> list[dict[str, Any]]:
    """Every layout against one device."""
    alone = root / f"{algorithm}-alone"
    if not train(alone, algorithm):
        sys.exit(1)
    rows = []
    for (processes, devices), (update, rollout) in itertools.product(PROCESSES, MESHES):
        run = root / f"{algorithm}-{processes}x{devices}-{shape(update)}"
        meshes = [f"--config.mesh.update={update}", f"--config.mesh.rollout={rollout}"]
        done = train(run, algorithm, *meshes, processes=processes, devices=devices)
        found = compare(run, alone) if done else Comparison(differences=["the run failed"])
        for difference in found.differences:
            print(f"  differs: {difference}", file=sys.stderr, flush=True)
        layout = {"algorithm": algorithm, "processes": processes, "devices": devices, "update": update}
        rows.append(layout | ({"rollout": rollout} if algorithm != "sft" else {}) | asdict(found))
    return rows


def shape(mesh: Sequence[int]) -> str:
    return "x".join(map(str, mesh))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = ("losses", "metrics", "advantages", "weights", "biases")
    lines = [["run", "processes", "update", "rollout", "steps", *kinds, "ties", "differences"]]
    for row in rows:
        lines.append([row["algorithm"], f"{row['processes']} x {row['devices']} devices", shape(row["update"])])
        lines[-1] += [shape(row["rollout"]) if "rollout" in row else "-", str(row["steps"])]
        lines[-1] += [f"{row['gaps'][kind]:.1e}" if kind in row["gaps"] else "-" for kind in kinds]
        lines[-1] += [str(len(row["ties"])), str(len(row["differences"]))]
    return align(lines, left=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=as_path, default=Path("runs/equal_training"), help="where the runs are kept")
    parser.add_argument("--json", type=as_path, help="file for the figures")
    parser.add_argument("--algorithms", default=",".join(SIZES), help="those to run, of %(default)s")
    given = parser.parse_args()
    algorithms = given.algorithms.split(",")
    if unknown := set(algorithms) - set(SIZES):
        parser.error(f"--algorithms: there is no {unknown.pop()!r}; there are {', '.join(SIZES)}")
    root = Path(absolute(given.workdir))
    if given.json:
        check_file(given.json, "JSON")
    root.mkdir(parents=True, exist_ok=True)
    rows = [row for algorithm in algorithms for row in measure(root, algorithm)]
    played = [algorithm for algorithm in algorithms if algorithm != "sft"]
    turns = [len(episode["turns"]) for algorithm in played for episode in read_episodes(root / f"{algorithm}-alone")]
    figures: dict[str, Any] = {"steps": STEPS, "tolerance": TOLERANCE, "metric_tolerance": METRIC_TOLERANCE}
    figures |= {"bias_tolerance": BIAS_TOLERANCE, "tie": TIE}
    figures |= {"episodes": len(turns), "turns": sum(turns), "runs": rows}
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, json.dumps(figures, indent=1) + "\n")
    print(table(rows))
    sys.exit(any(row["differences"] for row in rows))


if __name__ == "__main__":
    main()
