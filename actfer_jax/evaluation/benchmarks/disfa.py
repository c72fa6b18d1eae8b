"""DISFA: F1 of each of 8 action units and its mean, on all frames and by fold (`evaluation.action_units`)."""

from actfer_jax.data.datasets.disfa import EVALUATED, FOLDS
from actfer_jax.evaluation.action_units import ALL_FRAMES, FIGURES, MEAN_OF_FOLDS, ActionUnits
from actfer_jax.evaluation.benchmarks import BenchmarkConfig as Config
from actfer_jax.evaluation.benchmarks import Published

__all__ = ["AUS", "FIGURES", "PUBLISHED", "Config", "figures", "measure", "report"]

_ACTFER, _UNTRAINED = "arXiv 2604.08990", "not trained on DISFA"
PUBLISHED = (
    Published("ActFER", {"f1": 0.582}, ALL_FRAMES, f"{_ACTFER}, {_UNTRAINED}", tools="InsightFace"),
    Published("FEALLM", {"f1": 0.426}, ALL_FRAMES, f"{_ACTFER}, {_UNTRAINED}", tools="none"),
    Published(
        "Qwen3-VL-4B", {"f1": 0.381}, ALL_FRAMES, f"{_ACTFER}, {_UNTRAINED}: what ActFER begins with", tools="none"
    ),
    Published("EmoLA", {"f1_folds": 0.651}, MEAN_OF_FOLDS, "arXiv 2511.10254", tools="none"),
    Published("ME-GraphAU, ResNet-50", {"f1_folds": 0.631}, MEAN_OF_FOLDS, "its public code", tools="none"),
    Published("JAA-Net", {"f1_folds": 0.56}, MEAN_OF_FOLDS, "arXiv 2511.10254", tools="none"),
)
AUS = EVALUATED

_units = ActionUnits(AUS, PUBLISHED, FOLDS)
measure, report, figures = _units.measure, _units.report, _units.figures
