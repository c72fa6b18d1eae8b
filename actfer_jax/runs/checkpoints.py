"""Checkpoints of a run that are either whole or not used.

Orbax writes the arrays, in the background. It does not notice damaged files when it reads them back. So the size and
SHA-256 of every file of a step are written into the step just before a rename commits it. Every visible step has its
checksums, and a step that does not match them is set aside. Each process computes the checksums of the arrays that it
wrote; the processes share the checking. The commit itself writes two files that nothing restored depends on; their
checksums are added after it.

An object store cannot rename. There a step is written in its final place, and a marker object, written after the
checksums, commits it. A step without the marker is removed at the next start.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from actfer_jax.errors import UserError
from actfer_jax.files import absolute, disk_is_full, is_remote, reason, unused, write_atomically
from actfer_jax.parallel import hosts

log = logging.getLogger(__name__)

_CHECKSUMS = "checksums.json"
_PART = "checksums.process_{}.json"
_MARKER = "commit_success.txt"
_METADATA = "_CHECKPOINT_METADATA"
# The commit writes these, after the checksums of the other files. Nothing that is restored depends on them.
_LATE = (_METADATA, _MARKER)
_UNREAD = type(ocp.PLACEHOLDER).__name__
_BLOCK = 2**24
_PADDED = re.compile(r"0\d+")  # A copy by hand may have such a name. Names of steps have no leading zeros.


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written, or does not fit the run that reads it."""


class Checkpoints:
    """The steps saved under one directory: `directory/<step>/`.

    At the start every step is checked, newest first; arrays only until one step is sound. Damaged steps are moved to
    `directory/damaged/`: never loaded, never deleted.

    Args:
      directory: created if it does not exist.
      keep: how many of the newest steps to keep; older ones are deleted after a newer one is complete.
      best: how many of the steps with the highest `best_metric` to keep in addition.
      best_metric: one of the `metrics` given to `save`; "" for none.
      confirm: called on process 0 before a step is committed, in any thread; raises if the directory no longer belongs
        to this run.
      ready: called on every process before its part of a step counts as written, in any thread: waits for what else has
        to be on the disk by then. What it raises fails the save.

    Attributes:
      cut_off: the newest step whose saving a kill interrupted, 0 for none; its remains are removed.

    Raises:
      CheckpointError: the directory cannot be made, read or written.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int,
        best: int = 1,
        best_metric: str = "",
        confirm: Callable[[], None] = lambda: None,
        ready: Callable[[], None] = lambda: None,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}: without a checkpoint a run cannot be resumed")
        self.directory = absolute(directory)
        self._best_metric = best_metric
        self._confirm = confirm
        self._metric_seen = False
        self._saving: int | None = None
        policy = ocp.checkpoint_managers
        keepers: list[Any] = [policy.LatestN(keep)]
        if best_metric:
            keepers.append(policy.BestN(get_metric_fn=self._score, n=best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(keepers),
            best_fn=self._score if best_metric else None,
            # A step is renamed before its files are deleted, so a kill never leaves a visible step with files missing.
            # In an object store it does, but never in the newest step; the next save deletes the rest.
            todelete_subdir="deleted",
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        try:
            self.cut_off: int = hosts.from_first(self._tidy)
            self._set_damaged_aside()
            # All processes see the steps that process 0 kept.
            handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
            handlers.add("state", _StateSave, _StateHandler(ready))
            self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=handlers)
            if best_metric:
                self._metric_seen = any(self._manager.metrics(step) for step in self._manager.all_steps())
        except Exception as error:
            # Orbax reads object stores with Google's client, which has its own errors or may not be installed.
            if not isinstance(error, OSError) and not is_remote(self.directory):
                raise
            remedy = "pip install -e '.[tpu]'" if isinstance(error, ImportError) else "choose another workdir"
            message = f"checkpoints cannot be kept under {self.directory}: {error}; {remedy}"
            raise CheckpointError(message) from error

    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> bool:
        """Starts to save a step; returns as soon as the state may be donated or changed.

        Args:
          step: the step that the state belongs to.
          state: pytree of jax arrays (none of size 0), typed or raw PRNG keys, and Python numbers.
          extra: what else a resumed run needs, as JSON: data position, seeds, ... Tuples come back as lists.
          metrics: figures of this step. Those of a run's first save must have `best_metric`. A later step never counts
            as one of the best if it lacks the metric, or if the metric is not finite.

        Returns:
          False if this step exists already; it is left unchanged.

        Raises:
          CheckpointError: this save, or the one before it that ran in the background, failed; `extra` is not JSON; the
            metrics lack `best_metric`.
        """
        self.wait()
        if step in self._manager.all_steps():
            return False
        ranked = self._ranked(step, metrics or {})
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"step {step}: the extra data of a checkpoint must be JSON: {error}") from error
        notes = {"extra": dict(extra), "leaves": _leaves(state)}
        self._saving = step
        with self._errors_named():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=_StateSave(state), notes=ocp.args.JsonSave(notes)),
                metrics=ranked,
                force=True,
            )
        return True

    def restore_latest(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the newest step.

        Args:
          abstract_state: a pytree of the state's structure, of arrays or `jax.ShapeDtypeStruct`s (with shardings).
            The shardings need not be those that the state was saved with.

        Returns:
          (step, state, extra), bit for bit what was saved, or None if there is no step.

        Raises:
          CheckpointError: the step holds a state other than the one that `abstract_state` describes.
        """
        self.wait()
        step = hosts.from_first(self._manager.latest_step)
        return None if step is None else (step, *self.restore(step, abstract_state))

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Restores one of `steps()`, as `restore_latest` does; returns (state, extra)."""
        self.wait()
        return _restore(self.directory / str(step), abstract_state)

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          CheckpointError: the save failed. Its files are removed, and the steps before it stay.
        """
        with self._errors_named():
            self._manager.wait_until_finished()
            if self._saving is not None and hosts.is_first():
                _complete_checksums(self.directory / str(self._saving))
        self._saving = None
        if hosts.is_first():
            self._empty_deleted()

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # If an error ended the block, it is the one to show.
        with suppress(*([CheckpointError] if error else [])):
            self.close()

    def _ranked(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float] | None:
        """The metrics that are saved with a step, the same on all processes."""
        if not self._best_metric:
            return None
        self._metric_seen |= self._best_metric in metrics
        if not self._metric_seen:
            raise CheckpointError(
                f"config.checkpoint.best_metric is {self._best_metric!r}, but step {step} has no such metric; it has: "
                f"{', '.join(sorted(metrics)) or 'none'}"
            )
        value = float(metrics.get(self._best_metric, math.nan))
        return hosts.from_first(lambda: {self._best_metric: value} if math.isfinite(value) else {})

    def _score(self, metrics: Mapping[str, float]) -> float:
        return metrics.get(self._best_metric, -math.inf)

    def _write_checksums(self) -> None:
        """Called by Orbax, in its thread, between the last data file and the rename that commits the step.

        Orbax calls it on process 0 only, after all processes have written their files.
        """
        self._confirm()
        (step_directory,) = self._unfinished(str(self._saving))
        files: dict[str, Any] = {}
        for part in [path for path in step_directory.iterdir() if path.match(_PART.format("*"))]:
            files |= json.loads(part.read_text())
            part.unlink()
        known = {step_directory / name for name in (*files, *_LATE)}
        files |= _checksums(step_directory, set(_files(step_directory)) - known)
        (step_directory / _CHECKSUMS).write_text(json.dumps({"step": self._saving, "files": files}, indent=1))

    def _unfinished(self, step: str = r"\d+") -> list[epath.Path]:
        """The directories of steps that Orbax has not committed yet."""
        name = re.compile(rf"{step}(\.orbax-checkpoint-tmp.*)?")
        return [path for path in self.directory.iterdir() if name.fullmatch(path.name) and not _is_committed(path)]

    def _tidy(self) -> int:
        """Removes the remains of interrupted saves; returns `cut_off`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir():
            if _PADDED.fullmatch(path.name):  # Orbax would take it for a step.
                raise CheckpointError(
                    f"{path} has no name of a checkpoint, which would be {int(path.name)}: move it elsewhere, or "
                    "rename it if there is no other of that name"
                )
        unfinished = self._unfinished()
        for path in unfinished:
            path.rmtree()
        self._empty_deleted()
        return max((int(path.name.partition(".")[0]) for path in unfinished), default=0)

    def _set_damaged_aside(self) -> None:
        """Afterwards the newest step is sound. Older steps are sound except perhaps for their arrays."""
        sound = False
        for step in reversed(hosts.from_first(lambda: committed_steps(self.directory))):
            step_directory = self.directory / str(step)
            part = (jax.process_index(), jax.process_count())
            damages = hosts.gather(_damage(step_directory, arrays=not sound, part=part))
            if damage := next(filter(None, damages), ""):
                hosts.from_first(partial(self._set_aside, step_directory, damage))
            else:
                hosts.from_first(partial(_complete_checksums, step_directory))
                sound = True

    def _set_aside(self, step_directory: epath.Path, damage: str) -> None:
        aside = self.directory / "damaged"
        aside.mkdir(exist_ok=True)
        moved = unused(aside, step_directory.name)
        step_directory.rename(moved)
        log.error("checkpoint %s is damaged (%s): moved to %s, not used", step_directory, damage, moved)

    def _empty_deleted(self) -> None:
        (self.directory / "deleted").rmtree(missing_ok=True)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for one full disk.
            step, self._saving = self._saving, None
            if hosts.is_first():
                self._confirm()  # The files may belong to the run that has the directory now.
                with suppress(OSError):
                    for path in self._unfinished(str(step)):
                        path.rmtree()
            steps = committed_steps(self.directory)
            resume = f"the same command resumes from step {steps[-1]}" if steps else "the same command starts again"
            if disk_is_full(error):  # Orbax needs five hundred characters to say so.
                cause, remedy = "the disk is full", "free some space, then "
            else:
                cause, remedy = (str(error) or repr(error)).splitlines()[0][:300], ""
            message = f"step {step} could not be saved under {self.directory}: {cause}; {remedy}{resume}"
            raise CheckpointError(message) from error


class _StateHandler(ocp.StandardCheckpointHandler):  # type: ignore[misc]  # their library has no types
    """Orbax's handler; after a save each process computes the checksums of the arrays that it wrote.

    Args:
      ready: as for `Checkpoints`.
    """

    def __init__(self, ready: Callable[[], None]):
        super().__init__()
        self._ready = ready

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[ocp.future.Future]:
        writes = await super().async_save(directory, *args, **kwargs) or []
        path = getattr(directory, "path", directory)  # Orbax may not have made the directory yet.

        def finish() -> None:
            self._ready()
            _write_own_checksums(path)

        return [ocp.future.ChainedFuture(writes, finish)]


@dataclass
class _StateSave(ocp.args.StandardSave):  # type: ignore[misc]  # their library has no types
    """A state to save with `_StateHandler`."""


def read_checkpoint(
    directory: epath.PathLike, abstract_state: Any, step: int | None = None
) -> tuple[int, Any, dict[str, Any]]:
    """Restores a step of a run, which may still be running. Changes nothing in its directory.

    Args:
      directory: the directory of the run's `Checkpoints`.
      abstract_state: as in `Checkpoints.restore_latest`. Leaves that are `...` are not read, and stay `...`.
      step: which one; None for the newest that is not damaged.

    Returns:
      (step, state, extra).

    Raises:
      CheckpointError: the step does not exist, is damaged, or holds a state other than `abstract_state` describes.
    """
    directory = absolute(directory)
    steps = committed_steps(directory)
    there = f"there are: {', '.join(map(str, steps))}" if steps else "there is none"
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory} has no checkpoint of step {step}; {there}")
    for candidate in reversed(steps) if step is None else [step]:
        step_directory = directory / str(candidate)
        try:
            damage = _damage(step_directory)
            if not damage:
                return candidate, *_restore(step_directory, abstract_state)
        except Exception as error:
            if step_directory.exists():
                raise
            message = f"checkpoint {step_directory} was deleted by its run while it was read; choose a newer one"
            raise CheckpointError(message) from error
        log.error("checkpoint %s is damaged (%s): not used", step_directory, damage)
    raise CheckpointError(f"{directory} has no checkpoint that can be used; {there}")


def _restore(step_directory: epath.Path, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """(state, extra) of a step."""
    notes = ocp.JsonCheckpointHandler().restore(step_directory / "notes")
    saved, wanted = notes["leaves"], _leaves(abstract_state)
    names = saved.keys() | wanted.keys()
    different = sorted(name for name in names if name not in saved or wanted.get(name) not in (saved[name], _UNREAD))
    if different:
        first = [f"{k} ({saved.get(k, 'absent')} saved, {wanted.get(k, 'absent')} wanted)" for k in different[:5]]
        raise CheckpointError(
            f"checkpoint {step_directory} is of another model or optimizer, {len(different)} arrays differ: "
            f"{', '.join(first)}; use the config that it was saved with, or another workdir"
        )
    arguments = ocp.args.PyTreeRestore(abstract_state, restore_args=jax.tree.map(_restore_arguments, abstract_state))
    return ocp.PyTreeCheckpointHandler().restore(step_directory / "state", args=arguments), notes["extra"]


def _restore_arguments(leaf: Any) -> Any:
    return ocp.RestoreArgs() if leaf is ocp.PLACEHOLDER else ocp.checkpoint_utils.construct_restore_args(leaf)


def committed_steps(directory: epath.Path) -> list[int]:
    """The committed steps, in order. Their files are not checked."""
    return sorted(int(path.name) for path in directory.iterdir() if _is_committed(path)) if directory.exists() else []


def _is_committed(path: epath.Path) -> bool:
    named = path.name.isdecimal() and not _PADDED.fullmatch(path.name)
    return named and (not is_remote(path) or (path / _MARKER).exists())


def _leaves(state: Any) -> dict[str, str]:
    """A description of each leaf of a state, by its path: "float32[2, 3]", or the type of a number or placeholder."""

    def describe(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__

    return {jax.tree_util.keystr(path): describe(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _checksum(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _checksums(directory: epath.Path, paths: Iterable[epath.Path]) -> dict[str, dict[str, Any]]:
    """The checksums of files, by their paths relative to the directory."""
    paths = sorted(paths)
    with ThreadPoolExecutor() as pool:
        sums = pool.map(_checksum, paths)
        return {path.relative_to(directory).as_posix(): sum for path, sum in zip(paths, sums, strict=True)}


def _write_own_checksums(state_directory: epath.Path) -> None:
    """Writes the checksums of this process's array files; process 0 collects them.

    A process writes no array files if all its arrays are replicas of other processes' arrays. The step's directory may
    still have its temporary name.
    """
    index = jax.process_index()
    name = f"ocdbt.process_{index}"
    written = state_directory / name
    paths = list(_files(written)) if written.exists() else []
    sums = {f"state/{name}/{path}": sum for path, sum in _checksums(written, paths).items()}
    (state_directory.parent / _PART.format(index)).write_text(json.dumps(sums))


def _complete_checksums(step_directory: epath.Path) -> None:
    """Adds the checksums of the files that the commit wrote, if the record lacks them."""
    record = json.loads((step_directory / _CHECKSUMS).read_text())
    missing = [name for name in _LATE if name not in record["files"]]
    if missing:
        record["files"] |= {name: _checksum(step_directory / name) for name in missing}
        write_atomically(step_directory / _CHECKSUMS, json.dumps(record, indent=1))


def _damage(step_directory: epath.Path, arrays: bool = True, part: tuple[int, int] = (0, 1)) -> str:
    """Why a step must not be used; "" if every checked file is unchanged since the step was saved.

    After a kill right after the commit, the files that the commit wrote have no checksums yet. They must exist.

    Args:
      arrays: whether to check the arrays too, which are nearly all of the bytes.
      part: (index, parts): check only the files of part `index` of `parts` parts.
    """
    try:
        record = json.loads((step_directory / _CHECKSUMS).read_text())
        step, files = record["step"], dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_CHECKSUMS} cannot be read: {error}"
    if str(step) != step_directory.name:
        return f"it is step {step} by its {_CHECKSUMS}"

    def check(name: str) -> str:
        try:
            if name == _METADATA:
                json.loads((step_directory / name).read_text())
            found = _checksum(step_directory / name)
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {reason(error)}"
        return "" if found == files.get(name, found) else f"{name} has changed"

    index, parts = part
    names = sorted(name for name in {*files, *_LATE} if arrays or not name.startswith("state/"))[index::parts]
    with ThreadPoolExecutor() as pool:
        return next((damage for damage in pool.map(check, names) if damage), "")
