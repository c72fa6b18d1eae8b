"""Methods side by side on rendered faces: the same start, budget, seeds and held-out faces.

    python benchmarks/compare_methods.py --json=docs/results/methods.json --png=docs/images/methods.png

Trains the small policy of the package with every method and seed, evaluates each on 700 held-out faces (100 a class,
with the three controls), and prints a table: mean over the seeds, and the range in brackets. All of them play by the
limits of turns and tokens of configs/ucgrpo.py:demo. They decode greedily, and where a row says so they are sampled at
training's temperature: traces chose regions at random, of which greedy decoding takes one and the same.
A second table has the gap between the zoom rates on subtle and on plain faces within each emotion, and the figure the
zoom rates in the course of training. What stands in the JSON file is not run again, and a run that was stopped goes on.
"""

import json
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from places import check_places

from actfer_jax import cli
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.plots import COLOURS
from actfer_jax.evaluation.tables import align
from actfer_jax.files import write_atomically
from actfer_jax.models import demo_checkpoint
from actfer_jax.outputs import write_file
from actfer_jax.runs.metrics import read_metrics
from actfer_jax.runs.provenance import heading

_WORKDIR = flags.DEFINE(cli.PathFlag(), "workdir", "runs/methods", "Where the runs are kept.")
_SEEDS = flags.DEFINE_list("seeds", ["10", "11", "12"], "Seeds of the training; none of them was used for tuning.")
_METHODS = flags.DEFINE_list("methods", None, "Which methods; all of them by default.")
_SPLIT = flags.DEFINE_string("split", "test", "Held-out faces: test, or validation while anything is still tuned.")
_EPISODES = flags.DEFINE_integer("episodes", 700, "How many held-out faces.")
_SFT_STEPS = flags.DEFINE_integer("sft_steps", 600, "Steps of continued supervised training.")
_JSON = flags.DEFINE(cli.PathFlag(), "json", "runs/methods/methods.json", "File for the figures of all runs.")
_PNG = flags.DEFINE(cli.PathFlag(), "png", None, "File for the figure.")
_EXTRA = flags.DEFINE_multi_string("extra", [], "A config override for the runs of reinforcement learning: key=value.")

START = "start"
SAMPLED = ", sampled"
CONTINUED = ["--config=configs/sft.py:demo", "--config.model.initialise=pretrained", "--config.traces.readings_steps=0"]
CONTINUED += ["--config.optimizer.learning_rate=5e-4"]
METHODS: dict[str, list[str]] = {
    "SFT continued": CONTINUED,
    "GRPO": ["--config=configs/grpo.py:demo"],
    "GRPO with gain": ["--config=configs/grpo.py:demo", "--config.estimator.gain=2.0"],
    "GRPO where first": ["--config=configs/ucgrpo.py:demo", "--config.estimator.beta=0.0"],
    "UC-GRPO": ["--config=configs/ucgrpo.py:demo"],
}

Summary = dict[str, Any]
FIGURES: dict[str, Callable[[Summary], float]] = {
    "accuracy": lambda run: run["normal"]["accuracy"]["value"],
    "AU-F1": lambda run: run["normal"]["au_f1_sample"]["value"],
    "plain": lambda run: run["normal"]["strata"]["plain"]["accuracy"]["value"],
    "subtle": lambda run: run["normal"]["strata"]["subtle"]["accuracy"]["value"],
    "subtle no_tools": lambda run: run["no_tools"]["strata"]["subtle"]["accuracy"]["value"],
    "subtle blank_crop": lambda run: run["blank_crop"]["strata"]["subtle"]["accuracy"]["value"],
    "subtle low_res": lambda run: run["low_res_crop"]["strata"]["subtle"]["accuracy"]["value"],
    "plain low_res": lambda run: run["low_res_crop"]["strata"]["plain"]["accuracy"]["value"],
    "zoom subtle": lambda run: run["normal"]["strata"]["subtle"]["zoom_rate"]["value"],
    "zoom plain": lambda run: run["normal"]["strata"]["plain"]["zoom_rate"]["value"],
    "gap in class": lambda run: run["normal"]["strata"]["subtle"]["zoom_gap_within_class"]["value"],
}


def train(method: str, seed: str) -> Path:
    """Runs one training to its end, unless it has ended; its workdir."""
    workdir = Path(_WORKDIR.value) / f"{method.lower().replace(' ', '-')}-{seed}"
    if not (workdir / "policy" / "config.json").exists() or "after" not in _evaluation(workdir):
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


def play(checkpoint: Path, out: Path, seed: str, *, greedy: bool) -> dict[str, Any]:
    """A checkpoint on the same faces, within the limits that reinforcement learning has: where that comes from, and
    the evaluation."""
    if not (out / "results.json").exists():
        limits = runpy.run_path("configs/ucgrpo.py")["get_config"]("demo").rollout.to_dict()
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / "policy"
            shutil.copytree(checkpoint, copy)
            replace(PolicyCard.load(checkpoint), rollout=limits).save(copy)
            command = [
                *(sys.executable, "-m", "actfer_jax.evaluate", "--config=configs/eval/synth_faces.py"),
                *(f"--checkpoint={copy}", f"--out={out}", f"--config.greedy={greedy}", f"--config.seed={seed}"),
                *(f"--config.data.split={_SPLIT.value}", f"--config.data.size={_EPISODES.value}"),
                "--config.queries=70",
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return _made(json.loads((out / "results.json").read_text()))


def figure(curves: dict[str, list[dict[str, list[float]]]]) -> Figure:
    """Zoom rates on subtle and on plain faces by step, a panel for each method: mean over seeds and range.

    Args:
      curves: of each method, the rates of each seed by step, from the first.
    """
    drawn = Figure(figsize=(3.0 * len(curves), 3.0), dpi=150, layout="constrained")
    panels = np.atleast_1d(drawn.subplots(1, len(curves), sharey=True))
    for panel, (method, runs) in zip(panels, curves.items(), strict=True):
        for name, colour in (("subtle", COLOURS[0]), ("plain", COLOURS[1])):
            rates = [np.convolve(run[name], np.ones(5) / 5, "valid") for run in runs]
            steps = np.arange(3, 3 + len(rates[0]))
            panel.plot(steps, np.mean(rates, 0), color=colour, label=f"{name} faces")
            panel.fill_between(steps, np.min(rates, 0), np.max(rates, 0), color=colour, alpha=0.2, linewidth=0)
        panel.set_title(method, loc="left")
        panel.set_xlabel("step")
        panel.set_ylim(0, 1)
        panel.grid(axis="y", color="#e4e4e4")
        panel.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].set_ylabel("share of episodes with a zoom")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return drawn


def _made(run: dict[str, Any]) -> dict[str, Any]:
    return {"provenance": run.get("provenance"), "evaluation": run["results"]}


def origins(results: dict[str, dict[str, Any]], **changes: Any) -> list[str]:
    """Where the figures of a table come from: a line for each day and commit that made some of them.

    Args:
      changes: what is other than in the evaluations.
    """
    changes["policy"] = f"policies in {_WORKDIR.value}"
    made = [run.get("provenance") for seeds in results.values() for run in seeds.values()]
    lines = [heading(one and one | {"date": one["date"][:10]} | changes) for one in made]
    return list(dict.fromkeys(lines))


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


def class_gaps(results: dict[str, dict[str, Any]]) -> str:
    """Table of the zoom rate on subtle faces minus that on plain ones, within each emotion: mean over seeds, range."""
    runs = {
        method: [run["evaluation"]["normal"]["classes"] for run in seeds.values()] for method, seeds in results.items()
    }
    emotions = list(next(iter(runs.values()))[0])
    table = [["gap within", *emotions]]
    for method, classes in runs.items():
        subtle_SxE, plain_SxE = (
            np.array([[found[emotion]["zoom_rate_in"][stratum] for emotion in emotions] for found in classes], float)
            for stratum in ("subtle", "plain")
        )
        gaps_SxE = subtle_SxE - plain_SxE
        table.append([method, *(f"{gap.mean():.2f} [{gap.min():.2f} {gap.max():.2f}]" for gap in gaps_SxE.T)])
    return align(table, left=1)


def main(argv: Sequence[str]) -> None:
    del argv
    check_places(json=_JSON.value, png=_PNG.value)
    methods = _METHODS.value or list(METHODS)
    path = Path(_JSON.value)
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def keep(method: str, seed: str, **found: Any) -> None:
        results.setdefault(method, {})[seed] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(results, indent=1) + "\n")

    for seed in _SEEDS.value:
        if seed not in results.get(START + SAMPLED, {}):
            out = Path(_WORKDIR.value) / f"start-sampled-{seed}"
            keep(START + SAMPLED, seed, **play(Path(demo_checkpoint()), out, seed, greedy=False))
        for method in methods:
            if seed in results.get(method + SAMPLED, {}):
                continue
            workdir = train(method, seed)
            policy, runs, records = workdir / "policy", _evaluation(workdir), read_metrics(workdir)
            if METHODS[method] is CONTINUED:
                rates, after = {}, play(policy, workdir / "greedy", seed, greedy=True)
            else:
                rates = {name: [record[f"zoom_rate/{name}"] for record in records] for name in ("subtle", "plain")}
                keep(START, "0", **_made(runs["before"]))
                after = _made(runs["after"])
            # Supervised training writes every tenth step. The first one compiles.
            minutes = np.mean([record["perf/step_s"] for record in records[1:]]) * records[-1]["step"] / 60
            keep(method, seed, **after, minutes=minutes, zoom_rates=rates)
            keep(method + SAMPLED, seed, **play(policy, workdir / "sampled", seed, greedy=False))
    shown = {name + how: results[name + how] for name in (START, *methods) for how in ("", SAMPLED)}
    table = [["method", *FIGURES, "minutes"]]
    for method, by_seed in shown.items():
        minutes = [run["minutes"] for run in by_seed.values() if "minutes" in run]
        table.append(row(method, [run["evaluation"] for run in by_seed.values()], minutes))
    print("\n".join(origins(shown)))
    print(align(table, left=1))
    print()
    print(class_gaps(shown))
    curves = {
        method: [run["zoom_rates"] for run in runs.values() if run.get("zoom_rates")] for method, runs in shown.items()
    }
    if _PNG.value:
        # The curves are of training's own faces.
        data = runpy.run_path("configs/ucgrpo.py")["get_config"]("demo").data
        made = "; ".join(origins(shown, split=data.split, size=data.size))
        drawn = figure({method: rates for method, rates in curves.items() if rates})
        write_file(_PNG.value, plots.png(drawn, made))


if __name__ == "__main__":
    cli.run(main)
