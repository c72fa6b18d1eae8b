"""The index of a page: what is known of every episode without its record, a column for each filter.

Most values repeat, so a filter (`FACETS`) is a list of its distinct values and one small number a row. A value is a
tuple of options, since an episode may have several strata and regions, or none. 100,000 episodes take about 6 MB.
"""

from collections.abc import Iterable, Mapping
from typing import Any

FACETS = (
    "run",
    "step",
    "control",
    "dataset",
    "image",
    "class",
    "stratum",
    "answer",
    "outcome",
    "arm",
    "looked",
    "region",
    "calls",
    "instructed",
    "length",
    "advantage",
)
"""The filters, in the order in which the page shows them."""


def facets(run: str, line: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The options of an episode for each of `FACETS`.

    Args:
      run: the run's name.
      line: its line of the index (`episodes.index`).
    """
    sample = f"{line['dataset']}/{line['image']}"
    control = line["id"].removesuffix(f"/{sample}") if line["id"].endswith(f"/{sample}") else ""
    refused, advantage = line.get("refused"), line["advantage"]
    return {
        "run": (run,),
        "step": (str(line["step"]),),
        "control": (control,) if control else (),
        "dataset": (line["dataset"],),
        "image": (sample,),
        "class": (line["class"] or "not known",),
        "stratum": tuple(line["strata"]),
        "answer": (line["prediction"] or "none",),
        "outcome": (line["outcome"] or "not judged",),
        "arm": (line["arm"] or "not recorded",),
        "looked": ("looked" if line["looked"] else "did not look",),
        "region": tuple(sorted(set(line["regions"]))),
        "calls": () if refused is None else ("refused" if refused else "none refused",),
        "instructed": ({"": "free", "zoom": "forced to zoom", "answer": "forced to answer"}[line["forced"]],),
        "length": ("truncated" if line["truncated"] else "whole",),
        "advantage": ("none" if advantage is None else _sign(advantage),),
    }


def columns(episodes: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The index of a page, in JSON's types.

    Args:
      episodes: the run's name and the line of each episode, in order.

    Returns:
      facets: by name, `values` (distinct tuples of options) and `codes` (an index into them for each episode).
      reward: the total of each episode's reward, or None. advantage: likewise.
    """
    codes: dict[str, list[int]] = {name: [] for name in FACETS}
    values: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in FACETS}
    reward, advantage = list[float | None](), list[float | None]()
    for run, line in episodes:
        for name, options in facets(run, line).items():
            known = values[name]
            codes[name].append(known.setdefault(options, len(known)))
        reward.append((line["reward"] or {}).get("total"))
        advantage.append(line["advantage"])
    by_name = {name: {"values": list(values[name]), "codes": codes[name]} for name in FACETS}
    return {"facets": by_name, "reward": reward, "advantage": advantage}


def _sign(number: float) -> str:
    return "positive" if number > 0 else "negative" if number < 0 else "zero"
