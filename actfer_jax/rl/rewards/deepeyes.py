"""The reward of DeepEyes (arXiv 2505.14362), whose bonus for tools is conditional on a right answer.

    R = 0.8 accuracy + 0.2 format + 1.2 tool
    tool = 1 if at least one crop came back and accuracy > 0.5, else 0
    format = 0, or -1 where tags are not balanced or an answer has 1,000 characters or more

The weights are those of the public code (Visual-Agent/DeepEyes at 6c5e796). Published with them: 16 rollouts, 256
questions a step, learning rate 1e-6, no KL; 90.1% on V* with a 7B model.

What differs: accuracy is that of the label, in an answer that can be read, where a language model judged.

It is fooled, as published: the bonus asks only whether a crop came back, so a crop of the whole picture, or one that is
not looked at, pays more than it costs. Action units are in no part of it: whether all are listed makes no difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.config import at_least
from actfer_jax.rl.rewards import BaseRewardConfig

_LONGEST_ANSWER = 1000
_TAGS = ("think", "answer")


@dataclass(frozen=True)
class Config(BaseRewardConfig):
    """Its constants.

    Attributes:
      zoom_price: as of every reward; none was published.
      w_accuracy, w_format, w_tool: weights of its parts, at least 0.
    """

    name: str = "deepeyes"
    zoom_price: Annotated[float, at_least(0)] = 0.0
    w_accuracy: Annotated[float, at_least(0)] = 0.8
    w_format: Annotated[float, at_least(0)] = 0.2
    w_tool: Annotated[float, at_least(0)] = 1.2


def score(episode: Episode, reference: Reference, levels: Mapping[str, float], config: Config) -> tuple[float, float]:
    """The accuracy as the task; the total adds format and the bonus."""
    del reference
    text = "".join(turn.text for turn in episode.turns)
    label = (episode.answer.answer if episode.answer is not None else None) or ""
    too_long = len(label) >= _LONGEST_ANSWER
    balanced = all(text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in _TAGS)
    accuracy = 0.0 if too_long else levels["emotion"]
    tool = float(bool(episode.zooms) and accuracy > 0.5)
    task = config.w_accuracy * accuracy
    return task, task - config.w_format * (too_long or not balanced) + config.w_tool * tool
