"""BP4D: F1 of each of 12 action units and its mean, on all frames and by fold (`evaluation.action_units`)."""

from actfer_jax.data.datasets.bp4d import EVALUATED, FOLDS
from actfer_jax.evaluation.action_units import FIGURES, MEAN_OF_FOLDS, ActionUnits
from actfer_jax.evaluation.benchmarks import BenchmarkConfig as Config
from actfer_jax.evaluation.benchmarks import Published

__all__ = ["AUS", "FIGURES", "PUBLISHED", "Config", "figures", "measure", "report"]

PUBLISHED = (
    Published("ME-GraphAU, Swin-B", {"f1_folds": 0.655}, MEAN_OF_FOLDS, "its public code", tools="none"),
    Published("ME-GraphAU, ResNet-50", {"f1_folds": 0.647}, MEAN_OF_FOLDS, "its public code", tools="none"),
    Published("EmoLA", {"f1_folds": 0.642}, MEAN_OF_FOLDS, "arXiv 2511.10254", tools="none"),
    Published("JAA-Net", {"f1_folds": 0.60}, MEAN_OF_FOLDS, "arXiv 2511.10254", tools="none"),
)
AUS = EVALUATED

_units = ActionUnits(AUS, PUBLISHED, FOLDS)
measure, report, figures = _units.measure, _units.report, _units.figures
