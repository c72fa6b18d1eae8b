"""The bytes that a compiled program sends between devices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from actfer_jax.compile_check.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")

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


def collectives(program: Program) -> Collectives:
    """Sums what a program sends."""
    loops: list[int] = []
    done: dict[str, dict[tuple[str, str], int]] = {}

    def total(name: str) -> dict[tuple[str, str], int]:
        """Bytes by kind and channel.

        An operation that overlaps others has parts in several computations, all with its channel. Collectives written
        by hand (`jax.shard_map`) all have the same channel, and lie in one computation.
        """
        if name in done or name not in program.computations:
            return done.get(name, {})
        sends: dict[tuple[str, str], int] = {}
        calls: list[tuple[str, int]] = []
        for instruction in program.computations[name].values():
            if (sent := _sent(instruction, name)) is not None:
                kind, size = sent
                channel = _CHANNEL.search(instruction.attributes)
                key = kind, channel[1] if channel else f"{name} {len(sends)}"
                sends[key] = sends.get(key, 0) + size
                continue  # The computation that it calls only adds two numbers.
            times = program.trips(instruction) if instruction.operation == "while" else 1
            calls.extend((called, times) for called in instruction.called)
        for called, times in calls:
            inner = total(called)
            if not times and inner:
                loops.append(sum(inner.values()))
            for key, size in inner.items():
                sends[key] = max(sends.get(key, 0), size * (times or 1))
        done[name] = sends
        return sends

    sums = dict.fromkeys(KINDS, 0)
    for (kind, _), size in total(program.entry).items():
        sums[kind] += size
    return Collectives({kind: size for kind, size in sums.items() if size}, loops)


def _sent(instruction: Instruction, computation: str) -> tuple[str, int] | None:
    """Kind and bytes of a collective operation in the computation of that name; None for another operation."""
    kind = instruction.operation.removesuffix("-start")
    if kind not in KINDS:
        return None
    sizes = [array.bytes for array in instruction.results]
    # A "-start" returns its operands too; the result is the largest array.
    size = max(sizes, default=0) if instruction.operation.endswith("-start") else sum(sizes)
    if kind == "reduce-scatter":
        return kind, size * next(_taking_part(instruction.attributes), 1)
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter", size  # The TPU's compiler writes it as a sum of which each device keeps its part.
    return kind, 2 * size if kind == "all-reduce" else size


def _taking_part(attributes: str) -> Iterator[int]:
    if listed := _LISTED.search(attributes):
        yield len(listed[1].split(","))
    if rows := _ROWS.search(attributes):
        yield int(rows[1])
    if along := _ALONG.search(attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", along[1]))
        yield prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", along[2]))
