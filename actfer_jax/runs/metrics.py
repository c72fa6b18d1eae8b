"""The metrics and progress of a run.

Files in a run's workdir: `metrics.jsonl` (one JSON object per logged step), `evaluation.json`, and TensorBoard's event
files.
"""

import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import jax
import numpy as np
import psutil
from clu import metric_writers
from etils import epath
from tensorboard.plugins.custom_scalar import metadata as custom_scalars

from actfer_jax.errors import UserError
from actfer_jax.files import is_remote, write_atomically
from actfer_jax.progress import duration
from actfer_jax.runs.board import layout, plain_name

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_PROGRAM = re.compile(r"jit\(_?(prefill|decode|fill|update|log_probs)\)")


class WorkdirError(UserError, ValueError):
    """A workdir that this run cannot use."""


def is_timing(name: str) -> bool:
    """Whether a metric measures the machine (`perf/*`, `*/latency_*`). All others repeat exactly with the seed."""
    return name.startswith("perf/") or name.rsplit("/", 1)[-1].startswith("latency_")


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, in order. A last line that a kill cut short is left out.

    Raises:
      WorkdirError: a line is not a record; the message gives its number.
      OSError: the file does not exist.
    """
    path = epath.Path(workdir) / METRICS
    return [record for record, _ in complete_lines(path)]


def complete_lines(path: epath.Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The records of a metrics file, as `read_metrics` returns them, each with its line. Raises the same."""
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            message = f"{path}, line {number} is not a metrics record: remove the line or use another workdir"
            raise WorkdirError(message) from error
        yield record, line + b"\n"


def read_evaluations(workdir: epath.PathLike) -> dict[str, Any]:
    """The content of `evaluation.json`: {"before": {"step": ..., "results": ...}, ...}; empty without a file.

    Raises:
      WorkdirError: the file is damaged.
    """
    path = epath.Path(workdir) / EVALUATION
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
        # Evaluations of older versions have no strata, and are made anew.
        return {when: run for when, run in found.items() if run["step"] >= 0 and "strata" in run["results"]["normal"]}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{path} cannot be read ({error!r}): move it away, and the same command evaluates anew"
        ) from error


def write_evaluation(
    workdir: epath.PathLike, step: int, summaries: Mapping[str, Mapping[str, Any]], prefix: str = "eval"
) -> None:
    """Shows the figures of an evaluation in TensorBoard, by the plain names (`board.plain_name`) of `eval/NAME`,
    `eval/CONTROL/NAME` and `eval/gain/CONTROL`, which is what the accuracy loses under the control.

    Args:
      workdir: the run's.
      step: the step after which the policy was evaluated.
      summaries: `evaluation.metrics.summarise` of each control.
      prefix: in place of "eval".
    """
    numbers = {}
    normal = summaries["normal"]["accuracy"]["value"]
    for control, summary in summaries.items():
        group = prefix if control == "normal" else f"{prefix}/{control}"
        for name in ("accuracy", "macro_f1", "au_f1_sample"):
            numbers[f"{group}/{name}"] = summary[name]["value"]
        for stratum, figures in summary["strata"].items():
            for name in ("accuracy", "zoom_rate"):
                numbers[f"{group}/{name}/{stratum}"] = figures[name]["value"]
        accuracy = summary["accuracy"]["value"]
        if control != "normal" and None not in (normal, accuracy):
            numbers[f"{prefix}/gain/{control}"] = normal - accuracy
    writer = metric_writers.SummaryWriter(os.fspath(workdir))
    writer.write_scalars(step, {plain_name(name): value for name, value in numbers.items() if value is not None})
    writer.close()


class MetricWriter:
    """Writes `metrics.jsonl` and TensorBoard files.

    A record is `{"step": n, name: number, ...}`. Names are sorted, floats have all their digits, and values that are
    not finite are null. Write the records of a step before its checkpoint: a resumed run starts after the checkpoint,
    and `rewind.rewind` removes the records of later steps.

    A local file is appended to. An object in an object store cannot be: all lines are kept in memory, and the object is
    written anew with each record.

    Args:
      workdir: an existing directory; the records in it stay.

    Raises:
      OSError: the file cannot be written.
      WorkdirError: the existing file is not a metrics file.
    """

    def __init__(self, workdir: epath.PathLike):
        self._path = epath.Path(workdir) / METRICS
        self._last_step: int | None = None
        self._lines: list[bytes] = []
        if self._path.exists():
            for record, line in complete_lines(self._path):
                self._lines.append(line)
                self._last_step = record["step"]
        write_atomically(self._path, b"".join(self._lines))
        self._file = None if is_remote(self._path) else open(self._path, "ab", buffering=0)
        self._tensorboard = metric_writers.AsyncWriter(metric_writers.SummaryWriter(os.fspath(workdir)))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the one record of a step.

        Args:
          step: greater than the step of every record before.
          metrics: numbers, or arrays of one number, by name.

        Raises:
          ValueError: a value is not a number, or the step has been written.
          OSError: the disk is full.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} after those of step {self._last_step}: write steps once, in order"
            )
        numbers = {name: _number(name, metrics[name]) for name in sorted(metrics)}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._append(json.dumps({"step": step, **finite}, allow_nan=False).encode() + b"\n")
        self._last_step = step
        self._tensorboard.write_scalars(step, {plain_name(name): value for name, value in numbers.items()})

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._lines.append(line)
            return write_atomically(self._path, b"".join(self._lines))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from error

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Shows images, uint8 [H, W, 3] or [N, H, W, 3], in TensorBoard."""
        self._tensorboard.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Shows texts (Markdown) in TensorBoard."""
        self._tensorboard.write_texts(step, texts)

    def write_histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Shows how the values of a step are spread, in TensorBoard, by plain names."""
        self._tensorboard.write_histograms(step, {plain_name(name): array for name, array in values.items()})

    def write_board(self, hparams: Mapping[str, Any]) -> None:
        """Shows values of the config in TensorBoard's table of runs, and the charts of `board.LAYOUT`. Call it once per
        writer."""
        shown = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in hparams.items()}
        self._tensorboard.write_hparams(shown)
        tag = custom_scalars.CONFIG_SUMMARY_TAG
        self._tensorboard.write_summaries(
            0, {tag: layout().SerializeToString()}, {tag: custom_scalars.create_summary_metadata()}
        )

    def close(self) -> None:
        """Writes out what is still queued."""
        if self._file is not None:
            self._file.close()
        self._tensorboard.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if name == "step" or array.size != 1 or array.dtype.kind in "OSUMmc":
        raise ValueError(f"metric {name!r} is not a number under a name of its own: {value!r}")
    item = array.item()
    return int(item) if isinstance(item, bool | int) else float(item)


@contextmanager
def compilations_told() -> Iterator[None]:
    """Logs a line as jax begins to compile a program of a rollout or an update, or to read it from its cache. With a
    large model that takes minutes."""

    def tell(event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs
        # A program has just been lowered: its compilation is next.
        if event == _LOWERED and (program := _PROGRAM.fullmatch(str(details.get("fun_name")))):
            log.info("compiling %s (once per shape)", program[1])

    jax.monitoring.register_event_duration_secs_listener(tell)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(tell)


class ResourceMeter:
    """Counts the process's compilations and reads its memory, as `perf/*` metrics."""

    def __init__(self) -> None:
        self._compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs, details
        self._compilations += event == _COMPILED

    def metrics(self) -> dict[str, float]:
        """`perf/compilations`: programs compiled, or read from the compilation cache, since this meter was made.
        `perf/host_rss`: bytes. `perf/hbm_peak`: bytes on the fullest local device, if the devices report it."""
        figures = {"perf/compilations": self._compilations, "perf/host_rss": psutil.Process().memory_info().rss}
        stats = [device.memory_stats() for device in jax.local_devices()]
        peaks = [found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found]
        return {**figures, "perf/hbm_peak": max(peaks)} if peaks else figures

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)


class Goodput:
    """The share of a run's time, over all its starts, that went into steps which were not lost.

    Args:
      started: when the run first started, seconds since 1970.
      productive: seconds in steps so far. Keep it in the checkpoint, so that steps lost after it do not count.
      clock: seconds since 1970.
    """

    def __init__(self, started: float, productive: float = 0.0, clock: Callable[[], float] = time.time):
        self._started, self.productive, self._clock = started, productive, clock

    def add(self, seconds: float) -> None:
        """Counts a step."""
        self.productive += seconds

    def share(self) -> float:
        """Productive over elapsed time, since the first start."""
        return self.productive / max(self._clock() - self._started, 1e-9)


class Progress:
    """Logs how far a run is, how fast it goes and how long the rest will take.

    Args:
      num_steps: the last step of the run.
      clock: a clock in seconds.
    """

    def __init__(self, num_steps: int, clock: Callable[[], float] = time.monotonic):
        self._num_steps = num_steps
        self._clock = clock
        self._seen: deque[tuple[int, float]] = deque(maxlen=21)

    def count(self, step: int) -> None:
        """Notes that a step is done."""
        self._seen.append((step, self._clock()))

    def tell(self, shown: Mapping[str, float] | None = None) -> str:
        """Logs and returns one line: the last step, seconds per step, time left, and the figures in `shown`.

        The rate is that of the last 20 steps. It leaves out the first step of a start, which compiles, and so does not
        exist before the second.
        """
        (first_step, first_time), (step, now) = self._seen[0], self._seen[-1]
        parts = [f"step {step}/{self._num_steps}"]
        if step > first_step:
            pace = (now - first_time) / (step - first_step)
            parts += [f"{pace:.2f} s/step", f"{duration(pace * (self._num_steps - step))} left"]
        parts += [f"{name} {value:.4g}" for name, value in (shown or {}).items()]
        line = " | ".join(parts)
        log.info("%s", line)
        return line
