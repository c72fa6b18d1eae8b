"""TPU generations: what a chip holds and how fast it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip of a TPU generation.

    Attributes:
      hbm: GiB of memory for programs and arrays, as in the compiler's messages.
      teraflops: peak TFLOP/s of matrix products in bfloat16.
      clock: GHz, in which the compiler counts cycles.
      bandwidth: GB/s between memory and chip.
      link: GB/s that a chip sends around a ring of chips, through two of its ports; 0 if it is not known, as between
        slices.
      topologies: some existing ones, for messages.
    """

    hbm: float
    teraflops: int
    clock: float
    bandwidth: int
    link: int
    topologies: tuple[str, ...]


# Peak, bandwidth and links: cloud.google.com/tpu/docs/{v5e,v5p,v6e}. A chip's "bidirectional ICI bandwidth" is 400,
# 1200 and 800 GB/s over 4, 6 and 4 ports; a ring takes two ports, in one direction each. The clock is the peak over the
# FLOPs of a cycle: those of 4 matrix units of 128 x 128 in a v5e, of 8 in a v5p, and of 16 in a v6e (2 of 256 x 256 by
# the same page, which do twice as much by the compiler's estimates of large products).
CHIPS = {
    "v5e": Chip(15.75, 197, 1.5, 819, 100, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    "v5p": Chip(95.74, 459, 1.75, 2765, 200, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
    "v6e": Chip(31.25, 918, 1.75, 1638, 200, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
}
