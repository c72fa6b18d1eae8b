"""Episodes for TRL's `GRPOTrainer`: the face tools as its environments, the package's reward as its reward function.

    faces = Faces(samples, rules, toolbox, RewardConfig())
    GRPOTrainer(
        model,
        reward_funcs=[faces.reward],
        args=GRPOConfig(max_tool_calling_iterations=rules.max_turns - 1, ...),
        train_dataset=datasets.Dataset.from_list(faces.rows()),
        environment_factory=faces.environment,
    )

Written for TRL 1.16, whose `environment_factory` is experimental; nothing of TRL or PyTorch is imported here. TRL's
other way, `tools=[...]`, takes functions that see only what the policy wrote: they could not know which picture is
meant.

What differs from this package's own rollouts: TRL writes the tools' schemas from the docstrings below, has no limit for
a single turn, and replies itself to a call with a wrong name or wrong arguments, which counts here as one that failed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from actfer_jax.agent import prompts
from actfer_jax.agent.chat import Uncounted
from actfer_jax.agent.environment import Environment, EpisodeConfig
from actfer_jax.agent.episode import Episode
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.tools import Toolbox
from actfer_jax.data.sources import Samples
from actfer_jax.evaluation.conversation import Conversation
from actfer_jax.faces.views import View
from actfer_jax.rl import rewards

Message = dict[str, Any]


class Faces:
    """Samples with the rules, tools and reward of their episodes.

    Args:
      samples: a data set's source, or any sequence of samples with one image each.
      rules: the limits of an episode, of which only `max_turns` binds.
      toolbox: the face tools.
      reward: what is paid.
    """

    def __init__(
        self, samples: Samples, rules: EpisodeConfig, toolbox: Toolbox, reward: rewards.BaseRewardConfig
    ) -> None:
        self.samples, self.rules, self.toolbox, self.paid = samples, rules, toolbox, reward

    def rows(self) -> list[dict[str, Any]]:
        """The rows of a training set: `prompt`, its messages; `images`, the scene as the policy is shown it; and
        `sample`, an index."""
        return [self._row(index) for index in range(len(self.samples))]

    def environment(self) -> "FaceTools":
        """What `environment_factory` calls."""
        return FaceTools(self.begin)

    def reward(
        self,
        completions: Sequence[Sequence[Message]],
        sample: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """The `total` of each completion; the means of its levels become TRL's metrics, such as `level/emotion`."""
        del columns
        scores = [
            rewards.score(self.replayed(index, completion), self.samples[index].reference, self.paid)
            for index, completion in zip(sample, completions, strict=True)
        ]
        if log_metric is not None:
            for level in scores[0]:
                log_metric(f"level/{level}", sum(score[level] for score in scores) / len(scores))
        return [score["total"] for score in scores]

    def replayed(self, index: int, completion: Sequence[Message]) -> Episode:
        """The episode that the messages of a completion are, by this package's rules: the tools run once more."""
        episode = self.begin(index)
        conversation = Conversation(episode.prompt, (), episode.format)
        for message in completion:
            if message["role"] == "assistant" and not episode.done:
                episode.step(conversation.hear(message), 0)
        return episode.episode

    def _row(self, index: int) -> dict[str, Any]:
        episode = self.begin(index)
        said = {"system": episode.prompt.system, "user": episode.prompt.request}
        # TRL puts the images before the words of the user.
        prompt = [{"role": role, "content": words} for role, words in said.items() if words]
        return {"prompt": prompt, "images": [Image.fromarray(view.pixels) for view in episode.views], "sample": index}

    def begin(self, index: int) -> Environment:
        """An episode of the sample with this index."""
        environment = Environment(self.rules, Uncounted(), self.toolbox, lambda view: 0)
        environment.reset(self.samples[index])
        return environment


class FaceTools:
    """The tools of one episode after the other, as TRL takes an environment: its public methods are the tools.

    Args:
      begin: starts an episode of the sample with an index.
    """

    def __init__(self, begin: Callable[[int], Environment]):
        self._begin = begin

    def reset(self, sample: int, **columns: Any) -> None:
        """Starts an episode; the row of the training set has the prompt."""
        del columns
        self._episode = self._begin(sample)

    def detect_faces(self) -> list[dict[str, Any]]:
        """
        Lists faces, the surest first: number, box, confidence.

        Returns:
            The list.
        """
        return self._call("detect_faces", {})

    def align_face(self, face: int = 0) -> list[dict[str, Any]]:
        """
        Shows a face upright and large.

        Args:
            face: as detect_faces lists it; 0 by default

        Returns:
            The view.
        """
        return self._call("align_face", {"face": face})

    def zoom(
        self,
        region: str | None = None,
        face: int | None = None,
        bbox: list[int] | None = None,
        image: int | None = None,
    ) -> list[dict[str, Any]]:
        """
        Shows a region (of face), or a bbox (of image), from the original pixels.

        Args:
            region: of the face (choices: ["brows", "eyes", "nose", "cheeks", "mouth", "chin"])
            face: as detect_faces lists it; 0 by default
            bbox: [left, top, right, bottom] in 0..1000 of the view
            image: view of bbox: 0, the default, is the picture, then views in order

        Returns:
            The view.
        """
        given = {"region": region, "face": face, "bbox": bbox, "image": image}
        return self._call("zoom", {name: value for name, value in given.items() if value is not None})

    def _call(self, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """The reply, as the parts of a message."""
        episode = self._episode
        seen = None
        if not episode.done:
            call = episode.format.call_text(ToolCall(name, arguments))
            seen = episode.step(episode.format.thought_text("") + call, 0)
        if seen is None:
            return _parts(prompts.NO_CALLS_LEFT, ())
        return _parts(episode.reply_text, seen.views)


def _parts(text: str, views: Sequence[View]) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": Image.fromarray(view.pixels)} for view in views]
    return [{"type": "text", "text": text}, *images]
