"""The three levels of ActFER behind two gates, weighted (docs/algorithm.md)."""

from collections.abc import Mapping

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.rl.levels import reference_aus
from actfer_jax.rl.rewards import RewardConfig as Config


def score(episode: Episode, reference: Reference, levels: Mapping[str, float], config: Config) -> tuple[float, float]:
    """Weighted levels behind the format gate; a level without a reference hands its weight to the others."""
    weights = {"au": config.w_au, "region": config.w_region, "emotion": config.w_emotion}
    dropped = set()
    if reference_aus(reference) is None:
        dropped |= {"au", "region"}
    if reference.emotion is None:
        dropped.add("emotion")
    kept = sum(weight for level, weight in weights.items() if level not in dropped)
    value = sum(weight * levels[level] for level, weight in weights.items() if level not in dropped)
    task = levels["format"] * value * sum(weights.values()) / kept if kept else 0.0
    return task, config.w_format * levels["format"] + config.w_tool * levels["tool"] + task
