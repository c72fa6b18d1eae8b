"""Methods side by side on rendered faces: the same start, budget, seeds and held-out faces.

    python benchmarks/compare_methods.py --workdir=runs/methods --json=docs/results/methods.json

Trains the small policy of the package with every method and seed, evaluates each on 700 held-out faces (100 a class,
with the three controls), and prints a table: mean over the seeds, and the range in brackets. Runs that are there are
not run again, and one that was stopped goes on.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from actfer_jax.evaluation.tables import align
from actfer_jax.files import write_atomically
from actfer_jax.metrics import read_metrics

_WORKDIR = flags.DEFINE_string("workdir", "runs/methods", "Where the runs are kept.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")
_METHODS = flags.DEFINE_list("methods", None, "Which methods; all of them by default.")
_SPLIT = flags.DEFINE_string("split", "test", "Held-out faces: test, or validation while anything is still tuned.")
_EPISODES = flags.DEFINE_integer("episodes", 700, "How many held-out faces.")
_SFT_STEPS = flags.DEFINE_integer("sft_steps", 500, "Steps of continued supervised training.")
_JSON = flags.DEFINE_string("json", None, "File for the figures of all runs.")
_EXTRA = flags.DEFINE_multi_string("extra", [], "A config override for the runs of reinforcement learning: key=value.")

CONTINUED = ["--config=configs/sft.py:demo", "--config.model.initialise=pretrained", "--config.traces.readings_steps=0"]
CONTINUED += ["--config.optimizer.learning_rate=5e-4"]
METHODS: dict[str, list[str]] = {
    "SFT continued": CONTINUED,
    "GRPO": ["--config=configs/grpo.py:demo"],
    "GRPO with gain": ["--config=configs/ucgrpo.py:demo", "--config.ucgrpo.beta=0.0"],
    "UC-GRPO": ["--config=configs/ucgrpo.py:demo"],
}

Summary = dict[str, Any]
FIGURES: dict[str, Callable[[Summary], float]] = {
    "accuracy": lambda run: run["normal"]["accuracy"]["value"],
    "AU-F1": lambda run: run["normal"]["au_f1_sample"]["value"],
    "plain": lambda run: run["normal"]["plain"]["accuracy"]["value"],
    "subtle": lambda run: run["normal"]["subtle"]["accuracy"]["value"],
    "subtle no_tools": lambda run: run["no_tools"]["subtle"]["accuracy"]["value"],
    "subtle blank_crop": lambda run: run["blank_crop"]["subtle"]["accuracy"]["value"],
    "subtle low_res": lambda run: run["low_res_crop"]["subtle"]["accuracy"]["value"],
    "plain low_res": lambda run: run["low_res_crop"]["plain"]["accuracy"]["value"],
    "zoom subtle": lambda run: run["normal"]["subtle"]["zoom_rate"]["value"],
    "zoom plain": lambda run: run["normal"]["plain"]["zoom_rate"]["value"],
    "gap in class": lambda run: run["normal"]["zoom"]["gap_within_class"]["value"],
}


def train(method: str, seed: str) -> Path:
    """Runs one training to its end, unless it has ended; its workdir."""
    workdir = Path(_WORKDIR.value) / f"{method.lower().replace(' ', '-')}-{seed}"
    if not (workdir / "policy" / "actfer.json").exists() or "after" not in _evaluation(workdir):
        command = [
            *(sys.executable, "-m", "actfer_jax.train", f"--workdir={workdir}", *METHODS[method]),
            *(f"--config.seed={seed}", f"--config.evaluation.data.split={_SPLIT.value}"),
            f"--config.evaluation.data.size={_EPISODES.value}",
        ]
        if METHODS[method] is CONTINUED:
            command.append(f"--config.steps={_SFT_STEPS.value}")
        else:
            command += [f"--config.{override}" for override in _EXTRA.value]
        print(f"{method}, seed {seed}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True)
    return workdir


def _evaluation(workdir: Path) -> dict[str, Any]:
    path = workdir / "evaluation.json"
    return json.loads(path.read_text()) if path.exists() else {}


def row(title: str, runs: Sequence[Summary], minutes: Sequence[float]) -> list[str]:
    cells = [title]
    for figure in FIGURES.values():
        values = [figure(run) for run in runs]
        span = f" [{min(values):.2f} {max(values):.2f}]" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.3f}{span}")
    return [*cells, f"{np.mean(minutes):.1f}" if minutes else "-"]


def main(argv: Sequence[str]) -> None:
    del argv
    methods = _METHODS.value or list(METHODS)
    results: dict[str, dict[str, Any]] = {}
    for seed in _SEEDS.value:
        for method in methods:
            workdir = train(method, seed)
            runs = _evaluation(workdir)
            minutes = sum(record.get("perf/step_s", 0.0) for record in read_metrics(workdir)) / 60
            results.setdefault("start", {})["0"] = {"evaluation": runs["before"], "minutes": None}
            results.setdefault(method, {})[seed] = {"evaluation": runs["after"], "minutes": minutes}
            if _JSON.value:
                Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(_JSON.value, json.dumps(results, indent=1) + "\n")
    table = [["method", *FIGURES, "minutes"]]
    for method, by_seed in results.items():
        minutes = [run["minutes"] for run in by_seed.values() if run["minutes"] is not None]
        table.append(row(method, [run["evaluation"] for run in by_seed.values()], minutes))
    print(align(table, left=1))


if __name__ == "__main__":
    app.run(main)
