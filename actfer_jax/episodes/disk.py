"""What the records of a run will take on the disk."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from actfer_jax.episodes.index import entry
from actfer_jax.episodes.store import as_line, finished, png
from actfer_jax.faces.views import View

_PLACE = 80  # Bytes of where a record lies, in a line of the index.


class EpisodeSize(NamedTuple):
    """Bytes that an episode takes, or means over several.

    Attributes:
      record: its record with the line of the index.
      scenes: the pictures of the sample's images, which the rollouts of a group share.
      views: the pictures that the tools cut.
    """

    record: float
    scenes: float
    views: float


def episode_size(record: Mapping[str, Any], views: Sequence[View]) -> EpisodeSize:
    """What a record (`record.to_record`) and its views take, encoded as they are written."""
    plain = finished(record, views)
    pictures = [len(png(view)) for view in views]
    scenes = len(record["scenes"])
    return EpisodeSize(
        len(as_line(plain)) + len(as_line(entry(plain))) + _PLACE, sum(pictures[:scenes]), sum(pictures[scenes:])
    )


def records_bytes(size: EpisodeSize, *, queries: int, rollouts: int, steps: int, records_every: int) -> float:
    """Bytes of the records and pictures of a run.

    A limit from above: that rollouts of a group often look at the same, and so share a file, is not counted on.

    Args:
      size: of an episode.
      queries, rollouts: of a step (`config.batch`).
      steps, records_every: of the run; records_every 0 keeps nothing.
    """
    recorded = steps // records_every if records_every else 0
    return recorded * queries * (size.scenes + rollouts * (size.record + size.views))
