"""Plots of a study's report."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from actfer_jax.evaluation.plots import COLOURS
from actfer_jax.studies.report import Report

_DPI = 150
_MOST_COLUMNS = 3
_LINES = ("-", "--", ":")
_SMOOTHED = 5
"""Steps of a curve that are averaged, where there are enough: a step is one small batch."""


def figures_of(report: Report) -> dict[str, Figure]:
    """The plots by name; those that the study has nothing for are left out."""
    drawn = {
        "primary": primary_figure(report),
        "curves": curves_figure(report),
        "zoom": zoom_figure(report),
        "utility": utility_figure(report),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def primary_figure(report: Report) -> Figure | None:
    """The primary figure of each method: its mean and interval, and a dot for each seed."""
    methods = [one for one in report["methods"] if one["figures"][report["primary"]]["value"] is not None]
    if not methods:
        return None
    figure, (axes,) = _panels(1, width=7.0, height=1.1 + 0.42 * len(methods))
    for row, method in enumerate(methods):
        found, colour = method["figures"][report["primary"]], _colour(report, method["name"])
        seeds = 100 * np.array(list(found["by_seed"].values()), float)
        axes.plot(seeds, np.full(len(seeds), row + 0.22), "o", color=colour, alpha=0.45, markersize=3.5)
        if found["low"] is not None:
            axes.plot([100 * found["low"], 100 * found["high"]], [row, row], color=colour, linewidth=2.2)
        axes.plot(100 * found["value"], row, "o", color=colour, markersize=6.5)
    axes.set_yticks(range(len(methods)), [one["title"] for one in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -2), min(high, 102))  # An interval of two seeds may leave what is possible.
    axes.set_xlabel(f"{report['primary']}, percent: mean, 95% interval, and each seed (small)")
    _plain(axes, grid="x")
    return figure


def curves_figure(report: Report) -> Figure | None:
    """Metrics over the steps of training, a panel for each: mean over seeds, and their range as a band."""
    names = list(dict.fromkeys(name for method in report["methods"] for name in method["curves"]))
    if not names:
        return None
    figure, panels = _panels(len(names), width=4.0, height=2.7)
    for axes, name in zip(panels, names, strict=True):
        for method in report["methods"]:
            if curve := method["curves"].get(name):
                colour = _colour(report, method["name"])
                steps, mean, low, high = (_smooth(curve[key]) for key in ("steps", "mean", "low", "high"))
                line = _LINES[_place(report, method["name"]) // len(COLOURS) % len(_LINES)]
                axes.plot(steps, mean, line, color=colour, linewidth=1.4, label=method["title"])
                axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("step")
        _plain(axes, grid="y")
    _legend(figure, panels)
    return figure


def zoom_figure(report: Report) -> Figure | None:
    """Zoom rates by class and stratum in percent, a panel for each method."""
    methods = [method for method in report["methods"] if method["zoom"]]
    if not methods:
        return None
    classes = list(methods[0]["zoom"])
    strata = list(methods[0]["zoom"][classes[0]])
    figure, panels = _panels(len(methods), width=1.6 + 0.55 * len(strata), height=1.3 + 0.28 * len(classes))
    for axes, method in zip(panels, methods, strict=True):
        rates_CxS = np.array([[method["zoom"][label].get(name) for name in strata] for label in classes], float)
        axes.imshow(rates_CxS, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in zip(*np.nonzero(~np.isnan(rates_CxS)), strict=True):
            rate = rates_CxS[row, column]
            axes.text(
                column, row, f"{100 * rate:.0f}", ha="center", va="center", color="white" if rate > 0.55 else "#333333"
            )
        axes.set_xticks(range(len(strata)), strata, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
        axes.set_title(method["title"], loc="left", fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def utility_figure(report: Report) -> Figure | None:
    """What a look was estimated to bring for each class, against what the control shows that it brings."""
    methods = [method for method in report["methods"] if method["utility"]]
    if not methods:
        return None
    figure, panels = _panels(len(methods), width=3.4, height=3.4)
    for axes, method in zip(panels, methods, strict=True):
        colour = _colour(report, method["name"])
        for label, found in method["utility"].items():
            x, y = np.array(found["estimated"]), np.array(found["measured"])
            axes.plot(
                [x.min(), x.max()], [y.mean()] * 2, [x.mean()] * 2, [y.min(), y.max()], color=colour, linewidth=0.9
            )
            axes.plot(x.mean(), y.mean(), "o", color=colour, markersize=4.5)
            axes.annotate(label, (x.mean(), y.mean()), (5, 4), textcoords="offset points", fontsize=7.5)
        axes.set_title(method["title"], loc="left", fontsize=10)
        axes.set_xlabel("estimated, at the end of training")
        axes.axline((0, 0), slope=1, color="#8a8a8a", linewidth=0.8, linestyle="--")
        _plain(axes, grid="both")
    panels[0].set_ylabel("lost where the control spoils the look")
    return figure


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, _MOST_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 5.0), height * rows + 0.4), dpi=_DPI, layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns)))
    for spare in panels[count:]:
        spare.set_axis_off()
    return figure, panels[:count]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    named = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in named}
    if len(entries) > 1:
        columns = min(len(entries), 4)
        figure.legend([*entries.values()], [*entries], loc="outside lower center", ncols=columns, frameon=False)


def _plain(axes: Axes, *, grid: Literal["x", "y", "both"]) -> None:
    axes.grid(axis=grid, color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(report: Report, name: str) -> str:
    """Of a method: the same in all plots."""
    return COLOURS[_place(report, name) % len(COLOURS)]


def _place(report: Report, name: str) -> int:
    return [method["name"] for method in report["methods"]].index(name)


def _smooth(values: Sequence[float]) -> np.ndarray:
    window = _SMOOTHED if len(values) >= 4 * _SMOOTHED else 1
    return np.convolve(values, np.ones(window) / window, "valid")
