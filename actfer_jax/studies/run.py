"""Runs the cells of a study in processes, and goes on with what is not done."""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from queue import SimpleQueue

from etils import epath

from actfer_jax.errors import UserError
from actfer_jax.files import absolute, is_remote
from actfer_jax.parallel.hosts import Termination
from actfer_jax.progress import duration
from actfer_jax.studies.cell import CellError, CellState, Running, Stopped, last_lines, locked
from actfer_jax.studies.config import MethodConfig, StudyConfig
from actfer_jax.studies.grid import Cell, Command, cells_of, commands, needed_by
from actfer_jax.studies.results import figure, read_summaries

log = logging.getLogger(__name__)

CELLS, PROGRAMS = "cells", "programs"
_LOOK_EVERY = 1.0
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
      value: the best.
      means: the mean of the primary figure over the seeds of the search, by value.
    """

    value: float
    means: dict[float, float]


@dataclass
class Study:
    """A study on disk.

    Attributes:
      config: of the study.
      workdir: its directory.
      cells: all of its cells, each after those that it needs.
    """

    config: StudyConfig
    workdir: Path
    cells: list[Cell] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = cells_of(self.config)

    @classmethod
    def open(cls, config: StudyConfig, workdir: epath.Path) -> "Study":
        """
        Raises:
          UserError: the directory is in an object store, where cells cannot be locked.
        """
        if is_remote(workdir):
            raise UserError(f"--workdir={workdir}: a study needs a disk, which several machines may share")
        return cls(config, Path(absolute(workdir)))

    def directory(self, cell: Cell) -> Path:
        return self.workdir / CELLS / cell.name

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell is done, as the config asks for it."""
        noted = self.noted(cell)
        return noted is not None and CellState.read(self.directory(cell)).is_done(noted)

    def choice(self, method: MethodConfig) -> Choice | None:
        """What the search of a method found; None while it is not done."""
        searched = [cell for cell in self.cells if cell.method.name == method.name and cell.value is not None]
        if not all(map(self.is_done, searched)):
            return None
        found = dict[float, list[float]]()
        for cell in searched:
            assert cell.value is not None
            value = figure(read_summaries(self.directory(cell), self.config), self.config.primary_path)
            if value is None:
                raise UserError(
                    f"{self.config.primary} is not defined on the samples of {cell.name}: nothing can be chosen"
                )
            found.setdefault(cell.value, []).append(value)
        means = {value: sum(figures) / len(figures) for value, figures in found.items()}
        return Choice(max(sorted(means), key=lambda value: means[value]), means)

    def commands(self, cell: Cell, directory: Path) -> list[Command] | None:
        """The commands that make a cell in a directory; None while the search of its method is not done."""
        return self._commands(cell, directory, None if cell.start is None else self.directory(cell.start))

    def noted(self, cell: Cell) -> list[Command] | None:
        """The commands as `cell.json` has them, so that a study may be moved."""
        return self._commands(cell, PurePath("CELL"), None if cell.start is None else PurePath("START"))

    def _commands(self, cell: Cell, directory: PurePath, start: PurePath | None) -> list[Command] | None:
        choices = dict[str, float]()
        if cell.method.search.key and cell.value is None:
            if (choice := self.choice(cell.method)) is None:
                return None
            choices[cell.method.name] = choice.value
        return commands(self.config, cell, directory, start, choices)


def run_cells(study: Study, wanted: Sequence[Cell], processes: int, stop: Termination) -> dict[str, str]:
    """Runs the cells that are wanted and not done, as many at a time as there are processes.

    A cell waits for those that it needs, if they are wanted too. If another process works on a cell, it is waited for.

    Args:
      stop: when it is told to stop, the trainings save their state and end.

    Returns:
      Why each cell that was wanted is not done, by name. Without entries, all are done.
    """
    running, cores = Running(stop), cores_of(processes)
    problems, states = dict[str, str](), dict[str, bool | None]()
    for cell in wanted:
        noted, states[cell.name] = study.noted(cell), study.is_done(cell) or None
        try:
            CellState.read(study.directory(cell)).check(noted or ())
        except CellError as error:
            problems[cell.name], states[cell.name] = str(error), False
    line = _Line(study, wanted, processes)
    with ThreadPoolExecutor(processes) as pool:
        futures = dict[Future[bool], Cell]()
        while not stop.noticed:
            ready = []
            for cell in wanted:
                if states[cell.name] is not None or cell in futures.values():
                    continue
                if missing := [one.name for one in needed_by(cell, study.cells) if not _is_made(study, one, states)]:
                    if all(states.get(name, False) is False for name in missing):
                        problems[cell.name], states[cell.name] = f"it needs {missing[0]}, which is not done", False
                else:
                    ready.append(cell)
            for cell in ready[: processes - len(futures)]:
                futures[pool.submit(run_cell, study, cell, study.directory(cell), running, cores)] = cell
            if not futures:
                break
            line.show(states, list(futures.values()))
            for future in wait(futures, _LOOK_EVERY, FIRST_COMPLETED).done:
                cell = futures.pop(future)
                try:
                    states[cell.name] = True if future.result() else None
                except CellError as error:
                    problems[cell.name], states[cell.name] = str(error), False
                    said = "\n    ".join([str(error), *last_lines(study.directory(cell))])
                    log.warning("%s failed: %s", cell.name, said)
        if stop.noticed:
            running.stop()
            problems |= {name: "the study was told to stop" for name, state in states.items() if state is None}
    line.show(states, [], last=True)
    return problems


def _is_made(study: Study, cell: Cell, states: dict[str, bool | None]) -> bool:
    """Whether a cell that another one needs is done, by this study or, if it is not wanted here, by any."""
    return states[cell.name] is True if cell.name in states else study.is_done(cell)


def run_cell(study: Study, cell: Cell, directory: Path, running: Running, cores: "SimpleQueue[list[int]]") -> bool:
    """Runs the commands of a cell that are not done, on cores that no other cell has.

    Args:
      directory: where the cell is made.

    Returns:
      Whether it is done. If not, it was told to stop, or another process works on it.

    Raises:
      CellError: it failed.
    """
    own = cores.get()
    try:
        if own:
            os.sched_setaffinity(0, own)  # Of this thread, and of the processes that it starts.
        with locked(directory) as lock:
            if lock is None:
                time.sleep(_LOOK_EVERY)
                return False
            plan, noted = study.commands(cell, directory), study.noted(cell)
            assert plan is not None and noted is not None
            running.run(plan, noted, directory, lock, study.workdir / PROGRAMS)
            return True
    except Stopped:
        return False
    finally:
        cores.put(own)


def cores_of(processes: int) -> "SimpleQueue[list[int]]":
    """The cores of each process: they share this machine's evenly. Empty lists where the system cannot bind them."""
    shares = SimpleQueue[list[int]]()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for index in range(processes):
        shares.put(cores[index::processes] or cores[index % len(cores) :][:1] if cores else [])
    return shares


class _Line:
    """Logs how far the study is: cells, their rate, how long the rest will take, and where the running ones are."""

    def __init__(self, study: Study, wanted: Sequence[Cell], processes: int):
        self._study, self._wanted, self._processes = study, wanted, processes
        self._shown = 0.0

    def show(self, states: dict[str, bool | None], running: Sequence[Cell], *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown < _SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        done = [cell for cell in self._wanted if states[cell.name]]
        left = sum(state is None for state in states.values())
        took = [
            sum(command["seconds"] for command in CellState.read(self._study.directory(cell)).done.values())
            for cell in done
        ]
        mean = sum(took) / len(took) if took else float("inf")
        remaining = duration(mean * left / self._processes) if left else "0 s"
        log.info("%d/%d cells | %s a cell | %s left", len(done), len(self._wanted), duration(mean), remaining)
        for cell in running:
            said = last_lines(self._study.directory(cell), 1)
            log.info("  %s: %s", cell.name, said[0][:110] if said else "starts")
