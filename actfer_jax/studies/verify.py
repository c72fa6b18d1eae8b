"""Runs a sample of a study's cells again, and says whether they come out bit for bit."""

import logging
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from etils import epath

from actfer_jax.episodes.difference import episodes_difference
from actfer_jax.episodes.store import read_episodes
from actfer_jax.errors import UserError
from actfer_jax.evaluation.difference import differences
from actfer_jax.evaluation.results import RESULTS
from actfer_jax.parallel.hosts import Termination
from actfer_jax.studies.cell import CellError, Running
from actfer_jax.studies.grid import Cell, evaluations_of
from actfer_jax.studies.results import read_json
from actfer_jax.studies.run import Study, cores_of, run_cell

log = logging.getLogger(__name__)

VERIFY = "verify"


def verify(study: Study, count: int, processes: int, stop: Termination) -> dict[str, str]:
    """Runs cells again below `verify/`, and compares them with those of the study.

    Args:
      count: how many; which ones is drawn, the same for the same study.

    Returns:
      The first difference of each cell that did not come out bit for bit, by name.

    Raises:
      UserError: no cell is done.
    """
    done = [cell for cell in study.cells if study.is_done(cell)]
    if not done:
        raise UserError(f"{study.workdir} has no cell that is done: run the study first")
    chosen = random.Random(0).sample(done, min(count, len(done)))
    shutil.rmtree(study.workdir / VERIFY, ignore_errors=True)
    running, cores = Running(stop), cores_of(processes)
    with ThreadPoolExecutor(processes) as pool:
        places = [study.workdir / VERIFY / cell.name for cell in chosen]
        futures = [
            pool.submit(run_cell, study, cell, place, running, cores)
            for cell, place in zip(chosen, places, strict=True)
        ]
        while wait(futures, timeout=1.0).not_done:
            if stop.noticed:
                running.stop()
    problems = {}
    for cell, place, future in zip(chosen, places, futures, strict=True):
        try:
            why = first_difference(study, cell, place) if future.result() else "it was told to stop"
        except CellError as error:
            why = str(error)
        if why:
            problems[cell.name] = why
        log.info("%s: %s", cell.name, why or "the same, bit for bit")
    return problems


def first_difference(study: Study, cell: Cell, again: Path) -> str:
    """What of a cell another run of it does not repeat; "" if there is nothing."""
    return next(_differences(study, cell, study.directory(cell), again), "")


def _differences(study: Study, cell: Cell, first: Path, second: Path) -> Iterator[str]:
    if cell.method.train:
        one, other = (epath.Path(directory / "run") for directory in (first, second))
        yield from differences(one, other)
        for weights in sorted((one / "policy").glob("*.safetensors")):
            if weights.read_bytes() != (other / "policy" / weights.name).read_bytes():
                yield f"policy/{weights.name} has other bytes"
    for evaluation in evaluations_of(study.config, cell):
        one, other = (epath.Path(directory / evaluation.name) for directory in (first, second))
        if found := episodes_difference(list(read_episodes(one)), list(read_episodes(other))):
            yield f"{evaluation.name}: {found}"
        if read_json(one / RESULTS)["results"] != read_json(other / RESULTS)["results"]:
            yield f"{evaluation.name} has other figures"
