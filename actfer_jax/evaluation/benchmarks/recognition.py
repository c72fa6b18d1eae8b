"""Compares answered emotions and action units with the data set's, and shows the zooms (`evaluation.metrics`)."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import BenchmarkConfig as Config
from actfer_jax.evaluation.items import NORMAL
from actfer_jax.evaluation.metrics import Outcome, Summary, summarise
from actfer_jax.evaluation.tables import classes_table, controls_table

__all__ = ["FIGURES", "Config", "figures", "measure", "report"]

FIGURES = ("confusion", "aus", "zoom", "reliability")


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    return summarise(outcomes, seed=seed)


def report(summaries: Mapping[str, Summary]) -> str:
    return f"{controls_table({'': summaries})}\n\n{classes_table(summaries[NORMAL])}"


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    normal = summaries[NORMAL]
    return (
        plots.confusion_figure(normal),
        plots.aus_figure(summaries),
        plots.zoom_figure(normal),
        plots.reliability_figure(normal),
    )
