"""A reward of your own: the emotion, less a little for every word of thought.

    python -m actfer_jax.train --config=configs/ucgrpo.py:demo --config.reward.name=examples.brief_reward \\
        --config.reward.word_price=0.002 --workdir=runs/brief
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.config import at_least
from actfer_jax.rl.rewards import BaseRewardConfig


@dataclass(frozen=True)
class Config(BaseRewardConfig):
    """Its constants.

    Attributes:
      word_price: what a word of thought costs, at least 0.
    """

    word_price: Annotated[float, at_least(0)] = 0.001


def score(episode: Episode, reference: Reference, levels: Mapping[str, float], config: Config) -> tuple[float, float]:
    """The emotion if it was answered in the right form; the total pays for words."""
    del reference
    task = levels["format"] * levels["emotion"]
    words = sum(len(turn.parsed.think.split()) for turn in episode.turns)
    return task, task + 0.1 * levels["format"] - config.word_price * words
