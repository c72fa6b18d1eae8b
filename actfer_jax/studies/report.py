"""What the cells of a study say together, as JSON values.

Shapes: K seeds, N samples, S steps, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actfer_jax.evaluation.items import NORMAL, Interval
from actfer_jax.evaluation.results import RESULTS
from actfer_jax.runs.provenance import provenance
from actfer_jax.studies import results
from actfer_jax.studies.cell import CellState
from actfer_jax.studies.config import MethodConfig, StudyConfig
from actfer_jax.studies.grid import Cell
from actfer_jax.studies.run import Study
from actfer_jax.studies.statistics import crossed_interval, holm, paired_t, seed_interval, smallest_difference

Report = dict[str, Any]
Floats = NDArray[np.float64]

COSTS = ("cost", "provenance")
"""The keys of a report that say what it took and when: all others are the same when the study is run again."""
NOTHING = {"dataset": "nothing", "split": "yet", "size": 0}
_EMA = "uc/ema/class/"


def make_report(study: Study, problems: Mapping[str, str]) -> Report:
    """The report of a study, of the cells that are done.

    Args:
      problems: why other cells are not done, by name.

    Returns:
      question, primary;
      design: what the study can see (`design`);
      methods: for each, in order: name, title, seeds (of the cells that are done), search (key, value, means), figures
        (by title: value, low, high, over, by_seed), curves (by metric: steps, mean, low, high: the range over seeds),
        zoom (by class, by stratum: the mean rate), utility (by class: estimated, measured, each by seed);
      contrasts: first, second, seeds, difference (over seeds), crossed (over seeds and samples), deviation, t, p, holm,
        smallest (the difference that it could have seen);
      problems; provenance; cost: by method, means over cells, and search_core_minutes.
    """
    done = [cell for cell in study.cells if study.is_done(cell)]
    by_method: dict[str, list[Cell]] = {method.name: [] for method in study.config.methods}
    searches: dict[str, list[Cell]] = {method.name: [] for method in study.config.methods}
    for cell in done:
        (by_method if cell.value is None else searches)[cell.method.name].append(cell)
    return {
        "question": study.config.question,
        "primary": study.config.primary,
        "design": design(study.config),
        "methods": [_method(study, method, by_method[method.name]) for method in study.config.methods],
        "contrasts": _contrasts(study, by_method),
        "problems": dict(problems),
        "provenance": _made(study, done),
        "cost": {name: _cost(study, cells, searches[name]) for name, cells in by_method.items()},
    }


def design(config: StudyConfig) -> list[dict[str, Any]]:
    """What each contrast can see before anything is run: its pairs, and the smallest difference in standard deviations,
    by itself (`alone`) and if it has to pass Holm's strictest step (`first`)."""
    contrasts = len(config.contrasts)
    found = []
    for first, second in config.contrasts:
        pairs = len(_common(*(config.seeds_of(config.method(name)) for name in (first, second))))
        alone, strictest = smallest_difference(pairs), smallest_difference(pairs, contrasts=contrasts)
        found.append({"first": first, "second": second, "pairs": pairs, "alone": alone, "strictest": strictest})
    return found


def _common(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The seeds that two methods have in common. One of a single seed is the same for all seeds of the other."""
    if len(second) == 1 or len(first) == 1:
        return list(first if len(second) == 1 else second)
    return [seed for seed in first if seed in second]


def _made(study: Study, done: Sequence[Cell]) -> dict[str, Any]:
    """Where the figures come from: as `provenance`, with a note if the code changed while the study ran."""
    name = study.config.primary_evaluation.name
    found = [
        results.read_json(study.directory(cell) / name / RESULTS)["provenance"] for cell in done if cell.value is None
    ]
    measured = {key: found[0][key] for key in ("dataset", "split", "size")} if found else NOTHING
    commits = dict.fromkeys(str(one.get("git_commit"))[:10] for one in found)
    notes = [f"cells are of {len(commits)} commits: {', '.join(commits)}"] if len(commits) > 1 else []
    return provenance(**measured, policy=f"{len(done)} of {len(study.cells)} cells", notes=notes)


def _method(study: Study, method: MethodConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": method.name, "title": method.shown, "seeds": [cell.seed for cell in cells]}
    directories = [study.directory(cell) for cell in cells]
    choice = study.choice(method) if method.search.key else None
    found["search"] = None
    if choice is not None:
        means = {f"{value:g}": mean for value, mean in choice.means.items()}
        found["search"] = {"key": method.search.key, "value": choice.value, "means": means}
    summaries = [results.read_summaries(directory, study.config) for directory in directories]
    found["figures"] = {
        title: _figure([results.figure(one, path) for one in summaries], path, directories, found["seeds"])
        for title, path in study.config.figures
    }
    trained = [results.read_training(directory) for directory in directories]
    found["curves"] = {name: curve for name in study.config.curves if (curve := _curve(name, trained))}
    found["zoom"] = _zoom([one[study.config.evaluations[0].name][NORMAL] for one in summaries])
    found["utility"] = _utility(study.config, directories, trained) if study.config.utility else {}
    return found


def _figure(
    values: Sequence[float | None], path: str, directories: Sequence[Path], seeds: Sequence[int]
) -> dict[str, Any]:
    by_seed = dict(zip(map(str, seeds), values, strict=True))
    known = np.array([value for value in values if value is not None])
    if not len(known) or len(known) < len(values):
        return {"value": None, "low": None, "high": None, "over": "", "by_seed": by_seed}
    matrix = _matrix(values, path, directories)
    interval = seed_interval(known) if matrix is None else crossed_interval(matrix)
    over = "" if interval["low"] is None else "seeds" if matrix is None else "seeds and samples"
    return {**interval, "over": over, "by_seed": by_seed}


def _matrix(values: Sequence[float | None], path: str, directories: Sequence[Path]) -> Floats | None:
    """A figure by seed and sample [K, N], where it is a mean over samples that all seeds have in common."""
    found = [results.per_sample(directory, path, value) for directory, value in zip(directories, values, strict=True)]
    if not found or any(one is None or one[0] != found[0][0] for one in found if found[0] is not None):
        return None
    rows = [one[1] for one in found if one is not None]
    return np.stack(rows) if len(rows) == len(values) else None


def _curve(name: str, trained: Sequence[list[dict[str, Any]]]) -> dict[str, list[float]] | None:
    """The mean and the range over seeds of a metric, at the steps at which all seeds have it."""
    by_step = [{record["step"]: record[name] for record in run if record.get(name) is not None} for run in trained]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    if not steps:
        return None
    values_KxS = np.array([[run[step] for step in steps] for run in by_step])
    ranges = {"mean": values_KxS.mean(0), "low": values_KxS.min(0), "high": values_KxS.max(0)}
    return {"steps": steps} | {key: values_S.tolist() for key, values_S in ranges.items()}


def _zoom(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The mean zoom rate over seeds, by class and then by stratum, "all" among them."""
    if not summaries or "classes" not in summaries[0]:
        return {}
    found = {}
    for label in summaries[0]["classes"]:
        by_seed = [one["classes"][label] for one in summaries]
        rates = [{"all": one["zoom_rate"], **one["zoom_rate_in"]} for one in by_seed]
        found[label] = {name: _mean([one.get(name) for one in rates]) for name in rates[0]}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _utility(
    config: StudyConfig, directories: Sequence[Path], trained: Sequence[list[dict[str, Any]]]
) -> dict[str, dict[str, list[float]]]:
    """Of each class: the contrast that training ended with, and by how much the control makes the task reward worse on
    the samples that were looked at. Empty for a method that estimates none."""
    found = dict[str, dict[str, list[float]]]()
    evaluation, control = config.utility.split("/")
    for directory, records in zip(directories, trained, strict=True):
        last = records[-1] if records else {}
        estimated = {key.removeprefix(_EMA): value for key, value in last.items() if key.startswith(_EMA)}
        played, spoilt = (results.read_answered(directory / evaluation, name) for name in (NORMAL, control))
        if played is None or spoilt is None or played.names != spoilt.names:
            return {}
        loss_N = played.task_N - spoilt.task_N
        for label, value in estimated.items():
            member_N = np.array([one == label for one in played.classes]) & (played.looked_N > 0)
            if member_N.any() and value is not None:
                entry = found.setdefault(label, {"estimated": [], "measured": []})
                entry["estimated"].append(float(value))
                entry["measured"].append(float(loss_N[member_N].mean()))
    return found


def _contrasts(study: Study, by_method: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    found, path = [], study.config.primary_path
    for first, second in study.config.contrasts:
        cells = {name: {cell.seed: cell for cell in by_method[name]} for name in (first, second)}
        seeds = _common(*(list(one) for one in cells.values())) if all(cells.values()) else []
        pairs = [[one.get(seed) or next(iter(one.values())) for one in cells.values()] for seed in seeds]
        found.append({"first": first, "second": second, "seeds": seeds} | _contrast(study, pairs, path))
    tested = [one for one in found if one["p"] is not None]
    for one, adjusted in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one["holm"] = adjusted
        size = smallest_difference(len(one["seeds"]), contrasts=1)
        one["smallest"] = None if size is None else size * one["deviation"]
    return found


def _contrast(study: Study, pairs: Sequence[Sequence[Cell]], path: str) -> dict[str, Any]:
    """The test of the primary figure, seed by seed."""
    nothing: Interval = {"value": None, "low": None, "high": None}
    empty = dict.fromkeys(("deviation", "t", "p", "holm", "smallest")) | {"difference": nothing, "crossed": nothing}
    sides = [[study.directory(pair[side]) for pair in pairs] for side in (0, 1)]
    values = [[results.figure(results.read_summaries(one, study.config), path) for one in side] for side in sides]
    if not pairs or any(value is None for side in values for value in side):
        return empty
    tested = paired_t(np.subtract(*np.array(values, float)))
    matrices = [_matrix(value, path, side) for value, side in zip(values, sides, strict=True)]
    crossed = nothing
    if matrices[0] is not None and matrices[1] is not None and matrices[0].shape == matrices[1].shape:
        crossed = crossed_interval(matrices[0] - matrices[1])
    return empty | vars(tested) | {"crossed": crossed}


def _cost(study: Study, cells: Sequence[Cell], search: Sequence[Cell]) -> dict[str, float]:
    """Means over cells: core minutes of training and of evaluations, and what was sampled; and the core minutes of the
    whole search."""

    def minutes(cell: Cell, trains: bool) -> float:
        done = CellState.read(study.directory(cell)).done
        return sum(one["cpu_seconds"] for name, one in done.items() if (name == "train") is trains) / 60

    rows = [
        {"train_core_minutes": minutes(cell, True), "evaluate_core_minutes": minutes(cell, False)}
        | results.tokens(study.directory(cell))
        for cell in cells
    ]
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} if rows else {}
    return means | {"search_core_minutes": sum(minutes(cell, trains) for cell in search for trains in (True, False))}
