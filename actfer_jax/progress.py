"""A progress line for long commands."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

_SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """Shows how much is done, at what rate, and how long the rest will take.

    On a terminal one line is rewritten. Elsewhere a line is written every 10 s.

    Args:
      unit: what is counted, in the plural.
      stream: where to write; standard error by default.
      clock: a clock in seconds.
    """

    def __init__(self, unit: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = (0, clock())
        self._warm = False
        self._shown = self._start[1]

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` are done. The line ends when all are."""
        now = self._clock()
        rate = (done - self._start[0]) / max(now - self._start[1], 1e-9)
        line = f"{done}/{total} {self._unit}"
        if self._warm or done == total:
            left = (total - done) / rate if rate else float("inf")
            line += f" | {rate:.{1 if rate >= 0.1 else 3}f} a second | {duration(left)} left"
        if not self._warm:
            # The first stretch compiles and loads: it says nothing of the rest.
            self._start, self._warm = (done, now), True
        if self._stream.isatty():
            self._stream.write(f"\r{line:<78}" + ("\n" if done == total else ""))
        elif done == total or now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._stream.write(f"{line}\n")
            self._shown = now
        self._stream.flush()


def duration(seconds: float) -> str:
    """``3725`` becomes ``"1 h 02 min"``, ``65`` ``"1 min 05 s"``; infinity is ``"?"``."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
