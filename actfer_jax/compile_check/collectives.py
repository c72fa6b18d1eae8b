"""The bytes that a compiled program sends between devices, read from its text.

The text is XLA's HLO (openxla.org/xla/operation_semantics). A program is a list of computations. Each computation is a
list of instructions, which can call other computations.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|\s)([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# The participating devices: listed, in rows of an array, or along mesh axes.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_ROWS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_ALONG = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


@dataclass(frozen=True)
class Collectives:
    """Bytes that one device sends in collective operations, by kind, if they run around a ring.

    A gather sends its result, a scatter or exchange its operand, and a sum twice its operand.

    Attributes:
      total: a loop counts once for each iteration, at its limit if it can stop early. A loop of unknown length counts
        once.
      unknown_loops: bytes of one iteration of each loop of unknown length.
    """

    total: dict[str, int]
    unknown_loops: list[int]


@dataclass
class _Computation:
    """One computation: bytes sent by (kind, channel), calls (name, condition of a loop, times or 0), constants.

    An operation that overlaps others has parts in several computations, all with its channel. Collectives written by
    hand (`jax.shard_map`) all have the same channel, and lie in one computation.
    """

    sends: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)


def collectives(text: str) -> Collectives:
    """Reads `compiled.as_text()`.

    If the compiler does not note how often a loop runs, the largest constant in the loop's condition is taken: JAX's
    scans, and loops up to a limit, compare with it.
    """
    computations: dict[str, _Computation] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = _Computation()
            entry = name if head[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            _read(instruction[2], name, computations[name])

    loops: list[int] = []
    done: dict[str, dict[tuple[str, str], int]] = {}

    def total(name: str) -> dict[tuple[str, str], int]:
        if name in done or name not in computations:
            return done.get(name, {})
        sends = dict(computations[name].sends)
        for called, condition, times in computations[name].calls:
            inner = total(called)
            if condition and not times:
                times = max(computations[condition].constants, default=0) if condition in computations else 0
            if not times and inner:
                loops.append(sum(inner.values()))
            for key, size in inner.items():
                sends[key] = max(sends.get(key, 0), size * (times or 1))
        done[name] = sends
        return sends

    sums = dict.fromkeys(KINDS, 0)
    for (kind, _), size in total(entry).items():
        sums[kind] += size
    return Collectives({kind: size for kind, size in sums.items() if size}, loops)


def _read(instruction: str, name: str, computation: _Computation) -> None:
    """Adds the bytes, calls and constants of one instruction."""
    operation = _OPERATION.search(instruction)
    if operation is None:
        return
    kind = operation[1].removesuffix("-start")
    attributes = instruction[operation.end() :]
    if kind in KINDS:
        arrays = [_size(*array) for array in _ARRAY.findall(instruction[: operation.start()])]
        # A "-start" returns its operands too; the result is the largest array.
        size = max(arrays, default=0) if operation[1].endswith("-start") else sum(arrays)
        if kind == "reduce-scatter":
            size *= next(_taking_part(attributes), 1)
        elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # The TPU's compiler writes it as a sum of which each device keeps its part.
        elif kind == "all-reduce":
            size *= 2
        channel = _CHANNEL.search(attributes)
        key = kind, channel[1] if channel else f"{name} {len(computation.sends)}"
        computation.sends[key] = computation.sends.get(key, 0) + size
        return  # The computation that it calls only adds two numbers.
    if constant := _CONSTANT.search(instruction):
        computation.constants.append(int(constant[1]))
    trips, condition = _TRIPS.search(attributes), _CONDITION.search(attributes)
    times = (int(trips[1]) if trips else 0) if condition else 1
    for called in _CALLED.findall(attributes):
        computation.calls.append((called, condition[1] if condition else "", times))
    for names in _BRANCHES.findall(attributes):
        computation.calls.extend((called.strip().lstrip("%"), "", 1) for called in names.split(","))


def _taking_part(attributes: str) -> Iterator[int]:
    if listed := _LISTED.search(attributes):
        yield len(listed[1].split(","))
    if rows := _ROWS.search(attributes):
        yield int(rows[1])
    if along := _ALONG.search(attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", along[1]))
        yield prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", along[2]))


def _size(dtype: str, shape: str) -> int:
    return _BYTES.get(dtype, 4) * prod(int(size) for size in shape.split(",") if size)
