"""The metrics, progress, alarms and manifest of a run.

Files in a run's workdir: `metrics.jsonl` (one JSON object per logged step), `manifest.json`, TensorBoard's event files.
"""

import fnmatch
import importlib.metadata
import itertools
import json
import logging
import math
import os
import platform
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import ml_collections
import numpy as np
import psutil
from clu import metric_writers
from etils import epath

import actfer_jax
from actfer_jax.config import with_new_names
from actfer_jax.errors import UserError
from actfer_jax.files import FILE_ERRORS, is_remote, reason, write_atomically
from actfer_jax.runs.progress import duration
from actfer_jax.runs.provenance import git_state

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
# A run may resume with other values of these config keys. Except for rounding they do not change what a step computes.
# They change the number of steps (and so the schedules), where steps are computed, and what is kept.
HOST_KEYS = ("data.cache_directory", "evaluation.data.cache_directory", "rollout.tool_threads")
FREE_KEYS = ("steps", "checkpoint.*", "logging.*", "mesh.*", *HOST_KEYS)
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers", "tensorflow-datasets"),
    *("dlib", "dlib-bin"),
)
_COMPILED = "/jax/core/compile/backend_compile_duration"


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


def write_evaluation(workdir: epath.PathLike, step: int, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Shows the figures of an evaluation in TensorBoard, as `eval/NAME` and `eval/CONTROL/NAME`.

    Args:
      workdir: the run's.
      step: the step after which the policy was evaluated.
      summaries: `evaluation.metrics.summarise` of each control.
    """
    numbers = {}
    for control, summary in summaries.items():
        prefix = "eval" if control == "normal" else f"eval/{control}"
        for name in ("accuracy", "macro_f1", "au_f1_sample"):
            numbers[f"{prefix}/{name}"] = summary[name]["value"]
        for stratum, figures in summary["strata"].items():
            for name in ("accuracy", "zoom_rate"):
                numbers[f"{prefix}/{name}/{stratum}"] = figures[name]["value"]
    writer = metric_writers.SummaryWriter(os.fspath(workdir))
    writer.write_scalars(step, {name: value for name, value in numbers.items() if value is not None})
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
        self._tensorboard.write_scalars(step, numbers)

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

    def write_hparams(self, config: Mapping[str, Any]) -> None:
        """Shows the config in TensorBoard's table of runs. Call it once per writer."""
        flat = _flatten(_plain_config(config))
        shown = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in flat.items()}
        self._tensorboard.write_hparams(shown)

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
      start_step: the step that the run starts from.
      clock: a clock in seconds.
    """

    def __init__(self, num_steps: int, start_step: int = 0, clock: Callable[[], float] = time.monotonic):
        self._num_steps = num_steps
        self._clock = clock
        self._start = (start_step, clock())
        self._seen: deque[tuple[int, float]] = deque(maxlen=20)

    def update(self, step: int, shown: Mapping[str, float] | None = None) -> str:
        """Logs and returns one line: step, seconds per step, time left, and the figures in `shown`."""
        self._seen.append((step, self._clock()))
        # The rate is that of the last steps. From the second on it leaves out the first step, which compiles.
        first_step, first_time = self._seen[0] if len(self._seen) > 1 else self._start
        pace = (self._seen[-1][1] - first_time) / max(step - first_step, 1)
        left = duration(pace * (self._num_steps - step))
        parts = [f"step {step}/{self._num_steps}", f"{pace:.2f} s/step", f"{left} left"]
        parts += [f"{name} {value:.4g}" for name, value in (shown or {}).items()]
        line = " | ".join(parts)
        log.info("%s", line)
        return line


class Alarms:
    """Watches the metrics of a reinforcement-learning run for common failures.

    - The zoom rate of a class, over its last 10 logged values, is under 2% or over 98%: the policy no longer decides.
    - Entropy is under half of its highest value in the last 50 steps.
    - More than 10% of the rollouts are truncated.
    - The format reward is above 0.95 over 50 steps, while accuracy is below 80% and rose by less than a point: only the
      form is learned.

    An alarm goes off again only after its cause has been absent for 20 steps.
    """

    _STEPS = 50
    _QUIET = 20

    def __init__(self) -> None:
        self._zoom_rates: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=10))
        self._entropies: deque[tuple[int, float]] = deque()
        self._scores: deque[tuple[int, float, float]] = deque()
        self._last: dict[str, int] = {}

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Takes the metrics of a step; returns the messages of the alarms that they set off."""
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        checks = (
            self._zooms(metrics),
            self._entropy(step, metrics),
            self._truncation(metrics),
            self._form(step, metrics),
        )
        found = dict(itertools.chain(*checks))
        new = [message for name, message in found.items() if step - self._last.get(name, -math.inf) > self._QUIET]
        self._last |= dict.fromkeys(found, step)
        return new

    def _zooms(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for name, value in metrics.items():
            if name.startswith("zoom_rate/class/"):
                self._zoom_rates[name].append(value)
        for name, rates in self._zoom_rates.items():
            rate = sum(rates) / len(rates)
            if len(rates) == rates.maxlen and not 0.02 <= rate <= 0.98:
                yield (
                    name,
                    f"{name} has been {rate:.1%}: the policy no longer decides when to look closer at this class",
                )

    def _entropy(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if "policy/entropy" not in metrics:
            return
        self._entropies.append((step, metrics["policy/entropy"]))
        while self._entropies[0][0] < step - self._STEPS:
            self._entropies.popleft()
        now = metrics["policy/entropy"]
        then, highest = max(self._entropies, key=lambda seen: seen[1])
        if now < highest / 2:
            yield (
                "entropy",
                f"policy/entropy fell from {highest:.3g} at step {then} to {now:.3g}: the policy may collapse",
            )

    def _truncation(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        share = metrics.get("length/truncated", 0.0)
        if share > 0.1:
            yield (
                "truncated",
                f"length/truncated is {share:.1%}: give turns more room, or look at what the policy writes",
            )

    def _form(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if not {"reward/format", "reward/emotion"} <= metrics.keys():
            return
        self._scores.append((step, metrics["reward/format"], metrics["reward/emotion"]))
        while len(self._scores) > 1 and self._scores[1][0] <= step - self._STEPS:
            self._scores.popleft()
        if step - self._scores[0][0] < self._STEPS:
            return
        _, formats, accuracies = zip(*self._scores, strict=True)
        half = len(accuracies) // 2
        before, after = np.mean(accuracies[:half]), np.mean(accuracies[half:])
        if np.mean(formats) > 0.95 and after - before < 0.01 and after < 0.8:
            went = f"reward/emotion went from {before:.3f} to {after:.3f} in {self._STEPS} steps"
            yield "form", f"reward/format is {np.mean(formats):.3f} while {went}: only the form is learned"


def write_manifest(workdir: epath.PathLike, config: Mapping[str, Any], prompts_hash: str) -> dict[str, Any]:
    """Writes `manifest.json`: config, seed, versions, git commit (null outside a checkout), devices, prompts' hash.

    Returns:
      The manifest. Two of its keys are kept over all starts of a run: `started`, the time of the first start in seconds
      since 1970, and the smallest `checkpoint_every`, the steps between two checkpoints.
    """
    commit, modified = git_state()
    devices = jax.devices()
    plain = _plain_config(config)
    path = epath.Path(workdir) / MANIFEST
    before = json.loads(path.read_text()) if path.exists() else {}
    every = plain.get("checkpoint", {}).get("every")
    manifest = {
        "started": before.get("started", time.time()),
        "checkpoint_every": min(before.get("checkpoint_every", every), every) if every else None,
        "config": plain,
        "seed": plain.get("seed"),
        "versions": {"python": platform.python_version(), "actfer_jax": actfer_jax.__version__, **_versions()},
        "git_commit": commit,
        "git_modified": modified,
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
        "prompts_hash": prompts_hash,
    }
    write_atomically(path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def manifest_config(workdir: epath.PathLike) -> dict[str, Any]:
    """The config of the run in a workdir, from its manifest.

    Sections and keys that older versions named otherwise get their new names (`config.with_new_names`). So does the
    cache of rendered faces, which was `data.directory`.

    Raises:
      ValueError, KeyError: the file is not a manifest.
      OSError, tf.errors.OpError: the file does not exist.
    """
    path = epath.Path(workdir) / MANIFEST
    config = json.loads(path.read_text())["config"]
    if not isinstance(config, dict):
        raise ValueError(f"its config is {config!r}")
    for holder in (config, config.get("evaluation")):
        data = holder.get("data") if isinstance(holder, dict) else None
        if isinstance(data, dict) and data.get("name") == "synth_faces" and data.get("directory"):
            log.info("%s: data.directory, %r, is read as data.cache_directory", path, data["directory"])
            data["cache_directory"], data["directory"] = data["directory"], ""
    return dict(with_new_names(config))


def check_workdir(workdir: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Makes the workdir, and checks that this process can write to it and that the run may resume the one in it.

    `FREE_KEYS` of the config may differ from those of the run in the workdir, and `HOST_KEYS` may differ between hosts.

    Raises:
      WorkdirError: it cannot be made or written, or holds a run of another config; the message names the keys.
    """
    workdir = epath.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        write_atomically(probe, b"")
        probe.unlink()
    except FILE_ERRORS as error:
        message = f"workdir {workdir} cannot be written ({reason(error)}): choose another with --workdir"
        raise WorkdirError(message) from error
    path = workdir / MANIFEST
    if not path.exists():
        return
    try:
        there = _flatten(manifest_config(workdir))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WorkdirError(f"{path} cannot be read: it is not a manifest of a run; choose another --workdir") from error
    here = _flatten(_plain_config(config))
    keys = sorted(there.keys() | here.keys())
    # On hosts other than the first, the manifest is already that of this start.
    free = HOST_KEYS if jax.process_index() > 0 else FREE_KEYS
    different = [key for key in keys if there.get(key) != here.get(key) and not _matches(key, free)]
    # A start that failed before its first step leaves only a manifest: the first process may begin anew.
    begun = any((workdir / name).exists() for name in (METRICS, EVALUATION))
    if different and (begun or jax.process_index() > 0):
        listed = [f"{k} ({there.get(k, 'absent')!r} there, {here.get(k, 'absent')!r} here)" for k in different[:10]]
        more = f" and {len(different) - 10} more" if len(different) > 10 else ""
        raise WorkdirError(
            f"workdir {workdir} holds a run of another config: {', '.join(listed)}{more}; "
            "use the values that are there, or another --workdir"
        )


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in JSON's types: nested dicts, lists, numbers, strings."""
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    return dict(with_new_names(json.loads(json.dumps(nested))))


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _versions() -> dict[str, str]:
    installed = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
