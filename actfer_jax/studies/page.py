"""A study's report as files: a web page, Markdown, LaTeX, JSON, and the plots."""

import base64
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from actfer_jax.cli import printable
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.paper import Rows, render
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.runs.provenance import heading
from actfer_jax.studies.plots import figures_of
from actfer_jax.studies.report import Report, make_report
from actfer_jax.studies.run import Study
from actfer_jax.studies.tables import (
    contrasts_table,
    cost_table,
    design_table,
    main_table,
    problems_table,
    search_table,
    zoom_table,
)

REPORT_NAME = "report"
REPORT = Output(
    "the report of a study",
    re.compile(r"(report\.(json|md|tex)|index\.html|\w+\.png)"),
    last="report.json",
    signs=("report.json", "report.md"),
)
_NOTES = {
    "Results": (
        "Percent; ± is half of the width of the 95% interval. It holds for other seeds and other samples where a "
        "figure is a mean over samples (accuracies and zoom rates), else for other seeds on these samples. A single "
        "run has none."
    ),
    "Contrasts": (
        "Points of the primary figure, seed by seed: paired t tests over seeds on these samples, with Holm's "
        "adjustment over all contrasts. The last column is the smallest difference that such a test finds with power "
        "0.8, by the deviation that was measured."
    ),
    "What the design can see": (
        "The smallest mean difference that a paired t test finds with power 0.8, in standard deviations of the "
        "differences between seeds: by itself, and where Holm compares it with 0.05 over the number of contrasts."
    ),
    "Chosen on validation samples": "By the primary figure, on seeds that no other run of the study has.",
    "Training": "Mean over seeds; the band is their range. Of twenty steps or more, five at a time are averaged.",
    "When it looks": "Share of the episodes with a zoom into the face, by class and stratum: mean over seeds.",
    "What a look brings": (
        "Task reward by class, mean and range over seeds: the running contrast at the end of training, against what "
        "the policy loses on the samples that it looked at when the control spoils what it sees. On the line the "
        "estimate is right."
    ),
    "Cost": (
        "Of a cell, in the mean, and of the whole search. Core minutes are processor time, of all cores together."
    ),
    "Not done": "These cells are in no figure.",
}
_PLOTS = {
    "Results": "primary",
    "Training": "curves",
    "When it looks": "zoom",
    "What a look brings": "utility",
}
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f5f4f0; color: #1c2330;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { margin: 0 0 4px; font-size: 26px; }
h2 { margin: 0 0 6px; font-size: 19px; }
section { margin: 24px 0; padding: 22px; background: #fff; border: 1px solid #e3e1da; border-radius: 12px; }
.muted { color: #5d6675; font-size: 14px; margin: 0 0 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid #eceae4; text-align: right; white-space: nowrap; }
th { color: #5d6675; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
img { max-width: 100%; height: auto; margin-top: 14px; }
"""


def check_place(study: Study) -> None:
    """
    Raises:
      OutputError: the report could not be written.
    """
    check_directory(study.workdir / REPORT_NAME, REPORT)


def write_study(study: Study, problems: Mapping[str, str]) -> str:
    """Writes the report of a study into its `report/`; the text to print.

    Args:
      problems: why cells are not done, by name.
    """
    report, directory = make_report(study, problems), study.workdir / REPORT_NAME
    write_report(report, directory)
    return f"{in_words(report)}\nThe page is {directory / 'index.html'}"


def write_report(report: Report, directory: Path) -> None:
    """Writes all files of a report into a directory, and replaces those of an earlier one.

    Raises:
      OutputError: the directory holds something else.
    """
    with staged(directory, REPORT) as staging:
        made = heading(report["provenance"])
        pictures = {name: plots.png(figure, made) for name, figure in figures_of(report).items()}
        for name, picture in pictures.items():
            write_atomically(staging / f"{name}.png", picture)
        sections = _sections(report)
        write_atomically(staging / "report.md", _markdown(report, sections, pictures))
        write_atomically(staging / "report.tex", _latex(report))
        write_atomically(staging / "index.html", _page(report, sections, pictures))
        write_atomically(staging / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        publish(staging, directory, REPORT)


def in_words(report: Report) -> str:
    """The tables that a terminal shows."""
    sections = _sections(report)
    shown = ("Results", "Contrasts", "Chosen on validation samples", "Not done")
    tables = [f"\n{name}\n\n{render(sections[name], 'md')}" for name in shown if name in sections]
    return "\n".join([heading(report["provenance"]), *tables])


def _sections(report: Report) -> dict[str, Rows]:
    """The tables by their heading; those without rows are left out. A section may have a plot alone."""
    titles = {method["name"]: method["title"] for method in report["methods"]}
    tables = {
        "Not done": problems_table(report),
        "Results": main_table(report),
        "Contrasts": contrasts_table(report),
        "What the design can see": design_table(report["design"], titles),
        "Chosen on validation samples": search_table(report),
        "Training": [],
        "When it looks": zoom_table(report),
        "What a look brings": [],
        "Cost": cost_table(report),
    }
    return {name: rows for name, rows in tables.items() if len(rows) > 1 or name in _PLOTS}


def _markdown(report: Report, sections: Mapping[str, Rows], pictures: Mapping[str, bytes]) -> str:
    parts = [f"# {report['question']}\n\n{heading(report['provenance'])}\n"]
    for name, rows in sections.items():
        plot = _PLOTS.get(name, "")
        picture = f"\n![{name}]({plot}.png)\n" if plot in pictures else ""
        if picture or len(rows) > 1:
            parts.append(f"\n## {name}\n\n{_NOTES[name]}\n\n{render(rows, 'md') if len(rows) > 1 else ''}{picture}")
    return "".join(parts)


def _latex(report: Report) -> str:
    tables = (main_table(report), contrasts_table(report))
    made = heading(report["provenance"])
    text = "\n".join(render(rows, "latex") for rows in tables if len(rows) > 1)
    return f"% {made}\n" + text.replace("−", "$-$")


def _page(report: Report, sections: Mapping[str, Rows], pictures: Mapping[str, bytes]) -> str:
    parts = []
    for name, rows in sections.items():
        plot = _PLOTS.get(name, "")
        if plot not in pictures and len(rows) <= 1:
            continue
        picture = ""
        if plot in pictures:
            data = base64.b64encode(pictures[plot]).decode()
            picture = f'<img src="data:image/png;base64,{data}" alt="{name}">'
        table = _table(rows) if len(rows) > 1 else ""
        parts.append(f'<section><h2>{name}</h2><p class="muted">{_NOTES[name]}</p>{table}{picture}</section>')
    question = _text(report["question"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{question}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{question}</h1><p class="muted">{_text(heading(report["provenance"]))}</p></header>
<main>
{"".join(parts)}
</main>
</body>
</html>
"""


def _table(rows: Rows) -> str:
    head, *body = ["".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in row) for tag, row in _tagged(rows)]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in body)}</table></div>'


def _tagged(rows: Rows) -> list[tuple[str, list[str]]]:
    return [("td" if index else "th", row) for index, row in enumerate(rows)]


def _text(text: str) -> str:
    return html.escape(printable(text))
