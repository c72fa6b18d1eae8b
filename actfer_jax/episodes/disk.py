"""What the records of a run will take on the disk."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from actfer_jax.agent.episode import Episode, Sample
from actfer_jax.episodes.index import entry
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import as_line, finished, png
from actfer_jax.faces.views import View
from actfer_jax.rollout.batch import Sequence as TokenSequence
from actfer_jax.rollout.engine import Query, Rollout

_PLACE = (
    150  # Bytes of an index line that say where the record lies, and of the parts of the reward in record and line.
)


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


def episode_size(sample: Sample, episode: Episode, views: Sequence[View], *, length: int, written: int) -> EpisodeSize:
    """What an episode takes, encoded as it is written.

    Args:
      views: the scenes of the sample's images, then what the tools returned.
      length: tokens of its row.
      written: how many of them the policy wrote.
    """
    wrote = np.arange(length) < written
    log_probs = np.where(wrote, -1 / 3, 0).astype(np.float32)  # Of as many digits as most have, and so are the ids.
    sequence = TokenSequence([100_000] * length, wrote.tolist(), [])
    rollout = Rollout(Query(**vars(sample)), episode, list(views), sequence, log_probs, log_probs)
    made, _ = to_record(rollout, id="1000-10-1", reward=None, advantage=-1 / 3, trained_on=(sample.dataset,))
    record = finished(made, views)
    pictures, scenes = [len(png(view)) for view in views], len(sample.images)
    lines = len(as_line(record)) + len(as_line(entry(record))) + _PLACE
    return EpisodeSize(lines, sum(pictures[:scenes]), sum(pictures[scenes:]))


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
