"""Plots of summaries."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from actfer_jax.evaluation.metrics import Summary

COLOURS = ("#3b6fb6", "#e08a3c", "#4f9a6b", "#b4546a", "#7a67b0", "#8a8a8a")
_DPI = 150
_WHISKER = {"elinewidth": 0.8, "ecolor": "#444444", "capsize": 1.5, "capthick": 0.8}
_EMPTY: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6, "color": "#888888"}
_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # Behind words that cross a line.
_LEGEND_COLUMNS, _LEGEND_POINTS = 3, 16
_NO_SAMPLES = "no samples"
_HEADING_POINTS, _HEADING_INCHES_PER_CHARACTER = 7, 0.062


def confusion_figure(summary: Summary) -> Figure:
    """The confusion matrix, truth in rows, answers in columns: counts, shaded by their share of the row."""
    confusion = summary["confusion"]
    if not confusion["labels"]:
        return _nothing("Emotions: the samples have no labels")
    counts_CxK = np.array(confusion["counts"])
    shares_CxK = counts_CxK / np.maximum(counts_CxK.sum(1, keepdims=True), 1)
    rows, columns = counts_CxK.shape
    figure, axes = _figure(2.4 + 0.72 * columns, 1.8 + 0.56 * rows)
    axes.imshow(shares_CxK, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        colour = "white" if shares_CxK[row, column] > 0.55 else "#333333" if counts_CxK[row, column] else "#bbbbbb"
        axes.text(column, row, str(counts_CxK[row, column]), ha="center", va="center", color=colour)
    axes.set_xticks(range(columns), confusion["columns"], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), map(_counted, confusion["labels"], counts_CxK.sum(1)))
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    title = f"Emotions, n = {counts_CxK.sum()}\naccuracy {_text(summary['accuracy'])}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def aus_figure(runs: Mapping[str, Summary]) -> Figure:
    """F1, over all samples, of each action unit that occurs in the truth, with its 95% interval.

    Args:
      runs: summaries by name, drawn side by side.
    """
    occurring = {
        au: (entry["name"], count)
        for summary in reversed(list(runs.values()))
        for au, entry in summary["aus"].items()
        if (count := entry["true_positives"] + entry["false_negatives"])
    }
    if not occurring:
        return _nothing("Action units: none is known to be present in a sample")
    aus = sorted(occurring, key=lambda au: int(au[2:]))
    figure, axes = _figure(7.5, 1.2 + 0.2 * len(aus) * (0.7 + 0.4 * len(runs)))
    values = {
        name: [{"value": entry.get("f1"), **entry} for entry in (summary["aus"].get(au, {}) for au in aus)]
        for name, summary in runs.items()
    }
    _bars(
        axes,
        "Action units",
        [_counted(f"{au}  {occurring[au][0]}", occurring[au][1]) for au in aus],
        values,
        horizontal=True,
    )
    axes.invert_yaxis()
    axes.set_xlabel("F1, with its 95% interval; n: samples that have the unit")
    return figure


def zoom_figure(summary: Summary) -> Figure:
    """The zoom rate of each emotion with its 95% interval, by stratum if there are strata, and the zooms into each
    region."""
    figure = Figure(figsize=(9.5, 4.0), dpi=_DPI, layout="constrained")
    by_class, by_region = figure.subplots(1, 2, width_ratios=(3, 2))
    classes = summary["classes"]
    parts = {name: part["episodes"] for name, part in summary["strata"].items()} or {"all": summary["episodes"]}
    bars = {
        _counted(name, count): [values["zooms"][name] for values in classes.values()] for name, count in parts.items()
    }
    names = [_counted(label, values["episodes"]) for label, values in classes.items()]
    _bars(by_class, "When it zooms", names, bars)
    by_class.set_ylabel("share of episodes with a zoom")
    regions = summary["zoom"]["regions"]
    limit = max(1e-6, *regions.values()) * 1.1
    title = f"Where it zooms, n = {summary['episodes']}"
    _bars(by_region, title, list(regions), {"": [{"value": rate} for rate in regions.values()]}, limit=limit)
    by_region.set_ylabel("zooms per episode")
    return figure


def reliability_figure(summary: Summary) -> Figure:
    """The accuracy of answers, with its 95% interval, by the probability that the policy gave them (a reliability
    diagram). The line is a policy that is right as often as it says."""
    found = summary["calibration"]
    if not found["answers"]:
        return _nothing("Calibration: the probabilities of answers are not known")
    figure, axes = _figure(5.6, 4.6)
    bins = found["bins"]
    edges = np.linspace(0, 1, len(bins) + 1)
    filled = [(edge, one) for edge, one in zip(edges[:-1], bins, strict=True) if one["answers"]]
    at = [edge + 0.5 / len(bins) for edge, _ in filled]
    accuracies = [one["accuracy"] for _, one in filled]
    heights = [one["value"] for one in accuracies]
    axes.bar(at, heights, 0.92 / len(bins), color=COLOURS[0], yerr=_whiskers(accuracies), error_kw=_WHISKER)
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    for place, (_, one), accuracy in zip(at, filled, accuracies, strict=True):
        top = max(accuracy["value"], accuracy["high"] or 0)
        axes.text(
            place, top + 0.01, str(one["answers"]), ha="center", va="bottom", fontsize=7, color="#333333", bbox=_WHITE
        )
    for edge, one in zip(edges[:-1], bins, strict=True):
        if not one["answers"]:
            axes.text(edge + 0.5 / len(bins), 0.02, _NO_SAMPLES, **_EMPTY, rotation=90, bbox=_WHITE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel("probability of the answer; above each bar its number of answers")
    axes.set_ylabel("share that is right")
    axes.set_title(
        f"Expected calibration error {_text(summary['ece'])}, n = {found['answers']}", loc="left", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def png(figure: Figure, heading: str) -> bytes:
    """The figure as the content of a PNG file, under its provenance (`provenance.heading`)."""
    width = int(figure.get_figwidth() / _HEADING_INCHES_PER_CHARACTER)
    lines = textwrap.wrap(heading, width, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=_HEADING_POINTS, color="#555555")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _nothing(title: str) -> Figure:
    """A figure that only says why there is nothing to show."""
    figure, axes = _figure(7.5, 1.0)
    axes.set_title(title, loc="left")
    axes.set_axis_off()
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    return figure, figure.subplots()


def _bars(
    axes: Axes,
    title: str,
    names: Sequence[str],
    values: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    horizontal: bool = False,
    limit: float = 1.0,
) -> None:
    """Groups of bars, one group for each name, with the intervals of the figures that have one."""
    width = 0.8 / len(values)
    for index, (label, figures) in enumerate(values.items()):
        at = np.arange(len(names)) + (index - (len(values) - 1) / 2) * width
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "label": label, "error_kw": _WHISKER}
        drawn = [figure.get("value") or 0.0 for figure in figures]
        if horizontal:
            axes.barh(at, drawn, width * 0.92, xerr=_whiskers(figures), **style)
        else:
            axes.bar(at, drawn, width * 0.92, yerr=_whiskers(figures), **style)
        for place, figure in zip(at, figures, strict=True):
            if figure.get("value") is None and horizontal:
                axes.text(0.005 * limit, place, _NO_SAMPLES, **{**_EMPTY, "ha": "left", "va": "center"})
            elif figure.get("value") is None:
                axes.text(place, 0.01 * limit, _NO_SAMPLES, **_EMPTY, rotation=90)
    if horizontal:
        axes.set_yticks(range(len(names)), names)
        axes.margins(y=0.01)
        axes.set_xlim(0, limit)
        axes.grid(axis="x", color="#e4e4e4")
    else:
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_ylim(0, limit)
        axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    rows = math.ceil(len(values) / _LEGEND_COLUMNS) if len(values) > 1 else 0
    axes.set_title(title, loc="left", pad=6 + _LEGEND_POINTS * rows)  # Above the legend.
    if rows:
        axes.legend(
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=_LEGEND_COLUMNS,
            borderaxespad=0.2,
            fontsize=_LEGEND_POINTS / 2,
        )


def _whiskers(figures: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """How far the intervals of figures go below and above them [2, N]; NaN where there is none."""
    ends = [
        (np.nan, np.nan)
        if figure.get("value") is None or figure.get("low") is None
        else (figure["value"] - figure["low"], figure["high"] - figure["value"])
        for figure in figures
    ]
    # A resampled interval need not hold the figure itself.
    return np.maximum(np.array(ends, np.float64).reshape(-1, 2).T, 0)


def _counted(name: str, count: int) -> str:
    return f"{name} (n = {count})"


def _text(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None:
        return "unknown"
    low, high = figure.get("low"), figure.get("high")
    between = "" if low is None or high is None else f" (95%: {low:.3f} to {high:.3f})"
    return f"{figure['value']:.3f}{between}"
