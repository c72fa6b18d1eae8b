"""Writes episode records while the next step is under way."""

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from actfer_jax.episodes.store import EpisodeWriter, Made

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Hands the episodes of a step to a thread, which encodes and writes them.

    The records of at most one step are on their way, with the pixels of their views. What fails there is raised here,
    by the next call and by every later one; so nothing is lost in silence.

    Use it as a context manager. Its end waits, however the block ended.

    Args:
      writer: writes them. Nobody else may use it meanwhile.
    """

    def __init__(self, writer: EpisodeWriter):
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, "records")
        self._last: Future[object] | None = None

    def write(self, step: int, episodes: Iterable[Made], of: str = "step") -> None:
        """Takes over the episodes of a step, as `EpisodeWriter.write`; waits for those of the step before."""
        self.wait()
        self._last = self._pool.submit(self._writer.write, step, list(episodes), of)

    def check(self) -> None:
        """Raises what has failed; does not wait."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Waits until all episodes are written, in any thread; raises what has failed."""
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            log.error("episode records were not written: %s", failure)  # The error that ended the block is the first.
