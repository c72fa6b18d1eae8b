"""Several processes that act as one: what they must know of each other, and when they are to stop."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LEAST_BYTES = 2**14  # Of a message: sizes are powers of two, so that few programs are compiled to exchange them.


class Interrupted(Exception):
    """The processes have agreed to stop: whoever catches this saves what there is and ends."""


def gather(record: Any) -> list[Any]:
    """The records of all processes, in their order; every process must call this at the same point.

    Args:
      record: anything that JSON can hold.
    """
    if jax.process_count() == 1:
        return [record]
    message = np.frombuffer(json.dumps(record, allow_nan=False).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(message)))).ravel()
    room = max(_LEAST_BYTES, 1 << (int(sizes.max()) - 1).bit_length())
    messages = np.asarray(multihost_utils.process_allgather(np.pad(message, (0, room - len(message)))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(messages, sizes, strict=True)]


class Termination:
    """Remembers a SIGTERM: what a preempted machine sends before it goes, and what `kill` sends.

    jax's own notice of a preemption is a handler of the same signal, which this one replaces.
    """

    def __init__(self) -> None:
        self.noticed = False

    def agreed(self) -> bool:
        """Whether any process has been told to stop; every process must call this at the same point."""
        return any(gather(self.noticed))

    def check(self) -> None:
        """Raises Interrupted in all processes if any has been told to stop."""
        if self.agreed():
            raise Interrupted


@contextmanager
def termination() -> Iterator[Termination]:
    """Within this context a SIGTERM sets a flag, and does nothing else."""
    flag = Termination()

    def notice(number: int, frame: FrameType | None) -> None:
        flag.noticed = True

    before = signal.signal(signal.SIGTERM, notice)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
