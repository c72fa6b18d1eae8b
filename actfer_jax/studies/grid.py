"""The cells of a study: which there are, what each needs, and the commands that make it.

    WORKDIR/cells/METHOD/seed-10/                            a run of the study
    WORKDIR/cells/METHOD/search/VALUE/seed-100/              one that only helps to choose a value
        run/                                                 its training's workdir
        EVALUATION/                                          what `evaluate` wrote
        log.txt, cell.json                                   what the commands said; which of them are done

Everything here is a pure function of the config, but for the values that were chosen.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath

from actfer_jax.errors import UserError
from actfer_jax.studies.config import MethodConfig, StudyConfig, StudyEvaluation


@dataclass(frozen=True)
class Cell:
    """One run with its evaluations.

    Attributes:
      method: its row.
      seed: of the training, and of the sampling in evaluations.
      value: of the searched key, where the cell is of the search; None where it is of the study.
      start: the cell whose policy it begins with; None for none.
    """

    method: MethodConfig
    seed: int
    value: float | None = None
    start: "Cell | None" = None

    @property
    def name(self) -> str:
        """Its directory below `cells/`."""
        search = "" if self.value is None else f"search/{self.value:g}/"
        return f"{self.method.name}/{search}seed-{self.seed}"


@dataclass(frozen=True)
class Command:
    """A command of a cell.

    Attributes:
      name: "train", or that of an evaluation.
      arguments: what follows `python -m`.
    """

    name: str
    arguments: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", *self.arguments]


def cells_of(config: StudyConfig) -> list[Cell]:
    """All cells, in an order in which each follows what it needs: seed by seed, so that a part is a study too."""
    cells = list[Cell]()
    finals = dict[tuple[str, int], Cell]()

    def start_of(method: MethodConfig, seed: int) -> Cell | None:
        if not method.start:
            return None
        seeds = config.seeds_of(config.method(method.start))
        return finals[method.start, seed if seed in seeds else seeds[0]]

    rounds = max(len(config.seeds_of(method)) for method in config.methods)
    for place in range(rounds):
        for method in config.methods:
            seeds = config.seeds_of(method)
            if place == 0 and method.search.key:
                cells += [
                    Cell(method, seed, value, start_of(method, seed))
                    for value in method.search.values
                    for seed in config.selection.seeds
                ]
            if place < len(seeds):
                cell = finals[method.name, seeds[place]] = Cell(
                    method, seeds[place], start=start_of(method, seeds[place])
                )
                cells.append(cell)
    return cells


def needed_by(cell: Cell, cells: list[Cell]) -> list[Cell]:
    """The cells that have to be done before a cell: its start, and the search of its method."""
    searched = [
        one for one in cells if cell.value is None and one.value is not None and one.method.name == cell.method.name
    ]
    return searched + ([cell.start] if cell.start else [])


def named(cells: list[Cell], patterns: list[str]) -> list[Cell]:
    """The cells whose names match one of the patterns, such as "grpo/*" or "*/seed-10"; all without a pattern.

    Raises:
      UserError: a pattern matches none.
    """
    if not patterns:
        return cells
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            raise UserError(f"--cells={pattern} matches no cell; --dry_run lists them ({cells[0].name}, ...)")
    return [cell for cell in cells if any(fnmatchcase(cell.name, pattern) for pattern in patterns)]


def commands(
    config: StudyConfig, cell: Cell, directory: PurePath, start: PurePath | None, choices: Mapping[str, float | str]
) -> list[Command]:
    """The commands of a cell, in their order.

    Args:
      directory: the cell's.
      start: the directory of the cell that it begins with.
      choices: the value of each method's searched key.
    """
    method, made = cell.method, list[Command]()
    policy = [f"--checkpoint={method.policy}"]
    if method.endpoint:
        policy = [f"--endpoint={method.endpoint}", f"--model={method.policy}"]
    if method.train:
        settings = [f"seed={cell.seed}", "evaluation=None", *config.settings, *method.settings]
        if start is not None:
            settings.append(f"model.path={start / 'run' / 'policy'}")
        if method.search.key:
            value = choices[method.name] if cell.value is None else cell.value
            settings.append(f"{method.search.key}={value}")
        run = directory / "run"
        made.append(Command("train", ("actfer_jax.train", *_flags(method.train, settings), f"--workdir={run}")))
        policy = [f"--checkpoint={run / 'policy'}"]
    for evaluation in evaluations_of(config, cell):
        settings = [f"seed={cell.seed}", *evaluation.settings, *method.evaluate]
        settings += config.selection.settings if cell.value is not None else ()
        flags = (*_flags(evaluation.config, settings), *policy, f"--out={directory / evaluation.name}")
        made.append(Command(evaluation.name, ("actfer_jax.evaluate", *flags)))
    return made


def evaluations_of(config: StudyConfig, cell: Cell) -> list[StudyEvaluation]:
    """What the cell's policy is measured by: in a search by that of the primary figure alone."""
    return [config.primary_evaluation] if cell.value is not None else list(config.evaluations)


def _flags(config: str, settings: list[str]) -> list[str]:
    # Of two values for a key the last holds.
    last = {setting.partition("=")[0]: setting for setting in settings}
    return [f"--config={config}", *(f"--config.{setting}" for setting in last.values())]
