"""Benchmarks, one file each: the figures of a set of finished episodes, and how they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from matplotlib.figure import Figure

from actfer_jax.config import check_fields
from actfer_jax.evaluation.metrics import Outcome, Summary


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


class Benchmark(Protocol):
    """The interface of a benchmark's module.

    Episodes that failed (`Outcome.failed`) are not measured, unless the module has `COUNTS_FAILED = True`.

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
