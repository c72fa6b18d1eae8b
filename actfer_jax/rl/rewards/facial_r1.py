"""The reward of Facial-R1 (arXiv 2511.10254), as published.

It is fooled where a thought denies an action unit: "no AU12" names it.
"""

import re
from collections.abc import Mapping

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.rl.levels import f1, known, reference_aus
from actfer_jax.rl.rewards import RewardConfig as Config

_NAMED_AU = re.compile(r"AU0*(\d+)", re.IGNORECASE)


def score(episode: Episode, reference: Reference, levels: Mapping[str, float], config: Config) -> tuple[float, float]:
    """Facial-R1 (arXiv 2511.10254): R_AU + R_acc + R_format, the AUs being those that the thoughts name."""
    true = reference_aus(reference)
    thoughts = " ".join(turn.parsed.think for turn in episode.turns)
    named = known(frozenset(int(number[:9]) for number in _NAMED_AU.findall(thoughts)), reference)
    if not true:
        au = 0.0
    elif not named:
        au = -1.0
    else:
        au = 2 * f1(named, true) - 1
    task = au + (0.5 if reference.emotion is None else levels["emotion"])
    return task, task + levels["format"]
