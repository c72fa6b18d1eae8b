"""Reads the text of a compiled program.

The text is XLA's HLO (openxla.org/xla/operation_semantics). A program is a list of computations. Each computation is a
list of instructions, which can call other computations.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|\s)([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\]")
_NAME = re.compile(r"%?([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"^(\d+)\)")


class Array(NamedTuple):
    """An array on one device: its type as HLO writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return _BYTES.get(self.dtype, 4) * prod(self.shape)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      operation: such as "fusion" or "all-gather-start".
      results: the arrays that it returns.
      attributes: the rest of its line, which begins with its operands.
    """

    name: str
    operation: str
    results: tuple[Array, ...]
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return _OPERAND.findall(self.attributes.partition(")")[0])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls; of a conditional, its branches in their order."""
        branches = [_NAME.findall(names) for names in _BRANCHES.findall(self.attributes)]
        return [*_CALLED.findall(self.attributes), *(name for names in branches for name in names)]


Computation = dict[str, Instruction]
"""The instructions of a computation, by name, in their order."""


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
      computations: by name.
      entry: the name of the one that is run.
      loop_trips: how often loops run of which the text does not say it; 0 if that is not known.
    """

    computations: dict[str, Computation]
    entry: str
    loop_trips: int = 0

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: at most, if it can stop early; 0 if that is not known.

        If the compiler does not note it, the largest constant in the loop's condition is taken: JAX's scans, and loops
        up to a limit, compare with it.
        """
        if noted := _TRIPS.search(loop.attributes):
            return int(noted[1])
        condition = _CONDITION.search(loop.attributes)
        constants = self._constants(condition[1]) if condition else ()
        return max(constants, default=0) or self.loop_trips

    def _constants(self, name: str) -> Iterator[int]:
        for instruction in self.computations.get(name, {}).values():
            scalar = instruction.results == (Array("s32", ()),)
            if scalar and instruction.operation == "constant" and (value := _CONSTANT.match(instruction.attributes)):
                yield int(value[1])


def read(text: str, loop_trips: int = 0) -> Program:
    """Reads `compiled.as_text()`; a text without a program has none that is run."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif name and (parts := _INSTRUCTION.match(line)) and (operation := _OPERATION.search(parts[2])):
            arrays = _ARRAY.findall(parts[2][: operation.start()])
            results = tuple(Array(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in arrays)
            computations[name][parts[1]] = Instruction(parts[1], operation[1], results, parts[2][operation.end() :])
    return Program(computations, entry, loop_trips)
