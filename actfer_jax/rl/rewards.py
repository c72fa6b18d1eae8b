"""Rewards that a program can verify: the turn grammar, action units, face regions, and the emotion.

`docs/algorithm.md` has the formulas. Every reward set scores the same levels, so that runs with different
rewards can be compared, and differs in how it makes `task` and `total` of them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.config import at_least, check_fields, one_of

LEVELS: tuple[str, ...] = ("format", "tool", "au", "region", "emotion")

_NAMED_AU = re.compile(r"AU0*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class RewardConfig:
    """Which reward set, and its constants. The weights are those of "actfer"; the zoom price holds for every set.

    Attributes:
      name: "actfer" (three levels, two gates), "facial_r1" or "unifer" (those systems' published sums).
      w_format, w_tool, w_au, w_region, w_emotion: weights of the levels, at least 0.
      zoom_price: what one executed zoom costs, at least 0.
    """

    name: Annotated[str, one_of("actfer", "facial_r1", "unifer")] = "actfer"
    w_format: Annotated[float, at_least(0)] = 0.1
    w_tool: Annotated[float, at_least(0)] = 0.05
    w_au: Annotated[float, at_least(0)] = 0.3
    w_region: Annotated[float, at_least(0)] = 0.15
    w_emotion: Annotated[float, at_least(0)] = 0.4
    zoom_price: Annotated[float, at_least(0)] = 0.03

    def __post_init__(self) -> None:
        check_fields(self)


def score(episode: Episode | None, reference: Reference, config: RewardConfig) -> dict[str, float]:
    """The reward of one episode, with its parts.

    Returns:
      format, tool, au, region, emotion (each in [0, 1]; 0 where the reference does not know it), `task` (what UC-GRPO
      measures the utility of looking on) and `total` (what is maximised). All are 0 for None or without turns.
    """
    if episode is None or not episode.turns:
        return dict.fromkeys((*LEVELS, "task", "total"), 0.0)
    levels = {
        "format": _format(episode, reference),
        "tool": _tool(episode),
        "au": _au(episode, reference),
        "region": _region(episode, reference),
        "emotion": _emotion(episode, reference),
    }
    task, total = _REWARD_SETS[config.name](episode, reference, levels, config)
    return levels | {"task": task, "total": total - config.zoom_price * len(episode.zooms)}


def f1(predicted: frozenset[int], reference: frozenset[int]) -> float:
    """F1 of a predicted set; 1 if both are empty."""
    size = len(predicted) + len(reference)
    return 2 * len(predicted & reference) / size if size else 1.0


def _format(episode: Episode, reference: Reference) -> float:
    """1 if calls led to one answer that is one label of the data set."""
    answer = episode.answer
    if answer is None or answer.answer is None or not all(turn.parsed.calls for turn in episode.turns[:-1]):
        return 0.0
    labels = {facs.normalise_emotion(label) for label in reference.labels}
    return float(facs.normalise_emotion(answer.answer) in labels)


def _tool(episode: Episode) -> float:
    """Share of the calls that executed; 1 without calls."""
    executed = [turn.reply is not None and turn.reply.ok for turn in episode.turns if turn.parsed.calls]
    return sum(executed) / len(executed) if executed else 1.0


def _known(aus: frozenset[int], reference: Reference) -> frozenset[int]:
    return aus if reference.known_aus is None else aus & reference.known_aus


def _reference_aus(reference: Reference) -> frozenset[int] | None:
    """The reference action units under their known mask; None where nothing was annotated."""
    if reference.aus is None or reference.known_aus == frozenset():
        return None
    return _known(reference.aus, reference)


def _answered_aus(episode: Episode, reference: Reference) -> frozenset[int] | None:
    answer = episode.answer
    return None if answer is None or answer.aus is None else _known(answer.aus, reference)


def _au(episode: Episode, reference: Reference) -> float:
    predicted, true = _answered_aus(episode, reference), _reference_aus(reference)
    return 0.0 if predicted is None or true is None else f1(predicted, true)


def _region(episode: Episode, reference: Reference) -> float:
    """Mean F1 over the face regions in which the answer or the reference has an action unit."""
    predicted, true = _answered_aus(episode, reference), _reference_aus(reference)
    if predicted is None or true is None:
        return 0.0
    active = [aus for aus in facs.REGION_AUS.values() if (predicted | true) & aus]
    if not active:
        return f1(predicted, true)
    return sum(f1(predicted & aus, true & aus) for aus in active) / len(active)


def _emotion(episode: Episode, reference: Reference) -> float:
    answer = episode.answer
    if answer is None or answer.answer is None or reference.emotion is None:
        return 0.0
    return float(facs.normalise_emotion(answer.answer) == facs.normalise_emotion(reference.emotion))


def _actfer(
    episode: Episode, reference: Reference, levels: dict[str, float], config: RewardConfig
) -> tuple[float, float]:
    """Weighted levels behind the format gate; a level without a reference hands its weight to the others."""
    weights = {"au": config.w_au, "region": config.w_region, "emotion": config.w_emotion}
    dropped = set()
    if _reference_aus(reference) is None:
        dropped |= {"au", "region"}
    if reference.emotion is None:
        dropped.add("emotion")
    kept = sum(weight for level, weight in weights.items() if level not in dropped)
    value = sum(weight * levels[level] for level, weight in weights.items() if level not in dropped)
    task = levels["format"] * value * sum(weights.values()) / kept if kept else 0.0
    return task, config.w_format * levels["format"] + config.w_tool * levels["tool"] + task


def _facial_r1(
    episode: Episode, reference: Reference, levels: dict[str, float], config: RewardConfig
) -> tuple[float, float]:
    """Facial-R1 (arXiv 2511.10254): R_AU + R_acc + R_format, the AUs being those that the thoughts name."""
    true = _reference_aus(reference)
    thoughts = " ".join(turn.parsed.think for turn in episode.turns)
    named = _known(frozenset(int(number[:9]) for number in _NAMED_AU.findall(thoughts)), reference)
    if not true:
        au = 0.0
    elif not named:
        au = -1.0
    else:
        au = 2 * f1(named, true) - 1
    task = au + (0.5 if reference.emotion is None else levels["emotion"])
    return task, task + levels["format"]


def _unifer(
    episode: Episode, reference: Reference, levels: dict[str, float], config: RewardConfig
) -> tuple[float, float]:
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


_REWARD_SETS: dict[str, Callable[[Episode, Reference, dict[str, float], RewardConfig], tuple[float, float]]] = {
    "actfer": _actfer,
    "facial_r1": _facial_r1,
    "unifer": _unifer,
}
