"""Benchmarks, a file each: what is measured on a set of finished episodes, and how it is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from matplotlib.figure import Figure

from actfer_jax.config import check_fields
from actfer_jax.evaluation.metrics import Outcome, Summary


@dataclass(frozen=True)
class BenchmarkConfig:
    """What every benchmark has.

    Attributes:
      name: of a file of `evaluation/benchmarks`, or the dotted name of a module of your own.
    """

    FOLDER: ClassVar[str] = "evaluation.benchmarks"

    name: str = "recognition"

    def __post_init__(self) -> None:
        check_fields(self)


class Benchmark(Protocol):
    """A module of this folder.

    Attributes:
      Config: its constants, a dataclass that extends `BenchmarkConfig`.
      FIGURES: names of its plots, whose files are NAME.png.
    """

    Config: type[Any]
    FIGURES: tuple[str, ...]

    def measure(self, outcomes: Sequence[Outcome], *, config: Any, seed: int) -> Summary:
        """The figures of the episodes of one control, at least one: plain JSON values.

        Args:
          seed: of resampling, where there is any.
        """

    def report(self, summaries: Mapping[str, Summary]) -> str:
        """The lines that are printed; summaries by control, "normal" among them."""

    def figures(self, summaries: Mapping[str, Summary]) -> Sequence[Figure]:
        """The plots, in the order of `FIGURES`."""
