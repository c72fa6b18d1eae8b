"""Reads what the cells of a study measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import NDArray

from actfer_jax.episodes.store import read_index
from actfer_jax.errors import UserError
from actfer_jax.evaluation.results import RESULTS
from actfer_jax.runs.metrics import read_metrics
from actfer_jax.studies.config import StudyConfig

Summaries = dict[str, Any]
"""The figures of a cell: by evaluation, then by control, as in `results.json`."""


@dataclass(frozen=True)
class Answered:
    """What a policy did on the samples of one control.

    Attributes:
      names: of the samples, in the order of the evaluation.
      right_N, looked_N: whether the emotion was right, and whether it zoomed into the face.
      task_N: the task reward.
      classes: the true emotions; None where one is not known.
      strata: of each sample.
    """

    names: tuple[str, ...]
    right_N: NDArray[np.float64]
    looked_N: NDArray[np.float64]
    task_N: NDArray[np.float64]
    classes: tuple[str | None, ...]
    strata: tuple[tuple[str, ...], ...]


def read_summaries(directory: Path, config: StudyConfig) -> Summaries:
    """The figures of the evaluations that a cell has.

    Raises:
      UserError: a file is damaged.
    """
    found = {}
    for evaluation in config.evaluations:
        path = directory / evaluation.name / RESULTS
        if path.exists():
            found[evaluation.name] = read_json(path)["results"]
    return found


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The content of a file that a command of a cell wrote.

    Raises:
      UserError: it is damaged.
    """
    try:
        return dict(json.loads(epath.Path(path).read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); delete the cell, and the study runs it anew") from error


def figure(summaries: Summaries, path: str) -> float | None:
    """The figure of a path such as "greedy/normal/strata/subtle/accuracy"; None where it is not defined.

    Raises:
      UserError: there is none of that name.
    """
    node: Any = summaries
    for depth, key in enumerate(path.split("/")):
        if not isinstance(node, Mapping) or key not in node:
            there = ", ".join(node) if isinstance(node, Mapping) else "no keys"
            before = "/".join(path.split("/")[:depth]) or "the study"
            raise UserError(f"the figure {path} is not there: {before} has {there}")
        node = node[key]
    value = node["value"] if isinstance(node, Mapping) and "value" in node else node
    if value is not None and not isinstance(value, int | float):
        raise UserError(f"the figure {path} is no number, but has {', '.join(node)}: go on in its path")
    return None if value is None else float(value)


def read_answered(directory: Path, control: str) -> Answered | None:
    """What a policy did under a control of an evaluation, from the index of its records; None without records."""
    if not (directory / "episodes").is_dir():
        return None
    lines = [line for line in read_index(directory) if line["id"].partition("/")[0] == control]
    if not lines:
        return None
    return Answered(
        names=tuple(f"{line['dataset']}/{line['image']}" for line in lines),
        right_N=np.array([line["outcome"] == "right" for line in lines], float),
        looked_N=np.array([line["looked"] for line in lines], float),
        task_N=np.array([(line["reward"] or {}).get("task", np.nan) for line in lines], float),
        classes=tuple(line["class"] for line in lines),
        strata=tuple(tuple(line["strata"]) for line in lines),
    )


def per_sample(directory: Path, path: str, value: float | None) -> tuple[tuple[str, ...], NDArray[np.float64]] | None:
    """The samples of a figure and its value for each, where it is their mean: accuracies and zoom rates, of all samples
    or of a stratum. None for other figures, and where a benchmark counts in another way than the records."""
    evaluation, control, *keys = path.split("/")
    stratum = keys[1] if keys[0] == "strata" else None
    kind = "_".join(keys if stratum is None else keys[2:])
    if value is None or kind not in ("accuracy", "zoom_rate"):
        return None
    if (answered := read_answered(directory / evaluation, control)) is None:
        return None
    inside_N = np.array([stratum is None or stratum in strata for strata in answered.strata])
    if kind == "accuracy":
        inside_N &= np.array([one is not None for one in answered.classes])
    values_N = (answered.right_N if kind == "accuracy" else answered.looked_N)[inside_N]
    if not len(values_N) or abs(values_N.mean() - value) > 1e-9:
        return None
    return tuple(name for name, inside in zip(answered.names, inside_N, strict=True) if inside), values_N


def read_training(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a cell's training; empty where it was not trained."""
    run = directory / "run"
    return read_metrics(run) if (run / "metrics.jsonl").exists() else []


def tokens(directory: Path) -> dict[str, float]:
    """The episodes of a training from rollouts, and their tokens from the policy and from tools; empty without any."""
    records, manifest = read_training(directory), directory / "run" / "manifest.json"
    counted = [record for record in records if record.get("length/policy_tokens") is not None]
    if not counted:
        return {}
    batch = json.loads(manifest.read_text())["config"]["batch"]
    # Steps without a record are taken to be like the next one with.
    steps = np.diff([0, *(record["step"] for record in counted)])
    episodes = batch["queries"] * batch["rollouts"] * steps
    found = {"episodes": float(episodes.sum())}
    for kind in ("policy_tokens", "tool_tokens"):
        found[kind] = float(episodes @ np.array([record[f"length/{kind}"] for record in counted]))
    return found
