"""Tables of finished evaluations for papers: figures beside published ones, strata, and tests between runs.

Figures are percentages. Half the width of the 95% interval follows a measured one.
"""

import csv
import io
from collections.abc import Sequence

from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import figures_of
from actfer_jax.evaluation.calibration import expected_calibration_error
from actfer_jax.evaluation.comparison import compare
from actfer_jax.evaluation.items import NORMAL, Answer, Interval
from actfer_jax.evaluation.results import Results

Rows = list[list[str]]
"""The cells of a table, its headings first."""

_STRATUM = ("accuracy", "au_f1_sample", "zoom_rate")


def main_table(runs: Sequence[Results]) -> Rows:
    """A row for each control of each run, then the rows of papers.

    The expected calibration error (`ece`) is among the figures where records have the probability of answers.

    Raises:
      UserError: the runs are of several benchmarks, so that their figures differ.
    """
    benchmark, *others = dict.fromkeys(run.benchmark for run in runs)
    if others:
        names = ", ".join(one.__name__ for one in (benchmark, *others))
        raise UserError(f"the runs are of several benchmarks ({names}); make a table of each")
    starts, figures, sources = list[list[str]](), list[dict[str, Interval]](), list[str]()
    for run in runs:
        answers = run.answers()
        for control, summary in run.summaries.items():
            made = run.provenance
            data, size = f"{made['dataset']} {made['split']}", str(made["size"])
            starts.append([str(run.directory), control, data, size, run.tools or "unknown"])
            figures.append(figures_of(benchmark, summary) | _calibration(answers.get(control, [])))
            sources.append("measured")
    for paper in getattr(benchmark, "PUBLISHED", ()):
        starts.append([paper.model, "-", paper.data, "-", paper.tools])
        figures.append({name: {"value": value} for name, value in paper.figures.items()})
        sources.append(f"published, {paper.source}")
    columns = list(dict.fromkeys(name for row in figures for name in row))
    headings = ["run", "control", "data", "n", "tools", *map(_heading, columns), "source"]
    cells = ([_cell(row.get(name)) for name in columns] for row in figures)
    return [headings, *([*start, *row, source] for start, row, source in zip(starts, cells, sources, strict=True))]


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


def render(rows: Rows, form: str) -> str:
    """A table as "md" (Markdown), "latex" or "csv"."""
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
    headings, *body = [[_escaped(cell, form) for cell in row] for row in rows]
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
    words = {"f1": "F1", "au": "AU", "ece": "ECE"}
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
