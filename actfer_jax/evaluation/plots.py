"""Plots of summaries."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from actfer_jax.evaluation.metrics import Summary

COLOURS = ("#3b6fb6", "#e08a3c", "#4f9a6b", "#b4546a", "#7a67b0", "#8a8a8a")
_DPI = 150
_HEADING_POINTS, _HEADING_INCHES_PER_CHARACTER = 7, 0.062


def confusion_figure(summary: Summary) -> Figure:
    """The confusion matrix, truth in rows, answers in columns: counts, shaded by their share of the row."""
    confusion = summary["confusion"]
    if not confusion["labels"]:
        return _nothing("Emotions: the samples have no labels")
    counts_CxK = np.array(confusion["counts"])
    shares_CxK = counts_CxK / np.maximum(counts_CxK.sum(1, keepdims=True), 1)
    rows, columns = counts_CxK.shape
    figure, axes = _figure(1.6 + 0.72 * columns, 1.2 + 0.56 * rows)
    axes.imshow(shares_CxK, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        colour = "white" if shares_CxK[row, column] > 0.55 else "#333333" if counts_CxK[row, column] else "#bbbbbb"
        axes.text(column, row, str(counts_CxK[row, column]), ha="center", va="center", color=colour)
    axes.set_xticks(range(columns), confusion["columns"], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), confusion["labels"])
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(f"Emotions, accuracy {_text(summary['accuracy']['value'])}", loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def aus_figure(runs: Mapping[str, Summary]) -> Figure:
    """F1, over all samples, of each action unit that occurs in the truth.

    Args:
      runs: summaries by name, drawn side by side.
    """
    occurring = {
        au: entry["name"]
        for summary in runs.values()
        for au, entry in summary["aus"].items()
        if entry["true_positives"] + entry["false_negatives"]
    }
    if not occurring:
        return _nothing("Action units: none is known to be present in a sample")
    aus = sorted(occurring, key=lambda au: int(au[2:]))
    figure, axes = _figure(7.5, 1.2 + 0.2 * len(aus) * (0.7 + 0.4 * len(runs)))
    values = {name: [summary["aus"].get(au, {"f1": None})["f1"] for au in aus] for name, summary in runs.items()}
    _bars(axes, [f"{au}  {occurring[au]}" for au in aus], values, horizontal=True)
    axes.invert_yaxis()
    axes.set_xlabel("F1")
    axes.set_title("Action units", loc="left")
    return figure


def zoom_figure(summary: Summary) -> Figure:
    """The zoom rate of each emotion, by stratum if there are strata, and the zooms into each region."""
    figure = Figure(figsize=(9.5, 3.8), dpi=_DPI, layout="constrained")
    by_class, by_region = figure.subplots(1, 2, width_ratios=(3, 2))
    classes = summary["classes"]
    bars = {name: [values["zoom_rate_in"][name] for values in classes.values()] for name in summary["strata"]}
    if not bars:
        bars = {"all": [values["zoom_rate"] for values in classes.values()]}
    _bars(by_class, list(classes), bars)
    by_class.set_ylabel("share of episodes with a zoom")
    by_class.set_title("When it zooms", loc="left")
    regions = summary["zoom"]["regions"]
    _bars(by_region, list(regions), {"": list(regions.values())}, limit=max(1e-6, *regions.values()) * 1.1)
    by_region.set_ylabel("zooms per episode")
    by_region.set_title("Where it zooms", loc="left")
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
    names: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    *,
    horizontal: bool = False,
    limit: float = 1.0,
) -> None:
    """Groups of bars, one group for each name. A value of None leaves a gap."""
    width = 0.8 / len(values)
    for index, (label, heights) in enumerate(values.items()):
        at = np.arange(len(names)) + (index - (len(values) - 1) / 2) * width
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "label": label}
        drawn = [0.0 if height is None else height for height in heights]
        if horizontal:
            axes.barh(at, drawn, width * 0.92, **style)
        else:
            axes.bar(at, drawn, width * 0.92, **style)
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
    if len(values) > 1:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(values), borderaxespad=0.2)


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
