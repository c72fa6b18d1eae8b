"""The reward of UniFER (arXiv 2511.00389), as published.

It sees the label and the format alone: listing every action unit costs nothing, and nothing is gained by reading them.
"""

from collections.abc import Mapping

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.rl.rewards import RewardConfig as Config


def score(episode: Episode, reference: Reference, levels: Mapping[str, float], config: Config) -> tuple[float, float]:
    """UniFER (arXiv 2511.00389): the label matches exactly as the data set spells it (never without one), plus the
    format."""
    answer = episode.answer
    exact = (
        answer is not None
        and answer.answer is not None
        and reference.emotion is not None
        and answer.answer.strip().lower() == reference.emotion.strip().lower()
    )
    return float(exact), float(exact) + levels["format"]
