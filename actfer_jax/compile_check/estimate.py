"""The time that a compiled program takes, from its text: the compiler's estimates, what it sends, and its kernels."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actfer_jax.compile_check.chips import Chip
from actfer_jax.compile_check.hlo import Instruction, Program
from actfer_jax.compile_check.kernels import reckon
from actfer_jax.models.cached_attention import SHARED

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_FREE = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
)
"""Custom calls of the compiler that do nothing: they name memory, mark what begins or ends, or speak of indices."""


class Filled(NamedTuple):
    """Positions that are filled on average: of the prompt that rows share, and of each row after it."""

    prompt: int
    row: int


@dataclass(frozen=True)
class Estimate:
    """Seconds of a program on a chip, as if nothing overlapped.

    Attributes:
      compiler: by the compiler's own estimates.
      collectives: bytes sent over the speed of a link.
      reckoned: kernels, of which the compiler estimates nothing.
      unreckoned: what has no estimate at all.
    """

    compiler: float
    collectives: float
    reckoned: float
    unreckoned: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """The sum; None if a part has no estimate."""
        return None if self.unreckoned else self.compiler + self.collectives + self.reckoned


def estimate(program: Program, chip: Chip, sent: int, filled: Filled | None = None) -> Estimate:
    """Sums a program: a loop counts as often as it may run, and a conditional as the longest of its branches.

    Args:
      sent: bytes that a chip sends (`collectives`).
      filled: None for as much as the caches hold.
    """
    unreckoned = {"what slices send each other"} if sent and not chip.link else set()
    done: dict[str, np.ndarray] = {}

    def kernel(instruction: Instruction, name: str) -> float:
        target = _TARGET.search(instruction.attributes)
        if target and target[1] in _FREE:
            return 0.0
        operands = [array for operand in instruction.operands for array in program.computations[name][operand].results]
        positions = filled and (filled.prompt if f"/{SHARED}/" in instruction.attributes else filled.row)
        work = reckon(instruction.name, operands, instruction.results, positions)
        if work is None:
            unreckoned.add(f"custom call {instruction.name} ({target[1] if target else 'no target'})")
            return 0.0
        return work.seconds(chip)

    def total(name: str) -> np.ndarray:
        """Seconds of a computation: by the compiler's estimates, and of its kernels."""
        if name in done:
            return done[name]
        seconds = np.zeros(2)
        for instruction in program.computations.get(name, {}).values():
            if cycles := _CYCLES.search(instruction.attributes):
                seconds += int(cycles[1]) / (chip.clock * 1e9), 0.0
                continue  # A fusion's estimate is that of all that it calls.
            if instruction.operation == "custom-call":
                seconds += 0.0, kernel(instruction, name)
            inner = [total(called) for called in instruction.called]
            if instruction.operation == "conditional":
                inner = [max(inner, key=np.sum)]
            times = 1
            if instruction.operation == "while":
                times = program.trips(instruction)
                if not times and np.any(inner):
                    unreckoned.add(f"loop {instruction.name}, of unknown length")
            seconds += times * sum(inner)
        done[name] = seconds
        return seconds

    compiled, reckoned = total(program.entry)
    linked = sent / (chip.link * 1e9) if chip.link else 0.0
    return Estimate(float(compiled), linked, float(reckoned), tuple(sorted(unreckoned)))
