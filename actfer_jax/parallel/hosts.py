"""Several processes that act as one: how they connect, exchange values and agree to stop."""

import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any, NoReturn, TypeVar
from urllib.request import ProxyHandler, Request, build_opener

import jax
import numpy as np
from jax.experimental import multihost_utils

from actfer_jax.config import ConfigError

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_LEAST_BYTES = 2**14  # Of a message. Sizes are powers of two, so that few exchange programs are compiled.


_ANNOUNCED = {"maintenance-event": "NONE", "preempted": "FALSE"}  # Metadata keys of a machine, with normal values.

_HEARTBEAT_SECONDS = 30  # After a process has died, the others end within about this time.


class Interrupted(Exception):
    """The processes have agreed to stop. The code that catches this saves and ends.

    Attributes:
      signal: the signal that one of them received.
    """

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def connect(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> None:
    """Joins the processes of a run. Call it before any other use of jax.

    On the hosts of a TPU the machine tells everything. Elsewhere a run is one process, unless the three arguments are
    given.

    Args:
      coordinator: address and port of process 0.
      processes: their number.
      index: which one this is, from 0.

    Raises:
      ConfigError: some of the arguments are missing or invalid, the processes do not find each other, or no device is
        found.
    """
    if coordinator is not None and processes is not None and index is not None:
        _check_address(coordinator, processes, index)
    elif (coordinator, processes, index) != (None, None, None):
        raise ConfigError("--coordinator, --processes and --process go together: give all three, or none on a TPU")
    elif not _on_tpu():
        return start_devices()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator is not None and processes is not None:
        log.info("waiting for %d of %d processes at %s", processes - 1, processes, coordinator)
    else:
        log.info("waiting for all hosts of this TPU")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            index,
            initialization_timeout=300,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            # How long a failing process waits for the others, which wait for it.
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = coordinator or "the coordinator that this TPU names"
        raise ConfigError(
            f"process {index if index is not None else ''} cannot join the others at {where}: {error}; start the same "
            "command on every host at the same time"
        ) from error
    start_devices()


def _check_address(coordinator: str, processes: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={coordinator} is no address; give HOST:PORT, such as {host or port}:12345")
    if not 0 <= index < processes:
        raise ConfigError(f"--process={index} is none of --processes={processes}; they are counted from 0")
    if index == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise ConfigError(
                f"--coordinator={coordinator}: process 0 cannot listen on port {port} ({why}); give another port, the "
                "same on every host"
            ) from error


def start_devices() -> None:
    """Makes jax look for its devices.

    Raises:
      ConfigError: the platform that jax was told to use has no devices.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a platform that jax knows but does not find.
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "there is none"
        raise ConfigError(
            f"jax cannot use the devices of JAX_PLATFORMS={asked}: {said}; unset JAX_PLATFORMS to take what is "
            "there, or install the package's extra cuda or tpu (README.md)"
        ) from error


def _on_tpu() -> bool:
    devices = [path for pattern in ("accel*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def gather(record: Any) -> list[Any]:
    """The records of all processes, in process order; every process must call this at the same point.

    Args:
      record: any JSON value.
    """
    if jax.process_count() == 1:
        return [record]
    message = np.frombuffer(json.dumps(record, allow_nan=False).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(message)))).ravel()
    room = max(_LEAST_BYTES, 1 << (int(sizes.max()) - 1).bit_length())
    messages = np.asarray(multihost_utils.process_allgather(np.pad(message, (0, room - len(message)))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(messages, sizes, strict=True)]


def is_first() -> bool:
    """Whether this is process 0, which alone prints and writes shared files."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Value]) -> Value:
    """Calls a function on process 0 and returns its value on all; every process must call this at the same point.

    Args:
      function: returns a JSON value.

    Raises:
      ConfigError: on other processes, if the function failed. Process 0 raises the function's own error.
    """
    if jax.process_count() == 1:
        return function()
    value, error = None, None
    if is_first():
        try:
            value = function()
        except Exception as raised:
            error = raised
    heard = gather([value, None if error is None else str(error) or repr(error)])[0]
    if error is not None:
        raise error
    if heard[1] is not None:
        raise ConfigError(f"process 0 ends: {heard[1]}")
    return heard[0]


def first_before_others(function: Callable[[], Value]) -> Value:
    """Calls a function on process 0, then on the others, and returns this process's value. So the others find what
    process 0 prepares in a shared directory.

    Raises:
      ConfigError: on other processes, if the function failed on process 0, which raises the function's own error.
    """
    kept: list[Value] = []
    from_first(lambda: kept.append(function()))
    return kept[0] if is_first() else function()


class Termination:
    """Remembers that the run was told to stop, by SIGTERM (`kill`, or a preempted machine before it ends), SIGINT
    (Ctrl-C) or SIGHUP (a closed terminal).

    jax's own notice of a preemption is a SIGTERM handler, which this one replaces.

    Attributes:
      noticed: the number of the signal; 0 for none.
    """

    def __init__(self) -> None:
        self.noticed = 0

    def agreed(self) -> int:
        """The signal that told any process to stop, 0 for none; every process must call this at the same point."""
        return max(gather(self.noticed))

    def check(self) -> None:
        """Raises Interrupted in all processes if any has been told to stop."""
        if number := self.agreed():
            raise Interrupted(number)


def watch_machine(flag: Termination) -> None:
    """On a Google Cloud machine, logs the events announced for it. A preemption counts as a SIGTERM.

    Threads that end with the process ask the machine's metadata server (`instance/maintenance-event` and
    `instance/preempted`). The variable GCE_METADATA_HOST names another server, as for Google's own clients.
    """
    if _on_tpu() or "GCE_METADATA_HOST" in os.environ:
        for key in _ANNOUNCED:
            Thread(target=_watch, args=(key, flag), name=key, daemon=True).start()


def _watch(key: str, flag: Termination) -> None:
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    server = build_opener(ProxyHandler({}))
    value, etag = _ANNOUNCED[key], "0"
    while True:
        # The server answers the first query at once, later ones when the value changes or the time is up.
        query = f"{key}?wait_for_change=true&timeout_sec=60&last_etag={etag}"
        url = f"http://{host}/computeMetadata/v1/instance/{query}"
        try:
            with server.open(Request(url, headers={"Metadata-Flavor": "Google"}), timeout=90) as answer:
                heard, etag = answer.read().decode().strip(), answer.headers["ETag"]
        except (OSError, HTTPException) as error:
            log.debug("%s: %s", key, error)
            time.sleep(30)
            continue
        if heard != value:
            log.warning("Google Cloud announces %s: %s", key, heard)
        value = heard
        if (key, value) == ("preempted", "TRUE"):
            flag.noticed = signal.SIGTERM


@contextmanager
def termination() -> Iterator[Termination]:
    """In this context SIGTERM, SIGINT and SIGHUP set a flag. A second SIGINT ends the process at once.

    If SIGINT or SIGHUP is ignored, as in a script's background jobs and under `nohup`, it stays ignored.
    """
    flag = Termination()
    terminals = [file for file in (1, 2) if os.isatty(file)]

    def notice(number: int, frame: FrameType | None) -> None:
        flag.noticed = number
        if number == signal.SIGHUP and terminals:
            # Writing to a closed terminal is an error, which must not end the run before it has saved.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in terminals:
                os.dup2(nowhere, file)
            os.close(nowhere)

    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN]
    handled = [number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if number not in ignored]
    # Python calls a handler only between two steps of its main thread, which may compile for minutes. A thread reads
    # this file, to which each signal writes its number, at once.
    numbers, written = os.pipe()
    os.set_blocking(written, False)
    written_before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    before = {number: signal.signal(number, notice) for number in handled}
    Thread(target=_answer_interrupts, args=(numbers,), name="interrupts", daemon=True).start()
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(written_before)
        os.close(written)


def _answer_interrupts(numbers: int) -> None:
    """At the first Ctrl-C says what it does, at the second ends the process.

    Args:
      numbers: the file with the numbers of the signals; this function closes it.
    """
    with open(numbers, "rb", buffering=0) as read:
        interrupts = 0
        while number := read.read(1):
            if number[0] != signal.SIGINT:
                continue
            interrupts += 1
            if interrupts > 1:
                os._exit(128 + signal.SIGINT)
            with suppress(OSError):
                os.write(2, b"\ntold to stop: saving once the present step is done; Ctrl-C again stops at once\n")


def exit_as_told(number: signal.Signals) -> NoReturn:
    """Ends the process after an orderly stop, with the expected exit status."""
    # A script that restarts runs must tell a stopped run from a finished one.
    if (status := os.environ.get("ACTFER_STOPPED_STATUS")) is not None:
        sys.exit(int(status))
    if number == signal.SIGINT:
        # Python then ends by this signal, so that a shell script stops too. No traceback is needed.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt
    sys.exit(0 if number == signal.SIGTERM else 128 + number)
