"""Summaries as text for a terminal."""

from collections.abc import Mapping
from typing import Any

from actfer_jax.evaluation.metrics import Summary

_COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("accuracy", ("accuracy",)),
    ("macro-F1", ("macro_f1",)),
    ("AU-F1", ("au_f1_sample",)),
    ("subtle acc", ("subtle", "accuracy")),
    ("plain acc", ("plain", "accuracy")),
    ("zoom rate", ("zoom", "rate")),
    ("zoom subtle", ("subtle", "zoom_rate")),
    ("zoom plain", ("plain", "zoom_rate")),
)


def controls_table(runs: Mapping[str, Mapping[str, Summary]]) -> str:
    """One row for each control and run, so that the runs can be compared control by control.

    Args:
      runs: summaries by control, by the name of the run ("before", "after"); a single run needs no name ("").

    Returns:
      Aligned lines. Behind the accuracy stands half the width of its 95% interval.
    """
    named = any(runs)
    controls = list(dict.fromkeys(control for run in runs.values() for control in run))
    rows = [["control", *(["run"] if named else []), *(title for title, _ in _COLUMNS)]]
    for control in controls:
        title = control
        for name, run in runs.items():
            if control in run:
                rows.append([title, *([name] if named else []), *_cells(run[control])])
                title = ""
    return align(rows, left=2 if named else 1)


def classes_table(summary: Summary) -> str:
    """One row for each emotion."""
    columns = ("episodes", "precision", "recall", "f1", "zoom_rate", "zoom_subtle", "zoom_plain")
    rows = [["emotion", *(column.replace("_", " ") for column in columns)]]
    for label, values in summary["classes"].items():
        rows.append([label, *(_number(values[column]) for column in columns)])
    return align(rows, left=1)


def align(rows: list[list[str]], *, left: int) -> str:
    """Columns of equal width under a ruled heading; the first `left` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(summary: Summary) -> list[str]:
    cells = []
    for _, path in _COLUMNS:
        node: Any = summary
        for key in path:
            node = node[key]
        cells.append(_number(node["value"]))
    low, high = summary["accuracy"]["low"], summary["accuracy"]["high"]
    if low is not None:
        cells[0] += f" ±{(high - low) / 2:.3f}"
    return cells


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
