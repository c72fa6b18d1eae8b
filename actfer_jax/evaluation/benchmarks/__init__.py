"""Benchmarks, one file each: the figures of a set of finished episodes, and how they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from matplotlib.figure import Figure

from actfer_jax.config import check_fields
from actfer_jax.evaluation.items import Interval
from actfer_jax.evaluation.metrics import Outcome, Summary

_INTERVAL = ("value", "low", "high")


@dataclass(frozen=True)
class BenchmarkConfig:
    """The config keys of every benchmark.

    Attributes:
      name: a file of `evaluation/benchmarks`, or the dotted name of a user's module.
    """

    FOLDER: ClassVar[str] = "evaluation.benchmarks"

    name: str = "recognition"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Published:
    """A row of a paper, shown beside measured ones.

    Attributes:
      model: its name there.
      figures: shares of 1, by the names of the benchmark's own figures (`figures_of`).
      data: what it was measured on, and how.
      source: the paper.
      tools: the face tools that it used, "none" without any.
    """

    model: str
    figures: Mapping[str, float]
    data: str
    source: str
    tools: str


class Benchmark(Protocol):
    """The interface of a benchmark's module.

    Episodes that failed (`Outcome.failed`) are not measured, unless the module has `COUNTS_FAILED = True`.

    It may also have `PUBLISHED`, the rows of papers (`Published`); `row(summary)`, the figures that a table shows, by
    name; `AUS`, the action units that count in comparisons of runs; `HUB_DATASET`, its data set on the Hugging Face
    Hub; `POOLS_RUNS = True`, if its figures need no more of an outcome than an `Answer` has, so that several runs can
    be counted as one (`evaluation.pool`); and `reread(answer, config)`, an answer as it reads it, or None if it does
    not count, where that is not as the grammar does. One that scores the predictions of other models has
    `measure_predictions(predictions, config, seed)` and `read_answers(predictions, config)`, and a `protocol` in its
    `Config`.

    Attributes:
      Config: its constants, a dataclass that extends `BenchmarkConfig`.
      FIGURES: names of its plots; the files are NAME.png.
    """

    Config: type[Any]
    FIGURES: tuple[str, ...]

    def measure(self, outcomes: Sequence[Outcome], *, config: Any, seed: int) -> Summary:
        """The figures of one control's episodes, of which there is at least one, as JSON values.

        Args:
          seed: of any resampling.
        """

    def report(self, summaries: Mapping[str, Summary]) -> str:
        """The text to print, from summaries by control, "normal" among them."""

    def figures(self, summaries: Mapping[str, Summary]) -> Sequence[Figure]:
        """The plots, in the order of `FIGURES`."""


def figures_of(benchmark: Any, summary: Summary) -> dict[str, Interval]:
    """The figures of a benchmark that a table shows, by name: those of its `row`, or else all that have an interval."""
    if hasattr(benchmark, "row"):
        row: dict[str, Interval] = benchmark.row(summary)
        return row
    return intervals_of(summary)


def intervals_of(summary: Summary) -> dict[str, Interval]:
    """The figures of a summary that have an interval, by name."""
    return {name: found for name, found in summary.items() if isinstance(found, dict) and {*found} == {*_INTERVAL}}
