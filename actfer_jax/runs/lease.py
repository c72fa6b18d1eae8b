"""The lease on a workdir: one run at a time trains in it.

Process 0 of a run holds `lease.json`, and changes it every 20 s. A start that finds the file judges it so:

- The holder ran on this machine since its last boot: the lease is held as long as that process runs.
- The holder ran on another machine: the lease is held once it changes, and free once it has not changed for 60 s. The
  clocks of the two machines need not agree.

The file is changed only if it still has the content that was read: checked on a disk under a file lock, in a bucket by
the object's generation. When two starts take a free lease, one gets it. A run whose lease was taken over, for example
while its machine was suspended, stops before it writes anything more.
"""

import datetime
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Protocol

from etils import epath

from actfer_jax.files import is_remote
from actfer_jax.parallel import hosts
from actfer_jax.runs.metrics import WorkdirError

log = logging.getLogger(__name__)

LEASE = "lease.json"
RENEWED_EVERY = 20
"""Seconds between two changes of a lease."""
STALE_AFTER = 60
"""Seconds without a change after which a lease is free."""
_LOOK_EVERY = 1
_SIZE = 1024  # Bytes of every lease: one call overwrites the old one, and a kill cannot cut the call in two.


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease, as recorded in its file.

    Attributes:
      token: unique to this holding.
      host, process, since: shown to people; `process` is the process id.
      machine: the machine, its boot and the PID namespace; "" if the system does not tell.
      process_started: in the machine's own units. With the process id it identifies the process.
      renewals: how often the lease was renewed.
    """

    token: str
    host: str
    process: int
    since: str
    machine: str
    process_started: str
    renewals: int = 0

    @classmethod
    def here(cls) -> "Holder":
        """This process, as a holder from now on."""
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        started = _process_started(os.getpid()) or ""
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), since, _machine(), started)

    @classmethod
    def read(cls, content: bytes | None) -> "Holder | None":
        """The holder in a lease's content; None if there is no lease or it cannot be read."""
        try:
            holder = cls(**json.loads(content or b""))
        except (ValueError, TypeError):
            return None
        return holder if isinstance(holder.process, int) and holder.process > 0 else None

    def written(self) -> bytes:
        """The content of the file, padded to the one size of all leases."""
        content = json.dumps(asdict(self)).encode()
        return content.ljust(_SIZE - 1) + b"\n"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class Verdict(Enum):
    """What is known about a lease."""

    FREE = 1
    HELD = 2
    UNDECIDED = 3


def runs(holder: Holder) -> bool | None:
    """Whether the process of a holder runs; None if this machine cannot know."""
    if not holder.machine or holder.machine != _machine():
        return None
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # The process is another user's.
    started = _process_started(holder.process)
    return None if started is None else started == holder.process_started


class Watch:
    """Judges a lease by the contents that one process reads.

    Args:
      clock: seconds; it may stop while the machine is suspended.
      runs: as the function `runs`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, runs: Callable[[Holder], bool | None] = runs
    ) -> None:
        self._clock, self._runs = clock, runs
        self._first: bytes | None = None
        self._since = 0.0

    def judge(self, content: bytes | None) -> Verdict:
        """Takes the lease's present content, and judges it.

        Args:
          content: the file's, just read; None for no file.
        """
        if content is None:
            return Verdict.FREE
        holder = Holder.read(content)
        running = None if holder is None else self._runs(holder)
        if running is not None:
            return Verdict.HELD if running else Verdict.FREE
        if self._first is None:
            self._first, self._since = content, self._clock()
        if content != self._first:
            return Verdict.HELD
        return Verdict.FREE if self._clock() - self._since >= STALE_AFTER else Verdict.UNDECIDED


class Store(Protocol):
    """The place where a lease is kept."""

    def read(self) -> bytes | None:
        """The content; None if there is no lease."""

    def swap(self, expected: bytes | None, new: bytes | None) -> bool:
        """Replaces the content if it still is the expected one, else changes nothing. None means no lease.

        Returns:
          Whether the content is now the new one.
        """


class Lease:
    """The lease on a workdir, released when the context ends. The first process of a run holds it for all.

    Args:
      workdir: a directory that exists when `take` is called.
    """

    def __init__(self, workdir: epath.PathLike, store: Store | None = None, watch: Watch | None = None):
        self._workdir = epath.Path(workdir)
        self._given_store = store
        self._watch = watch or Watch()
        self._holder: Holder | None = None
        self._content: bytes | None = None
        self._waits = False
        self._over = Event()
        self._thread = Thread(target=self._keep_renewing, name="lease", daemon=True)

    def take(self, between_looks: Callable[[], None]) -> None:
        """Takes the lease as soon as it is free; every process must call this at the same point.

        Args:
          between_looks: called while it is not known whether another run still holds it.

        Raises:
          WorkdirError: another run holds it.
          OSError: the file cannot be read or written.
        """
        while not hosts.from_first(self.try_to_take):
            between_looks()
            time.sleep(_LOOK_EVERY)
        if hosts.is_first():
            self._thread.start()

    def try_to_take(self) -> bool:
        """Tries once; returns whether this process has the lease now. Raises as `take`."""
        content = self._store.read()
        verdict, other = self._watch.judge(content), Holder.read(content)
        if verdict is Verdict.HELD:
            stop = f"stop it there (kill {other.process})" if other else "stop it"
            raise WorkdirError(
                f"workdir {self._workdir} is being trained by {other or 'another run'}: wait until that run ends, "
                f"{stop}, or choose another --workdir"
            )
        if verdict is Verdict.UNDECIDED:
            if not self._waits:
                log.warning(
                    "workdir %s was being trained by %s; waiting up to %d s to see whether it still is",
                    self._workdir,
                    other or "another run",
                    STALE_AFTER,
                )
            self._waits = True
            return False
        holder = Holder.here()
        if not self._store.swap(content, holder.written()):
            return False  # Another start was faster.
        self._holder, self._content = holder, holder.written()
        return True

    def check(self) -> None:
        """Call this before anything is written; every process must call it at the same point.

        Raises:
          WorkdirError, on other processes ConfigError: another run has taken the lease over.
        """
        hosts.from_first(self.confirm)

    def confirm(self) -> None:
        """`check` for process 0 alone, in any thread."""
        holder = Holder.read(self._store.read())
        if self._holder is None or holder is None or holder.token != self._holder.token:
            by = f"was taken over by {holder}" if holder else f"has lost its {LEASE}"
            raise WorkdirError(f"workdir {self._workdir} {by}: this run stops, and writes nothing more there")

    def renew(self) -> bool:
        """Changes the lease; False if another run has it now."""
        assert self._holder is not None
        self._holder = replace(self._holder, renewals=self._holder.renewals + 1)
        if self._store.swap(self._content, self._holder.written()):
            self._content = self._holder.written()
            return True
        # A renewal that seemed to fail over a broken connection may have arrived.
        content = self._store.read()
        found = Holder.read(content)
        if found is None or found.token != self._holder.token:
            return False
        self._content = content
        return True

    def _keep_renewing(self) -> None:
        while not self._over.wait(RENEWED_EVERY):
            try:
                if not self.renew():
                    return  # `check` reports it.
            except Exception as error:
                log.warning("the lease on workdir %s could not be renewed, trying again: %s", self._workdir, error)

    def release(self) -> None:
        """Gives the lease back, if this process has it."""
        if self._holder is None:
            return
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._store.swap(self._content, None)
        except OSError as error:
            log.warning("%s is left behind (%s): the next start may wait for %d s", LEASE, error, STALE_AFTER)
        self._holder = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def _store(self) -> Store:
        if self._given_store is None:
            path = self._workdir / LEASE
            self._given_store = BucketStore(path) if is_remote(path) else DiskStore(path)
        return self._given_store


class DiskStore:
    """A lease on a file system that all hosts share. Without file locks two starts may take a free lease at the same
    instant; the one that lost it learns so before its first write."""

    def __init__(self, path: epath.PathLike):
        self._path = Path(path)

    def read(self) -> bytes | None:
        """As `Store` says."""
        try:
            return self._path.read_bytes() or None
        except FileNotFoundError:
            return None

    def swap(self, expected: bytes | None, new: bytes | None) -> bool:
        """As `Store` says."""
        with self._locked() as file:
            if (os.pread(file, 2 * _SIZE, 0) or None) != expected:
                return False
            if new is None:
                self._path.unlink()
            else:
                # In place: on a network file system, other hosts would still see the old file after a replacement.
                os.pwrite(file, new, 0)
                os.ftruncate(file, len(new))
            return True

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file, locked until the context ends."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_there(file):
                    yield file
                    return
            finally:
                os.close(file)

    def _is_there(self, file: int) -> bool:
        """Whether an open file still has its name: the previous owner of the lock may have removed it."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False


class BucketStore:
    """A lease in a bucket of Google Cloud Storage: `gs://bucket/name`."""

    def __init__(self, path: epath.PathLike):
        scheme, _, rest = os.fspath(path).partition("://")
        if scheme != "gs":
            raise WorkdirError(f"{path} cannot be written: a workdir is on a disk or in a bucket, gs://BUCKET/NAME")
        bucket, _, self._name = rest.partition("/")
        try:
            # All other files go through TensorFlow's file system, which has no preconditions.
            from google.api_core import exceptions
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import storage
        except ImportError as error:
            raise WorkdirError(f"a workdir in a bucket needs {error.name}: pip install -e '.[tpu]'") from error
        self._exceptions = exceptions
        self._errors = (exceptions.GoogleAPIError, GoogleAuthError)
        self._path = path
        with self._errors_named():
            self._bucket: Any = storage.Client().bucket(bucket)

    def read(self) -> bytes | None:
        """As `Store` says."""
        with self._errors_named():
            try:
                return self._bucket.blob(self._name).download_as_bytes() or None
            except self._exceptions.NotFound:
                return None

    def swap(self, expected: bytes | None, new: bytes | None) -> bool:
        """As `Store` says."""
        with self._errors_named():
            try:
                blob = self._bucket.get_blob(self._name)
                generation = 0 if blob is None else blob.generation
                if (blob and blob.download_as_bytes(if_generation_match=generation) or None) != expected:
                    return False
                if new is not None:
                    replacement = self._bucket.blob(self._name)
                    replacement.cache_control = "no-store"  # Else reads of a public object may be an hour old.
                    replacement.upload_from_string(new, if_generation_match=generation)
                elif blob is not None:
                    blob.delete(if_generation_match=generation)
            except (self._exceptions.PreconditionFailed, self._exceptions.NotFound):
                # Another start changed it, or this call did: its answer was lost and its second try refused.
                return self.read() == new
        return True

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise OSError(f"{self._path}: {error}") from error


@cache
def _machine() -> str:
    """This machine, its boot and the PID namespace (containers have their own); "" if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_started(process: int) -> str | None:
    """When a process started, in ticks since boot; "" if it has ended, None if that cannot be read."""
    try:
        # The program's name, in parentheses, may hold anything. The state is the third field, the start the 22nd.
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except (OSError, ValueError):
        return None
    return "" if state in "ZX" else fields[18]
