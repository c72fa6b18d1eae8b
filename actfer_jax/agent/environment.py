"""The rules of an episode: what the policy is shown, which reply ends with which instruction, and when it is over.

Whatever plays episodes drives this object: rollouts, supervised traces, other programs.

    environment = Environment(config, chat, toolbox, image_tokens)
    observation = environment.reset(sample)
    while observation is not None:
        text, tokens = policy(observation)
        observation = environment.step(text, tokens)

To run the tools elsewhere or later, call the parts of `step`: `end_turn`, `run_tool`, `observe`.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from actfer_jax import plugins
from actfer_jax.agent import prompts
from actfer_jax.agent.chat import Chat, Encoding, as_read
from actfer_jax.agent.episode import Episode, Reply, Sample, Turn
from actfer_jax.agent.formats import Format
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import ConfigError, Count, FieldError, check_fields, one_of
from actfer_jax.faces.views import View

FORMATS = "agent.formats"
_INSTRUCTIONS = {"": "", "zoom": f" {prompts.ZOOM_FIRST}", "answer": f" {prompts.ANSWER_NOW}"}


@dataclass(frozen=True)
class EpisodeConfig:
    """How long an episode may become. Every number is at least 1.

    Attributes:
      format: the grammar of turns: a file of `agent/formats`, or the dotted name of a module of your own.
      prompt_style: "full" or "brief" (agent.prompts).
      max_turns: assistant turns an episode may take.
      prompt_tokens: room for the prompt with the scenes.
      turn_tokens: most tokens of a turn; a longer one is cut.
      reply_tokens: room for a tool reply with its view. Words that do not fit are cut off.
      ask_aus: ask for action units, as evidence of the emotion. They are always asked for where a data set has no
        emotion labels.
      images: most images of a sample. Each takes the room of a scene, in every row.
      max_length: positions of a row, at least for a prompt, a call, its reply and an answer (with `max_turns` 1, a
        prompt and an answer). Where what was said leaves no room for one more call, its reply and an answer, the
        policy is told earlier to answer.
    """

    format: str = "actfer"
    prompt_style: Annotated[str, one_of(*prompts.STYLES)] = "full"
    ask_aus: bool = True
    images: Count = 1
    max_turns: Count = 4
    prompt_tokens: Count = 1280
    turn_tokens: Count = 192
    reply_tokens: Count = 320
    max_length: Count = 3072

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            load_format(self)
        except ConfigError as error:
            raise FieldError("format", f"cannot be used: {error}") from error
        rest, what = self.one_more_call, "a prompt, a call, its reply and an answer"
        if self.max_turns == 1:
            rest, what = self.turn_tokens, "a prompt and an answer"
        if self.max_length < self.prompt_tokens + rest:
            least = self.prompt_tokens + rest
            raise FieldError("max_length", f"is {self.max_length}; it must be at least {least}, for {what}")

    @property
    def policy_tokens(self) -> int:
        """The most tokens that the policy writes in an episode."""
        return self.max_turns * self.turn_tokens

    @property
    def suffix_tokens(self) -> int:
        """The most tokens of an episode from the last one of its prompt on. A call that was cut gets an end token."""
        replies = (self.max_turns - 1) * (1 + self.reply_tokens)
        return min(1 + self.policy_tokens + replies, self.max_length)

    @property
    def one_more_call(self) -> int:
        """The most tokens of a call, its reply and an answer. A call that was cut gets an end token, inserted."""
        return self.turn_tokens + 1 + self.reply_tokens + self.turn_tokens


def load_format(config: EpisodeConfig) -> Format:
    """The grammar that a config names."""
    grammar: Format = plugins.load(FORMATS, config.format)
    return grammar


def check_turn_start(config: EpisodeConfig, chat: Chat) -> None:
    """Checks that the turns of a grammar begin with what the chat template opens a turn with.

    Raises:
      ConfigError: they do not, so that every turn of the policy would be malformed.
    """
    if not load_format(config).thought_text("x").startswith(chat.turn_start.strip()):
        raise ConfigError(
            f"the chat template opens every turn of the policy with {chat.turn_start!r}, and the format "
            f"{config.format!r} does not begin so: use a template that opens no thought, or one thought only"
        )


def largest_prompt(config: EpisodeConfig, chat: Chat, labels: tuple[str, ...], scene_tokens: int) -> int:
    """The most tokens of a data set's prompts.

    Args:
      labels: the data set's.
      scene_tokens: most image tokens of a scene.
    """
    prompt = load_format(config).make_prompt(
        config.prompt_style, labels, ask_aus=config.ask_aus, images=config.images, answer_now=True
    )
    return len(chat.prompt_ids(prompt, [scene_tokens] * config.images))


def largest_reply(config: EpisodeConfig, chat: Chat, view_tokens: int) -> int:
    """The room that a reply needs whose view is the largest, where all its words are cut off but an instruction; 0
    where an episode has no replies.

    Args:
      view_tokens: most image tokens of an aligned or zoomed view.
    """
    if config.max_turns == 1:
        return 0
    return max(len(chat.reply_ids(instruction, view_tokens)) for instruction in _INSTRUCTIONS.values())


def instruction_tokens(chat: Chat) -> int:
    """The most tokens that an instruction adds to a reply."""
    without = len(chat.reply_ids("x", None))
    return max(len(chat.reply_ids("x" + instruction, None)) for instruction in _INSTRUCTIONS.values()) - without


class Observation(NamedTuple):
    """What the policy reads next.

    Attributes:
      token_ids: they follow what the row has; an inserted end of a turn that was cut is among them.
      views: the new views, in the order of their placeholders in `token_ids`.
    """

    token_ids: list[int]
    views: tuple[View, ...]


class Environment:
    """One episode after the other.

    Args:
      config: its limits.
      chat: between texts and token ids.
      toolbox: the face tools.
      image_tokens: how many image tokens a view becomes.
      treatment: what the tools do to the views that they return (`tools.TREATMENTS`).

    Attributes:
      prompt: what opened the episode.
      reply_text: the words of the last reply as the policy reads them, with the instruction.
      episode: turns and replies so far.
      views: the scene of each image, then the views that the tools returned.
      length: token ids so far.
      arm: what the reply with the aligned face is to instruct, "zoom" or "answer"; "" for nothing.
      final: the policy was told to answer; a call is refused.
      done: the episode is over.
    """

    def __init__(
        self,
        config: EpisodeConfig,
        chat: Encoding,
        toolbox: Toolbox,
        image_tokens: Callable[[View], int],
        *,
        treatment: str = "",
    ):
        self.config, self.chat, self.toolbox = config, chat, toolbox
        self.image_tokens, self.treatment = image_tokens, treatment
        self.format = load_format(config)

    def reset(
        self, sample: Sample, *, arm: str = "", answer_now: bool = False, scenes: Sequence[View] = ()
    ) -> Observation:
        """Starts an episode.

        Args:
          sample: what it is about; the policy never sees the reference, only its labels.
          arm: what the reply with the aligned face is to instruct, "zoom" or "answer"; "" for nothing. Where that
            reply has no room for a zoom after it, it is left out. `episode.forced` says what was instructed.
          answer_now: tell the policy to answer at once, as it also is where it has one turn only.
          scenes: those of its images (`Toolbox.scene`), where they have been cut; else they are cut here.

        Raises:
          ConfigError: the sample has more images than the config allows, or the prompt with its scenes has no room.
        """
        count = len(sample.images)
        if count > self.config.images:
            raise ConfigError(
                f"{sample.name} has {count} images; raise config.rollout.images (now {self.config.images})"
            )
        scenes = tuple(scenes or (self.toolbox.scene(image, index) for index, image in enumerate(sample.images)))
        answer_now = answer_now or self.config.max_turns == 1
        labels, ask_aus = sample.reference.labels, self.config.ask_aus
        prompt = self.format.make_prompt(
            self.config.prompt_style, labels, ask_aus=ask_aus, images=count, answer_now=answer_now, which=sample.which
        )
        ids = self.chat.prompt_ids(prompt, [self.image_tokens(scene) for scene in scenes])
        check_room(f"the prompt of {sample.name}", len(ids), "prompt_tokens", self.config.prompt_tokens)
        self.sample, self.prompt = sample, prompt
        self.episode = Episode(ask_aus=ask_aus or not labels)
        self.views, self.length = list(scenes), len(ids)
        self.arm, self.final, self.done = arm, answer_now, False
        return Observation(ids, scenes)

    def fork(self, arm: str = "") -> "Environment":
        """Another episode of the same sample, which has the observation of `reset` in common with this one."""
        other = copy.copy(self)
        other.episode, other.views, other.arm = Episode(ask_aus=self.episode.ask_aus), list(self.views), arm
        return other

    def step(self, text: str, tokens: int, *, truncated: bool = False) -> Observation | None:
        """Takes in a turn of the policy, runs its tool, and returns what is to be read next; None at the end.

        Args:
          text: what the policy wrote, without what the template opens a turn with and without the end-of-turn token.
          tokens: how many token ids that was, with the end-of-turn token if it was written.
          truncated: the turn was cut before it ended.
        """
        self.end_turn(text, tokens, truncated=truncated)
        return None if self.done else self.observe(*self.run_tool())

    def end_turn(self, text: str, tokens: int, *, truncated: bool = False) -> None:
        """Takes in a turn, as `step` does: the episode is done, or waits for the reply of a tool."""
        opened = self.chat.turn_start
        parsed = self.format.parse_turn(opened + text)
        start = -1 if parsed.calls else self.format.answer_start(opened + text) - len(opened)
        turn = Turn(text, parsed, truncated=truncated, answer_start=max(start, -1))
        self.episode.turns.append(turn)
        self.length += tokens
        self.done = not turn.parsed.calls or self.final
        if self.done and turn.parsed.calls:
            call = turn.parsed.call
            turn.reply = Reply(prompts.NO_CALLS_LEFT, ok=False, tool=call.name if call else "")

    def run_tool(self) -> tuple[Reply, float]:
        """Carries out the call of the last turn; changes nothing here. Returns the reply and the seconds it took."""
        start = time.perf_counter()
        turn = self.episode.turns[-1].parsed
        reply = self.toolbox.execute(
            turn.call,
            turn.error,
            images=self.sample.images,
            key=self.sample.key,
            views=self.views,
            treatment=self.treatment,
        )
        return reply, time.perf_counter() - start

    def observe(self, reply: Reply, seconds: float) -> Observation:
        """Takes in the reply to the last turn.

        Raises:
          ConfigError: an instruction with its view has no room.
        """
        turn, config = self.episode.turns[-1], self.config
        self.length += turn.truncated
        image_tokens = None if reply.view is None else self.image_tokens(reply.view)
        aligned = reply.ok and reply.tool == "align_face"
        arm = self.arm if aligned and not self.episode.forced else ""
        # Both arms are instructed or neither is: else who is compared would depend on the arm.
        arms = ("zoom", "answer") if arm else ("",)
        fitting = {one: self._fitting(reply.text, _INSTRUCTIONS[one], image_tokens) for one in arms}
        (text, ids), instruction = fitting[arm], _INSTRUCTIONS[arm]
        room = config.max_length - self.length - max(len(ids) for _, ids in fitting.values())
        if len(self.episode.turns) + 1 >= config.max_turns or room < config.one_more_call:
            # Every rollout would be told so here: that is no arm.
            arm, self.final, instruction = "", True, _INSTRUCTIONS["answer"]
            text, ids = self._fitting(reply.text, instruction, image_tokens)
        if arm:
            self.episode.forced = arm
            self.final = arm == "answer"
        turn.reply, turn.seconds = replace(reply, text=text), seconds
        self.length += len(ids)
        # A turn that was cut is closed here, by a token that the policy is not trained on.
        ids = [self.chat.turn_end_id] * turn.truncated + ids
        views = () if reply.view is None else (reply.view,)
        self.views.extend(views)
        self.reply_text = as_read(text + instruction)
        return Observation(ids, views)

    def _fitting(self, text: str, instruction: str, image_tokens: int | None) -> tuple[str, list[int]]:
        """A reply's text and token ids. A text may be long (a list of many faces): its end is cut off until it fits."""
        room = self.config.reply_tokens
        while True:
            ids = self.chat.reply_ids(text + instruction, image_tokens)
            excess = len(ids) - room
            if excess <= 0 or not text:
                check_room(f"the reply {instruction!r} with its view", len(ids), "reply_tokens", room)
                return text, ids
            text = text[:-excess]  # A token has at least one character.


def check_room(what: str, tokens: int, key: str, room: int) -> None:
    """Raises ConfigError if something with so many tokens exceeds a limit of the section `rollout`."""
    if tokens > room:
        raise ConfigError(f"{what} has {tokens} tokens; raise config.rollout.{key} (now {room})")
