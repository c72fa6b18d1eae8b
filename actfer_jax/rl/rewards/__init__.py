"""Rewards that a program can verify, a file each. `docs/algorithm.md` has the formulas.

Every reward scores the same levels (`rl.levels`), so that runs with different rewards can be compared, and differs in
how it makes `task` and `total` of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol

from actfer_jax import plugins
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.config import at_least, check_fields
from actfer_jax.rl.levels import LEVELS, score_levels


@dataclass(frozen=True)
class BaseRewardConfig:
    """What every reward has.

    Attributes:
      name: of a file of `rl/rewards`, or the dotted name of a module of your own.
      zoom_price: what one executed zoom costs, at least 0.
    """

    FOLDER: ClassVar[str] = "rl.rewards"

    name: str = "actfer"
    zoom_price: Annotated[float, at_least(0)] = 0.03

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class RewardConfig(BaseRewardConfig):
    """The constants of the rewards in this package. The weights are those of "actfer".

    Attributes:
      name: "actfer" (three levels, two gates), "facial_r1" or "unifer" (those systems' published sums).
      w_format, w_tool, w_au, w_region, w_emotion: weights of the levels, at least 0.
    """

    w_format: Annotated[float, at_least(0)] = 0.1
    w_tool: Annotated[float, at_least(0)] = 0.05
    w_au: Annotated[float, at_least(0)] = 0.3
    w_region: Annotated[float, at_least(0)] = 0.15
    w_emotion: Annotated[float, at_least(0)] = 0.4


class Reward(Protocol):
    """A module of this folder.

    Attributes:
      Config: its constants, a dataclass that extends `BaseRewardConfig`.
    """

    Config: type[Any]

    def score(
        self, episode: Episode, reference: Reference, levels: Mapping[str, float], config: Any
    ) -> tuple[float, float]:
        """The task reward and the total of an episode with at least one turn, before the price of its zooms.

        Args:
          levels: by `rl.levels.LEVELS`, each in [0, 1].
        """


def score(episode: Episode | None, reference: Reference, config: BaseRewardConfig) -> dict[str, float]:
    """The reward of one episode, with its parts.

    Returns:
      format, tool, au, region, emotion (each in [0, 1]; 0 where the reference does not know it), `task` (what UC-GRPO
      measures the utility of looking on) and `total` (what is maximised). All are 0 for None or without turns.

    Raises:
      ConfigError: there is no reward of that name.
    """
    reward: Reward = plugins.load(config.FOLDER, config.name)
    if episode is None or not episode.turns:
        return dict.fromkeys((*LEVELS, "task", "total"), 0.0)
    if not episode.ask_aus:
        reference = replace(reference, aus=None)
    levels = score_levels(episode, reference)
    task, total = reward.score(episode, reference, levels, config)
    return levels | {"task": task, "total": total - config.zoom_price * len(episode.zooms)}
