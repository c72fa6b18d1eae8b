"""Tables of a study and its report: rows of cells, headings first, for `evaluation.paper.render`."""

from collections.abc import Mapping, Sequence
from typing import Any

from actfer_jax.evaluation.paper import Rows
from actfer_jax.evaluation.tables import percent, percent_with_interval
from actfer_jax.studies.report import Report


def main_table(report: Report) -> Rows:
    """A row for each method: its figures in percent, with half of the width of the 95% interval."""
    titles = list(report["methods"][0]["figures"])
    rows = [["method", "seeds", *titles]]
    for method in report["methods"]:
        figures = [percent_with_interval(method["figures"][title]) for title in titles]
        rows.append([method["title"], str(len(method["seeds"])), *figures])
    return rows


def contrasts_table(report: Report) -> Rows:
    """A row for each contrast, in points of the primary figure."""
    names = {method["name"]: method["title"] for method in report["methods"]}
    over = ["seeds", "difference", "95% over seeds", "and over samples", "t", "p", "p (Holm)", "smallest seen"]
    rows = [["contrast", *over]]
    for one in report["contrasts"]:
        pair = f"{names[one['first']]} − {names[one['second']]}"
        value, smallest = one["difference"]["value"], one["smallest"]
        cells = [
            "-" if value is None else f"{100 * value:+.1f}",
            _between(one["difference"]),
            _between(one["crossed"]),
            _number(one["t"], ".2f"),
            _number(one["p"], ".2g"),
            _number(one["holm"], ".2g"),
            "-" if smallest is None else f"{100 * smallest:.1f}",
        ]
        rows.append([pair, str(len(one["seeds"])), *cells])
    return rows


def design_table(design: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Rows:
    """What each contrast can see, in standard deviations of the paired differences."""
    rows = [["contrast", "pairs", "smallest difference", "if first of all by Holm"]]
    for one in design:
        pair = f"{titles[one['first']]} − {titles[one['second']]}"
        rows.append([pair, str(one["pairs"]), *(_deviations(one[key]) for key in ("alone", "strictest"))])
    return rows


def search_table(report: Report) -> Rows:
    """A row for each method whose value was chosen: the means of the primary figure on validation samples."""
    rows = [["method", "key", "chosen", "tried: validation"]]
    for method in report["methods"]:
        if found := method["search"]:
            tried = ", ".join(f"{value}: {percent(mean)}" for value, mean in found["means"].items())
            rows.append([method["title"], found["key"], f"{found['value']:g}", tried])
    return rows


def zoom_table(report: Report) -> Rows:
    """A row for each method and class: zoom rates by stratum, in percent."""
    methods = [method for method in report["methods"] if method["zoom"]]
    strata = list(dict.fromkeys(name for one in methods for rates in one["zoom"].values() for name in rates))
    rows = [["method", "class", *strata]]
    for method in methods:
        for label, rates in method["zoom"].items():
            rows.append([method["title"], label, *(percent(rates.get(name)) for name in strata)])
    return rows


def cost_table(report: Report) -> Rows:
    """A row for each method: what a cell took in the mean."""
    rows = [
        ["method", "core minutes, training", "evaluations", "whole search", "episodes", "policy tokens", "tool tokens"]
    ]
    for method in report["methods"]:
        cost = report["cost"][method["name"]]
        minutes = [_number(cost.get(f"{kind}_core_minutes"), ".1f") for kind in ("train", "evaluate", "search")]
        counts = [_number(cost.get(key), ",.0f") for key in ("episodes", "policy_tokens", "tool_tokens")]
        rows.append([method["title"], *minutes, *counts])
    return rows


def problems_table(report: Report) -> Rows:
    """A row for each cell that is not done."""
    return [["cell", "why it is not done"], *([name, why] for name, why in report["problems"].items())]


def _deviations(size: float | None) -> str:
    return "none" if size is None else f"{size:.2f} SD"


def _between(found: Mapping[str, float | None]) -> str:
    low, high = found["low"], found["high"]
    return "-" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
