"""Takes a workdir back to the step that its run goes on from.

The run does the later steps again, so what it wrote of them must go. After a kill it is deleted. Where there is more of
it than a kill can leave, checkpoints were removed or damaged: then it is moved to `superseded/steps-FIRST-LAST/` in the
workdir.

TensorBoard's files are taken back too, and get the steps of `metrics.jsonl` that a kill kept from them.
"""

import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from clu import metric_writers
from etils import epath
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from actfer_jax.episodes.store import remove, shards, step_of
from actfer_jax.files import unused, write_atomically
from actfer_jax.runs.board import plain_name
from actfer_jax.runs.metrics import EVALUATION, METRICS, complete_lines, read_evaluations

log = logging.getLogger(__name__)

SUPERSEDED = "superseded"
POLICY_NAME = "policy"
_THREADS = 16  # With an object store they mostly wait.


def rewind(workdir: epath.PathLike, step: int, explained: int) -> None:
    """Removes or moves what a run has written of the steps after one.

    Args:
      workdir: of the run; nothing else writes there.
      step: the last to keep, which has been restored; 0 where the run begins anew.
      explained: the last step of which a kill may have left something.

    Raises:
      OSError: a file cannot be read, written or moved.
      WorkdirError: a line of `metrics.jsonl` is damaged.
    """
    workdir = epath.Path(workdir)
    records = list(complete_lines(workdir / METRICS)) if (workdir / METRICS).exists() else []
    evaluations = read_evaluations(workdir)
    later_records = [line for record, line in records if record["step"] > step]
    later_evaluations = {when: run for when, run in evaluations.items() if run["step"] > step}
    later_shards = shards(workdir, after=step)
    steps = [record["step"] for record, _ in records] + [run["step"] for run in evaluations.values()]
    last = max([*steps, *map(step_of, later_shards)], default=0)

    aside = None
    if last > explained:
        aside = unused(workdir / SUPERSEDED, f"steps-{step + 1}-{last}")
        aside.mkdir(parents=True)
        # First what is only copied here: a kill in between loses nothing, the next start moves the rest.
        if later_records:
            write_atomically(aside / METRICS, b"".join(later_records))
        if later_evaluations:
            write_atomically(aside / EVALUATION, _json(later_evaluations))
        if (workdir / POLICY_NAME).exists():
            (workdir / POLICY_NAME).rename(aside / POLICY_NAME)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(partial(remove, aside=aside and aside / "episodes"), later_shards))
    _rewind_events(workdir, step, aside, [record for record, _ in records if record["step"] <= step])
    if later_evaluations:
        kept = {when: run for when, run in evaluations.items() if run["step"] <= step}
        write_atomically(workdir / EVALUATION, _json(kept))
    if later_records:
        write_atomically(workdir / METRICS, b"".join(line for record, line in records if record["step"] <= step))

    if aside:
        names = ", ".join(sorted(path.name for path in aside.iterdir()))
        log.warning(
            "what there is of steps %d to %d goes further than %s, by more than a kill explains (were checkpoints "
            "removed?): moved to %s (%s)",
            step + 1,
            last,
            f"the checkpoint of step {step}" if step else "any checkpoint that is left",
            aside,
            names,
        )
    elif last > step:
        log.info("steps %d to %d, which no checkpoint has, are done again", step + 1, last)


def _json(evaluations: dict[str, Any]) -> str:
    return json.dumps(evaluations, indent=1) + "\n"


def _rewind_events(workdir: epath.Path, step: int, aside: epath.Path | None, records: Sequence[dict[str, Any]]) -> None:
    """Takes TensorBoard's files back to a step, and adds to them what is missing of the records up to it."""
    shown: set[tuple[int, str]] = set()
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        events = [(Event.FromString(data), data) for data in RawEventFileLoader(os.fspath(path)).Load()]
        kept = [(event, data) for event, data in events if event.step <= step]
        shown |= {(event.step, value.tag) for event, _ in kept for value in event.summary.value}
        if len(kept) == len(events):
            continue
        if aside is not None:
            # With its version, which is its first event.
            later = [data for event, data in events if event.step > step]
            write_atomically(aside / path.name, _framed([events[0][1], *later]))
        write_atomically(path, _framed([data for _, data in kept]))
    missing = {
        record["step"]: {
            plain_name(name): float("nan") if value is None else value
            for name, value in record.items()
            if name != "step" and (record["step"], plain_name(name)) not in shown
        }
        for record in records
    }
    if any(missing.values()):
        writer = metric_writers.SummaryWriter(os.fspath(workdir))
        for number, metrics in missing.items():
            writer.write_scalars(number, metrics)
        writer.close()


def _framed(events: Sequence[bytes]) -> bytes:
    """Events as a file holds them."""
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in events:
        writer.write(event)
    return file.getvalue()
