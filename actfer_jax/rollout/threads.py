"""Threads beside the devices: they run the face tools, and cut and encode views."""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Lock
from typing import Any

from actfer_jax.errors import ToolTimeout
from actfer_jax.faces.views import View
from actfer_jax.rollout.batch import Patches

TOOL_SECONDS = 60.0
"""How long no face tool may return before the run stops: a backstop against a hang, which never changes an episode."""


def encode_once(encode: Callable[[View], Patches]) -> Callable[[View], Patches]:
    """From a view to its patches, for threads: the first that asks encodes a view, and all others share its array, or
    what it raised. The rollouts of a group often have equal views."""
    known: dict[str, Future[Patches]] = {}
    lock = Lock()

    def encoded(view: View) -> Patches:
        digest = view.digest
        with lock:
            is_first = digest not in known
            patches = known.setdefault(digest, Future())
        if is_first:
            try:
                patches.set_result(encode(view))
            except BaseException as error:
                patches.set_exception(error)
        return patches.result()

    return encoded


@contextmanager
def tool_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for the face tools, which are waited for at the end unless one of them hangs."""
    pool, hangs = ThreadPoolExecutor(count), False
    try:
        yield pool
    except ToolTimeout:
        hangs = True
        raise
    finally:
        pool.shutdown(wait=not hangs, cancel_futures=True)


def wait_for_tools(calls: Collection[Future[Any]], enough: int) -> None:
    """Waits until one more call has returned, and so many in all, or every one.

    Raises:
      ToolTimeout: none has returned for `TOOL_SECONDS`.
    """
    running = {call for call in calls if not call.done()}
    enough = max(enough, len(calls) - len(running) + 1)
    while running and len(calls) - len(running) < enough:
        returned, running = wait(running, timeout=TOOL_SECONDS, return_when=FIRST_COMPLETED)
        if not returned:
            raise ToolTimeout(f"no face tool has returned for {TOOL_SECONDS:.0f} s ({len(running)} calls wait)")
