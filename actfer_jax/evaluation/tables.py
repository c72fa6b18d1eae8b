"""Tables of summaries for a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from actfer_jax.evaluation.benchmarks import Published
from actfer_jax.evaluation.metrics import Summary


def _columns(strata: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Headings, each with the path of its figure in a summary."""
    return {
        "accuracy": ("accuracy",),
        "macro-F1": ("macro_f1",),
        "UAR": ("uar",),
        "AU-F1": ("au_f1_sample",),
        "AU macro-F1": ("au_f1_pooled",),
        "ECE": ("ece",),
        **{f"{name} acc": ("strata", name, "accuracy") for name in strata},
        "zoom rate": ("zoom", "rate"),
        **{f"zoom {name}": ("strata", name, "zoom_rate") for name in strata},
    }


def controls_table(runs: Mapping[str, Mapping[str, Summary]]) -> str:
    """One row for each control and run, with the runs of a control together, and one for the commonest label.

    Args:
      runs: summaries by control, by the name of the run ("before", "after"). The name of a single run may be "".

    Returns:
      Aligned lines, and one that says what they mean. Half the width of the 95% interval follows the accuracy.
    """
    named = any(runs)
    controls = list(dict.fromkeys(control for run in runs.values() for control in run))
    columns = _columns(
        sorted({name for run in runs.values() for summary in run.values() for name in summary["strata"]})
    )
    rows = [["control", *(["run"] if named else []), *columns]]
    for control in controls:
        title = control
        for name, run in runs.items():
            if control in run:
                rows.append([title, *([name] if named else []), *_cells(run[control], columns.values())])
                title = ""
    *_, last = runs.values()
    first_control = next(iter(last.values()))
    if label := first_control.get("majority", {}).get("label"):
        name = f"majority class ({label})"
        rows.append([name, *([""] if named else []), *_cells(first_control["majority"], columns.values())])
    note = f"± is half of the 95% interval over resampled {first_control.get('resampled', 'samples')}."
    return f"{align(rows, left=2 if named else 1)}\n{note}"


def classes_table(summary: Summary) -> str:
    """One row for each emotion."""
    columns, strata = ("episodes", "precision", "recall", "f1", "zoom_rate"), list(summary["strata"])
    rows = [["emotion", *(column.replace("_", " ") for column in columns), *(f"zoom {name}" for name in strata)]]
    for label, values in summary["classes"].items():
        by_stratum = values["zoom_rate_in"]
        rows.append([label, *(_number(values[column]) for column in columns), *map(_number, by_stratum.values())])
    return align(rows, left=1)


def published_table(rows: Iterable[Published]) -> str:
    """One row for each row of a paper, which has one figure."""
    table = [["published, not measured here", "on", "percent", "tools (here: dlib)", "source"]]
    for one in rows:
        (share,) = one.figures.values()
        table.append([one.model, one.data, percent(share), one.tools, one.source])
    return align(table, left=5)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def percent_with_interval(figure: Mapping[str, float | None]) -> str:
    """A figure in percent, with half of the width of its 95% interval."""
    low, high = figure["low"], figure["high"]
    half = "" if low is None or high is None else f" ±{50 * (high - low):.1f}"
    return percent(figure["value"]) + half


def align(rows: list[list[str]], *, left: int) -> str:
    """Aligned columns under a ruled heading: the first `left` columns flush left, the others flush right."""
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


def _cells(summary: Summary, paths: Iterable[tuple[str, ...]]) -> list[str]:
    cells = []
    for path in paths:
        node: Any = summary
        for key in path:
            node = node.get(key, {})
        cells.append(_number(node.get("value")))
    low, high = summary["accuracy"]["low"], summary["accuracy"]["high"]
    if low is not None:
        cells[0] += f" ±{(high - low) / 2:.3f}"
    return cells


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
