"""What is known of a compiled program, and the table of it."""

import dataclasses
from collections.abc import Sequence

from actfer_jax.compile_check.chips import Chip
from actfer_jax.evaluation.tables import align

GIB = 2**30


@dataclasses.dataclass
class Result:
    """The result of compiling a program; sizes are bytes on one chip.

    Attributes:
      total: the program's peak and all other arrays in memory.
      collectives: bytes sent, by kind (`Collectives`). Loops of unknown length count once.
      per_iteration: bytes sent in one iteration of each of those loops.
      estimated_seconds: of running it (`Estimate.seconds`), the sum of `estimated`.
      estimated: its parts: compiler, collectives, reckoned.
      no_estimate: why there is none, or "".
      seconds: of compiling it.
      error: why it was not compiled, or "".
    """

    name: str
    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    peak: int = 0
    others: dict[str, int] = dataclasses.field(default_factory=dict)
    total: int = 0
    teraflops: float = 0.0
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    per_iteration: list[int] = dataclasses.field(default_factory=list)
    estimated_seconds: float | None = None
    estimated: dict[str, float] = dataclasses.field(default_factory=dict)
    no_estimate: str = ""
    seconds: float = 0.0
    fits: bool = False
    advice: str = ""
    error: str = ""


def table(results: Sequence[Result], chip: Chip, chips: int) -> str:
    """The results as lines for a terminal, with sizes in GiB on a chip."""
    sizes = ["arguments", "temporaries", "results", "peak", "others", "total", f"of {chip.hbm}"]
    rows = [["program", *sizes, "TFLOP", "best ms", "sent", "sent ms", "estimated ms", "reckoned", "compiled"]]
    for result in results:
        fits, compiled = "fits" if result.fits else "NO", f"{result.seconds:.0f} s"
        if result.error:
            rows.append([result.name, *[""] * 5, result.error, fits, *[""] * 6, compiled])
            continue
        own = (result.arguments, result.temporaries, result.outputs, result.peak)
        each = result.teraflops / chips
        unknown = "+" if result.per_iteration else ""
        seconds, reckoned = result.estimated_seconds, result.estimated["reckoned"]
        rows.append(
            [
                result.name,
                *(f"{size / GIB:.2f}" for size in (*own, sum(result.others.values()), result.total)),
                fits,
                f"{each:.1f}",
                f"{each / chip.teraflops * 1e3:.0f}",
                f"{sum(result.collectives.values()) / GIB:.2f}{unknown}",
                f"{result.estimated['collectives'] * 1e3:.1f}{unknown}",
                "none" if seconds is None else f"{seconds * 1e3:.1f}",
                f"{reckoned / seconds:.0%}" if seconds and reckoned else "",
                compiled,
            ]
        )
    return align(rows, left=1)
