"""What jax's profiler shows of a run, on request."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
from etils import epath

from actfer_jax.files import copy_tree
from actfer_jax.parallel import hosts
from actfer_jax.training.config import LoggingConfig


class Profiler:
    """Traces a window of the steps of this start, and notes what lies in device memory after one, on the first process.

    Both are made on the local disk and copied when they are complete: jax's profiler writes to no object store.
    """

    def __init__(self, config: LoggingConfig, workdir: epath.Path):
        self._window = range(config.profile_start, config.profile_start + config.profile_steps)
        self._memory_step = config.memory_profile_step
        self._target = workdir / "profile"
        self._trace: TemporaryDirectory[str] | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Surrounds a step; they are counted from 1."""
        if hosts.is_first() and number in self._window[:1]:
            self._trace = TemporaryDirectory()
            jax.profiler.start_trace(self._trace.name)
        yield
        if number in self._window[-1:]:
            self._end_trace()
        if hosts.is_first() and number == self._memory_step:
            with TemporaryDirectory() as scratch:
                jax.profiler.save_device_memory_profile(f"{scratch}/memory.prof")
                copy_tree(Path(scratch), self._target)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        # A run that ends within the window leaves the steps that it made.
        self._end_trace()

    def _end_trace(self) -> None:
        if self._trace is not None:
            jax.profiler.stop_trace()
            copy_tree(Path(self._trace.name), self._target)
            self._trace = None
