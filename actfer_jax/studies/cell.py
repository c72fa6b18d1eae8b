"""One cell on disk: its commands are run one after the other, and each is noted when it is done.

A lock that the commands inherit is held as long as any process works on the cell. So a study that was killed finds out
whether a training of its goes on, and two studies in one directory never run the same cell.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actfer_jax.errors import UserError
from actfer_jax.files import write_atomically
from actfer_jax.parallel.hosts import Termination
from actfer_jax.studies.grid import Command

CELL, LOG, _LOCK = "cell.json", "log.txt", "lock"
_STOPPED = 75  # EX_TEMPFAIL: the status of a training that was told to stop.
_LAST_LINES = 12


class CellError(UserError):
    """A cell cannot go on; the message says why."""


class Stopped(Exception):
    """A cell was told to stop before it was done."""


@dataclass
class CellState:
    """What is known of a cell, in `cell.json`.

    Attributes:
      done: of each command that is done, by name: `arguments`, with CELL and START in place of directories; `seconds`
        and `cpu_seconds`; `cores`, how many it had.
      failed: the command that failed at the last try, and its status; "" for none.
    """

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str = ""

    @classmethod
    def read(cls, directory: Path) -> "CellState":
        path = directory / CELL
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise CellError(f"{path} is damaged ({error}); delete {directory}, and the study runs it anew") from error

    def write(self, directory: Path) -> None:
        write_atomically(directory / CELL, json.dumps(vars(self), indent=1) + "\n")

    def is_done(self, plan: Sequence[Command]) -> bool:
        """Whether all commands are done, with these arguments."""
        return all(self.done.get(one.name, {}).get("arguments") == list(one.arguments) for one in plan)

    def check(self, plan: Sequence[Command]) -> None:
        """
        Raises:
          CellError: a command was done with other arguments; the message says with which.
        """
        for command in plan:
            before, now = self.done.get(command.name, {}).get("arguments"), list(command.arguments)
            if before is not None and before != now:
                was, asked = (
                    ", ".join(argument for argument in one if argument not in other) or "without"
                    for one, other in ((before, now), (now, before))
                )
                raise CellError(
                    f"its {command.name} was run with {was}, and the config asks for {asked}: take another --workdir, "
                    "or delete the cell's directory"
                )


@contextmanager
def locked(directory: Path) -> Iterator[int | None]:
    """The lock of a cell, as a file descriptor for its commands; None if some process has it."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)  # Not LOCK_UN, which would take the lock from a command that still runs.


class Running:
    """The processes of a study's cells. No more are started once the study is told to stop.

    Args:
      stop: whether it is.
    """

    def __init__(self, stop: Termination) -> None:
        self._stop = stop
        self._processes = set[int]()

    def stop(self) -> None:
        """Tells all processes to stop: a training saves its state and ends."""
        for process in list(self._processes):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def run(
        self, plan: Sequence[Command], noted: Sequence[Command], directory: Path, lock: int, programs: Path
    ) -> None:
        """Runs the commands of a cell that are not done.

        Args:
          plan: the commands; noted: the same as they are noted in `cell.json`.
          lock: the cell's, inherited by the commands.
          programs: the directory that keeps compiled programs.

        Raises:
          CellError: a command failed, or was done with other arguments.
          Stopped: the study was told to stop.
        """
        state = CellState.read(directory)
        state.check(noted)
        state.failed = ""
        for command, note in zip(plan, noted, strict=True):
            if command.name in state.done:
                continue
            if self._stop.noticed:
                raise Stopped
            began = time.monotonic()
            status, cpu_seconds = self._call(command, directory, lock, programs)
            if status and self._stop.noticed:
                raise Stopped
            if status:
                state.failed = f"{command.name} ended with status {status}"
                state.write(directory)
                raise CellError(state.failed)
            state.done[command.name] = {
                "arguments": list(note.arguments),
                "seconds": time.monotonic() - began,
                "cpu_seconds": cpu_seconds,
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            }
            state.write(directory)

    def _call(self, command: Command, directory: Path, lock: int, programs: Path) -> tuple[int, float]:
        """Runs a command with its output in the cell's log; its status, and the seconds of all cores that it took."""
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            **os.environ,
            "ACTFER_STOPPED_STATUS": str(_STOPPED),
        }
        with open(directory / LOG, "ab") as log:
            log.write(f"\n$ python -m {shlex.join(command.arguments)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[lock],
            )
        self._processes.add(process.pid)
        if self._stop.noticed:  # It was told so in between.
            self.stop()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            self._processes.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime


def last_lines(directory: Path, most: int = _LAST_LINES) -> list[str]:
    """The last lines of a cell's log that are not empty."""
    path = directory / LOG
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [line for line in lines if line.strip()][-most:]
