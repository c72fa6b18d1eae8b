"""Tables of finished evaluations for papers: figures beside published ones, strata, and tests between runs.

Figures are percentages. Half the width of the 95% interval follows a measured one.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import figures_of, intervals_of
from actfer_jax.evaluation.calibration import expected_calibration_error
from actfer_jax.evaluation.comparison import compare
from actfer_jax.evaluation.items import NORMAL, Answer, Interval
from actfer_jax.evaluation.results import Results

Rows = list[list[str]]
"""The cells of a table, its headings first."""

_STRATUM = ("accuracy", "au_f1_sample", "zoom_rate")
_LOWER_IS_BETTER = ("ece",)


class Best(str):
    """A cell with the best figure of its column, among the measured rows on the same samples."""


class _Row(NamedTuple):
    """A row: its run, control, data, size and tools, its figures by name, and its source."""

    start: tuple[str, ...]
    figures: dict[str, Interval]
    source: str


def main_table(runs: Sequence[Results], metrics: Sequence[str] = ()) -> Rows:
    """A row for each control of each run, one of the commonest label of each data set, then the rows of papers.

    The expected calibration error (`ece`) is among the figures where records have the probability of answers.

    Args:
      metrics: names of the figures to show, in this order; by default all that there are.

    Raises:
      UserError: the runs are of several benchmarks, so that their figures differ; or there is no such figure.
    """
    benchmark, *others = dict.fromkeys(run.benchmark for run in runs)
    if others:
        names = ", ".join(one.__name__ for one in (benchmark, *others))
        raise UserError(f"the runs are of several benchmarks ({names}); make a table of each")
    rows, constant = list[_Row](), dict[tuple[str, str], _Row]()
    for run in runs:
        answers, made = run.answers(), run.provenance
        data, size = f"{made['dataset']} {made['split']}", str(made["size"])
        for control, summary in run.summaries.items():
            start = (str(run.directory), control, data, size, run.tools or "unknown")
            found = figures_of(benchmark, summary)
            found = found if "ece" in found else found | _calibration(answers.get(control, []))
            rows.append(_Row(start, found, "measured"))
        majority = run.summaries[NORMAL].get("majority", {})
        if label := majority.get("label"):
            start = (f"majority class ({label})", "-", data, size, "none")
            constant[data, size] = _Row(start, intervals_of(majority), "computed")
    rows += constant.values()
    compared = len(rows)
    for paper in getattr(benchmark, "PUBLISHED", ()):
        start = (paper.model, "-", paper.data, "-", paper.tools)
        figures: dict[str, Interval] = {name: {"value": value} for name, value in paper.figures.items()}
        rows.append(_Row(start, figures, f"published, {paper.source}"))
    known = list(dict.fromkeys(name for row in rows for name in row.figures))
    if unknown := [name for name in metrics if name not in known]:
        raise UserError(f"--metrics names {', '.join(unknown)}; there are: {', '.join(known)}")
    columns = list(metrics) or known
    best = {name: _best(rows[:compared], name) for name in columns}
    headings = ["run", "control", "data", "n", "tools", *map(_heading, columns), "source"]
    body = [
        [*row.start, *((Best if row in best[name] else str)(_cell(row.figures.get(name))) for name in columns)]
        + [row.source]
        for row in rows
    ]
    return [headings, *body]


def _best(rows: Sequence[_Row], name: str) -> list[_Row]:
    """The rows with the best figure among those on the same samples; none where there is only one."""
    by_data = defaultdict[tuple[str, ...], list[tuple[float, _Row]]](list)
    for row in rows:
        if (found := row.figures.get(name, {}).get("value")) is not None:
            by_data[row.start[2:4]].append((found, row))
    choose = min if name in _LOWER_IS_BETTER else max
    tops = [(choose(value for value, _ in group), group) for group in by_data.values() if len(group) > 1]
    return [row for top, group in tops for value, row in group if value == top]


def strata_table(runs: Sequence[Results]) -> Rows:
    """A row for each stratum of each control of each run.

    Raises:
      UserError: the samples belong to no strata.
    """
    rows = [["run", "control", "stratum", "n", *map(_heading, _STRATUM)]]
    for run in runs:
        for control, summary in run.summaries.items():
            for stratum, found in summary.get("strata", {}).items():
                start = [str(run.directory), control, stratum, str(found["episodes"])]
                rows.append([*start, *(_cell(found.get(name)) for name in _STRATUM)])
    if len(rows) == 1:
        raise UserError("these results have no figures by strata")
    return rows


def comparison_table(runs: Sequence[Results], *, seed: int = 0) -> Rows:
    """Tests of the first run against each other one, or of a single run against its controls, on the samples of both.

    Raises:
      UserError: there is nothing to compare, or two have no sample in common.
    """
    aus = getattr(runs[0].benchmark, "AUS", None)
    if len(runs) == 1:
        answers = {f"{runs[0].directory} {control}": given for control, given in runs[0].answers().items()}
    else:
        answers = {str(run.directory): run.answers()[NORMAL] for run in runs}
    (first, its_answers), *others = answers.items()
    if not others:
        raise UserError(f"there is only {first}; give a run to compare it with, or one that has controls")
    rows = [["runs", "figure", "n", "first", "second", "difference", "95% interval", "test", "p"]]
    for name, other_answers in others:
        found = compare(its_answers, other_answers, aus=aus, seed=seed)
        if not found:
            raise UserError(f"{first} and {name} have no labelled sample in common (by data set and name)")
        for one in found:
            low, high = one.difference["low"], one.difference["high"]
            between = "-" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f}"
            values = (_cell({"value": value}) for value in (one.first, one.second))
            change = f"{100 * (one.first - one.second):+.2f}"
            row = [f"{first} / {name}", _heading(one.figure), str(one.samples), *values, change, between]
            rows.append([*row, one.test, f"{one.p:.2g}"])
    return rows


def legend(rows: Rows, form: str) -> str:
    """The line that says what a table's "±" and bold figures mean; "" in CSV, which has rows alone."""
    cells = [cell for row in rows[1:] for cell in row]
    words = ["In percent"] + ["± is half of the 95% bootstrap interval"] * any("±" in cell for cell in cells)
    words += ["bold is the best of a column on the same samples"] * any(isinstance(cell, Best) for cell in cells)
    line = f"{'; '.join(words)}."
    return {"md": f"\n{line}\n", "latex": f"% {line}\n", "csv": ""}[form]


def render(rows: Rows, form: str) -> str:
    """A table as "md" (Markdown), "latex" or "csv"; the best figures are bold in the first two."""
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
    bold = {"md": "**{}**", "latex": "\\textbf{{{}}}"}[form]
    headings, *body = [
        [bold.format(_escaped(cell, form)) if isinstance(cell, Best) else _escaped(cell, form) for cell in row]
        for row in rows
    ]
    numbers = [all(row[column][0] in "-+0123456789" for row in rows[1:]) for column in range(len(rows[0]))]
    if form == "md":
        rule = ["---:" if number else "---" for number in numbers]
        return "".join(f"| {' | '.join(row)} |\n" for row in (headings, rule, *body))
    lines = [f"{' & '.join(row)} \\\\" for row in (headings, *body)]
    columns = "".join("r" if number else "l" for number in numbers)
    start = [f"\\begin{{tabular}}{{{columns}}}", "\\hline", lines[0], "\\hline"]
    return "\n".join([*start, *lines[1:], "\\hline", "\\end{tabular}"]) + "\n"


def _escaped(cell: str, form: str) -> str:
    if form == "md":
        return cell.replace("|", "\\|")
    special = {char: f"\\{char}" for char in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return "".join(special.get(char, char) for char in cell)


def _heading(name: str) -> str:
    words = {"f1": "F1", "au": "AU", "ece": "ECE", "uar": "UAR", "uf1": "UF1"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def _cell(found: Interval | None) -> str:
    """A figure as a percentage, with half the width of its interval if it has one."""
    if found is None or found["value"] is None:
        return "-"
    low, high = found.get("low"), found.get("high")
    half = "" if low is None or high is None else f" ±{50 * (high - low):.2f}"
    return f"{100 * found['value']:.2f}{half}"


def _calibration(answers: Sequence[Answer]) -> dict[str, Interval]:
    known = [(one.confidence, one.correct) for one in answers if one.confidence is not None and one.truth is not None]
    if not known:
        return {}
    confidence, correct = zip(*known, strict=True)
    return {"ece": {"value": expected_calibration_error(confidence, correct)}}
