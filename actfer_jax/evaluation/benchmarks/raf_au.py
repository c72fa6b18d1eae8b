"""RAF-AU: F1 of each action unit that occurs in the pictures, and its mean.

Which units occur depends on the pictures: those that nobody coded in any of them count for nothing, also where they are
named, as in the published figures. The mean over units weighs a rare one as much as a common one; `f1_micro`, of all
units' counts together, does not. Who is shown is not known, so that intervals resample pictures.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from actfer_jax.evaluation import plots
from actfer_jax.evaluation.action_units import FIGURES
from actfer_jax.evaluation.benchmarks import BenchmarkConfig as Config
from actfer_jax.evaluation.benchmarks import Published
from actfer_jax.evaluation.bootstrap import bootstrap, interval, nanmean, ratio
from actfer_jax.evaluation.metrics import Outcome, Summary, au_counts, au_entries
from actfer_jax.evaluation.tables import align, percent, percent_with_interval, published_table

__all__ = ["FIGURES", "PUBLISHED", "Config", "figures", "measure", "report"]

PUBLISHED = tuple(
    Published(model, {"f1": f1}, "pictures of RAF-AU in FEA-20K's test part", "arXiv 2511.10254", tools="none")
    for model, f1 in (
        ("Facial-R1", 0.702),
        ("FMAE", 0.632),
        ("GPT-4o", 0.512),
        ("EmoLA", 0.446),
        ("InternVL", 0.434),
        ("Qwen2.5-VL", 0.207),
        ("LLaVA-Next", 0.188),
    )
)


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    """
    Returns:
      pictures (those with known action units); resampled; f1 and f1_micro, {"value", "low", "high"} each; aus: for each
      name of a unit that occurs, its counts and f1; no_answer, zoom_rate.
    """
    known = [one for one in outcomes if one.aus is not None]
    occurring = sorted(frozenset[int]().union(*(one.aus or () for one in known)))
    drawn = bootstrap([one.subject for one in known], seed=seed)
    true_SxA, false_SxA, missed_SxA = au_counts(drawn, known, occurring)
    true_S, others_S = true_SxA.sum(1), (false_SxA + missed_SxA).sum(1)
    # A resample may lack a unit that occurs.
    f1_SxA = np.where(true_SxA + missed_SxA > 0, ratio(2 * true_SxA, 2 * true_SxA + false_SxA + missed_SxA), np.nan)
    return {
        "pictures": len(known),
        "resampled": drawn.resampled,
        "f1": interval(nanmean(f1_SxA)),
        "f1_micro": interval(ratio(2 * true_S, 2 * true_S + others_S)),
        "aus": au_entries(occurring, (true_SxA, false_SxA, missed_SxA), f1_SxA),
        "no_answer": float(np.mean([not one.answered for one in outcomes])),
        "zoom_rate": float(np.mean([one.inspected for one in outcomes])),
    }


def report(summaries: Mapping[str, Summary]) -> str:
    means = [["control", "pictures", "action units", "mean", "all counts together"]]
    for control, summary in summaries.items():
        found = (percent_with_interval(summary[figure]) for figure in ("f1", "f1_micro"))
        means.append([control, str(summary["pictures"]), str(len(summary["aus"])), *found])
    units = [["action unit", "", "pictures with it", *summaries]]
    for au, entry in next(iter(summaries.values()))["aus"].items():
        occurs = entry["true_positives"] + entry["false_negatives"]
        f1s = [percent(summary["aus"].get(au, {"f1": None})["f1"]) for summary in summaries.values()]
        units.append([au, entry["name"], str(occurs), *f1s])
    note = "F1 in percent; ± is half of the 95% interval over resampled pictures."
    return f"{align(means, left=1)}\n\n{align(units, left=2)}\n\n{note}\n\n{published_table(PUBLISHED)}"


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    return [plots.aus_figure(summaries)]
