"""The first difference between two training runs."""

from collections.abc import Callable, Container, Iterator, Sequence
from itertools import islice
from typing import Any

from etils import epath

from actfer_jax.episodes.difference import episodes_difference
from actfer_jax.episodes.store import read_step, shards, step_of
from actfer_jax.runs.checkpoints import committed_steps
from actfer_jax.runs.difference import metrics_difference, parameters_difference, settings_differences
from actfer_jax.runs.metrics import METRICS, read_metrics


def differences(one: epath.Path, other: epath.Path) -> list[str]:
    """What two runs do not share, in words: every setting and version, and then the first step that went otherwise.

    In a step the samples come first, then what was written and replied in each episode, its reward and advantage, the
    metrics, and the parameters after it. Steps are compared as far as both runs have their records, metrics and
    checkpoints; a run that is shorter is said to be.

    Raises:
      WorkdirError, RecordError: one of them is not the workdir of a training run, or a file in it is damaged.
    """
    return [*settings_differences(one, other), *islice(_steps(one, other), 1)]


def _steps(one: epath.Path, other: epath.Path) -> Iterator[str]:
    """What differs, step by step."""
    metrics = [_metrics(workdir) for workdir in (one, other)]
    recorded = [{step_of(shard) for shard in shards(workdir)} for workdir in (one, other)]
    saved = [set(committed_steps(workdir / "checkpoints")) for workdir in (one, other)]
    compared: list[tuple[Sequence[Container[int]], Callable[[int], str]]] = [
        (recorded, lambda step: episodes_difference(read_step(one, step), read_step(other, step))),
        (metrics, lambda step: metrics_difference(metrics[0][step], metrics[1][step])),
        (saved, lambda step: parameters_difference(*(run / "checkpoints" / str(step) for run in (one, other)))),
    ]
    for step in sorted(set().union(*metrics, *recorded, *saved)):
        for (ours, theirs), compare in compared:
            if step in ours and step in theirs and (found := compare(step)):
                yield f"step {step}, {found}"
    last = [max(steps, default=0) for steps in metrics]
    if last[0] != last[1]:
        yield f"steps: {last[0]} in the first run, {last[1]} in the second"


def _metrics(workdir: epath.Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in read_metrics(workdir)} if (workdir / METRICS).exists() else {}
