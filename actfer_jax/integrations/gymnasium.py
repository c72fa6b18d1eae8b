"""Episodes as a Gymnasium environment: `pip install 'actfer_jax[gymnasium]'`.

`examples/gymnasium_episode.py` plays one.
"""

import json
import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actfer_jax.agent.chat import Uncounted
from actfer_jax.agent.environment import Environment, EpisodeConfig
from actfer_jax.agent.tools import Toolbox
from actfer_jax.data.sources import Samples
from actfer_jax.faces.views import View
from actfer_jax.rl import rewards

Observation = dict[str, Any]

_LONGEST_TEXT = 2**15
_CHARACTERS = "\n\t" + "".join(filter(str.isprintable, map(chr, range(2**16))))


class Picture(spaces.Space[NDArray[np.uint8]]):
    """Pictures of any shape, uint8 [H, W, 3] with at most `pixels` pixels: the views of an episode differ in shape."""

    def __init__(self, pixels: int, seed: int | np.random.Generator | None = None):
        super().__init__(None, np.uint8, seed)
        self.pixels = pixels

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: None = None, probability: None = None) -> NDArray[np.uint8]:
        height, width = self.np_random.integers(1, math.isqrt(self.pixels), 2, endpoint=True)
        return self.np_random.integers(0, 256, (height, width, 3), np.uint8)

    def contains(self, x: Any) -> bool:
        if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3:
            return False
        return 1 <= x.shape[0] * x.shape[1] <= self.pixels


class FaceEpisodes(gymnasium.Env[Observation, str]):
    """One sample is one episode, by the rules of `agent.environment`.

    An action is the text of a turn, without the end-of-turn token. An observation has the `text` that the policy reads
    next (the prompt with the tools' schemas, then the replies of the tools) and the new `views`: a chat template puts
    them before the prompt's request, and after a reply's text. The last observation is empty. The reward is 0 until
    then, and the `total` of `rl.rewards` at the end.

    `info` has `sample`, its index, and the `views`: for each new one what it shows, of which image of the sample it is
    a part, and its map, float64 [2, 3], to that image's pixels. At the end it has `levels`, all that
    `rl.rewards.score` returns.

    `terminated`: the turn answers, or is malformed. `truncated`: it calls a tool where no call was left. Limits in
    tokens do not bind, since no tokenizer is known.

    Args:
      samples: a data set's source, or any sequence of samples.
      rules: the limits of an episode.
      toolbox: the face tools.
      reward: what is paid.

    Attributes:
      environment: the rules at work; its `prompt` has the tools' schemas, for a chat template.
    """

    def __init__(
        self,
        samples: Samples,
        rules: EpisodeConfig,
        toolbox: Toolbox,
        reward: rewards.BaseRewardConfig,
    ):
        self.samples, self.reward = samples, reward
        self.environment = Environment(rules, Uncounted(), toolbox, lambda view: 0)
        text = spaces.Text(_LONGEST_TEXT, min_length=0, charset=_CHARACTERS)
        self.action_space = text
        limits = toolbox.view_config
        pixels = max(limits.scene_max_tokens, limits.view_max_tokens) * limits.multiple**2
        self.observation_space = spaces.Dict({"text": text, "views": spaces.Sequence(Picture(pixels))})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode of a sample drawn at random, or of that with the index `options["sample"]`.

        Raises:
          IndexError: there is no such sample.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.samples)))
        self.index = (options or {}).get("sample", drawn)
        views = self.environment.reset(self.samples[self.index]).views
        prompt = self.environment.prompt
        text = "\n".join(filter(None, (prompt.system, *map(json.dumps, prompt.tools or ()), prompt.request)))
        return self._seen(text, views)

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes in a turn."""
        environment = self.environment
        observation = environment.step(action, 0)
        if observation is not None:
            seen, info = self._seen(environment.reply_text, observation.views)
            return seen, 0.0, False, False, info
        seen, info = self._seen("", ())
        info["levels"] = rewards.score(environment.episode, environment.sample.reference, self.reward)
        truncated = environment.episode.turns[-1].parsed.calls
        return seen, info["levels"]["total"], not truncated, truncated, info

    def _seen(self, text: str, views: tuple[View, ...]) -> tuple[Observation, dict[str, Any]]:
        # Copies: whoever keeps observations may write into them.
        shown = [{"shows": view.name, "image": view.image, "to_original": view.to_original.copy()} for view in views]
        pixels = tuple(view.pixels.copy() for view in views)
        return {"text": text, "views": pixels}, {"sample": self.index, "views": shown}
