"""Plays a data set with a model on a server, by the rules and with the tools that a policy of ours has."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple, TypeVar

from actfer_jax.agent.chat import Uncounted
from actfer_jax.agent.environment import Environment, EpisodeConfig
from actfer_jax.agent.episode import Episode, Sample
from actfer_jax.agent.prompts import STYLES, Prompt
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import Count, FieldError, above, at_least, check_fields, one_of
from actfer_jax.evaluation.chat_client import ChatClient, RequestError, Usage, total
from actfer_jax.evaluation.controls import Control
from actfer_jax.evaluation.conversation import Conversation
from actfer_jax.faces.views import View, ViewConfig

Job = TypeVar("Job")
Result = TypeVar("Result")

_ANY_NUMBER = 1000  # More images than any sample has.


@dataclass(frozen=True)
class EndpointConfig:
    """How a model on a server is asked (docs/endpoint.md). Only `--endpoint` uses it.

    Attributes:
      api_key_variable: the environment variable that has the API key. Where it is not set, none is sent.
      parallel: requests at a time.
      timeout: seconds that a response may take, above 0.
      attempts: how often a request is sent before its episode has failed.
      prompt_price, completion_price: of a million tokens, at least 0; both 0 where no cost is to be reckoned.
      passive: no tools, and one turn: the model answers to the data set's own prompt where a sample has one
        (`reference.extra["prompt"]`), else to that of the grammar "passive".
      format, prompt_style, ask_aus, max_turns, turn_tokens: as in `EpisodeConfig`.
      tool_choice: "auto", or "none" for servers that describe the tools to the model and leave the calls in its text.
      images_in: the role of the message with the view that a call in `tool_calls` brought, "user" or "tool".
      request: a JSON object with further keys of every request, and other values of those that it has. Null leaves a
        key out.
      views: the sizes of views.
    """

    api_key_variable: str = "ACTFER_API_KEY"
    parallel: Count = 8
    timeout: Annotated[float, above(0)] = 300.0
    attempts: Count = 6
    prompt_price: Annotated[float, at_least(0)] = 0.0
    completion_price: Annotated[float, at_least(0)] = 0.0
    passive: bool = False
    format: str = "actfer"
    prompt_style: Annotated[str, one_of(*STYLES)] = "full"
    ask_aus: bool = True
    max_turns: Count = 4
    turn_tokens: Count = 192
    tool_choice: Annotated[str, one_of("auto", "none")] = "auto"
    images_in: Annotated[str, one_of("user", "tool")] = "user"
    request: str = "{}"
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        self.rules  # noqa: B018 (its checks name the keys that it shares with this section)
        self.keys  # noqa: B018

    @property
    def keys(self) -> dict[str, Any]:
        """What `request` says.

        Raises:
          FieldError: it is no JSON object.
        """
        try:
            keys = json.loads(self.request)
        except ValueError:
            keys = None
        if not isinstance(keys, dict):
            raise FieldError("request", f"is {self.request!r}; it must be a JSON object, such as '{{\"top_p\": 0.9}}'")
        return keys

    @property
    def rules(self) -> EpisodeConfig:
        """The limits of an episode: turns alone, since nothing is known of the model's tokens."""
        turn = self.turn_tokens
        return EpisodeConfig(
            format="passive" if self.passive else self.format,
            prompt_style=self.prompt_style,
            ask_aus=self.ask_aus,
            images=_ANY_NUMBER,
            max_turns=1 if self.passive else self.max_turns,
            turn_tokens=turn,
            # Nothing has a length but the end tokens of turns that were cut: there is always room for one more call.
            prompt_tokens=1,
            reply_tokens=1,
            max_length=2 * turn + 3 + self.max_turns,
        )

    def cost(self, usage: Usage) -> float | None:
        """What the tokens of requests cost; None without prices."""
        if not (self.prompt_price or self.completion_price):
            return None
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / 1e6


class Played(NamedTuple):
    """A finished episode, or as much of it as was played before a request failed for good.

    Attributes:
      views: the scene of each image, then the views that the tools returned.
      failure: why it failed; "" if it did not.
    """

    episode: Episode
    views: list[View]
    usage: Usage
    failure: str


@dataclass(frozen=True)
class EndpointPlayer:
    """Plays episodes. Threads may share it.

    Attributes:
      sampling: keys of every request that say how tokens are chosen.
    """

    config: EndpointConfig
    client: ChatClient
    model: str
    toolbox: Toolbox
    sampling: dict[str, Any]

    def play(self, sample: Sample, control: Control) -> Played:
        """Plays one episode.

        Raises:
          UserError: no episode can be played (`ChatClient.complete`).
        """
        environment = Environment(
            self.config.rules, Uncounted(), self.toolbox, lambda view: 0, treatment=control.treatment
        )
        environment.reset(sample, arm=control.arm, answer_now=control.answer_now)
        prompt = environment.prompt
        if self.config.passive and (own := sample.reference.extra.get("prompt")):
            # It asks for the emotion alone.
            prompt, environment.episode.ask_aus = Prompt("", str(own), None, prompt.images), False
        conversation = Conversation(prompt, environment.views, environment.format, self.config.images_in)
        usages, failure = list[Usage](), ""
        while not environment.done:
            try:
                completion = self.client.complete(self._request(conversation, prompt))
            except RequestError as error:
                failure = str(error)
                break
            usages.append(completion.usage)
            text = conversation.hear(completion.message)
            observation = environment.step(text, 0, truncated=completion.truncated)
            if observation is not None:
                conversation.reply(environment.reply_text, observation.views)
        return Played(environment.episode, environment.views, total(usages), failure)

    def _request(self, conversation: Conversation, prompt: Prompt) -> dict[str, Any]:
        body = {"model": self.model, "messages": conversation.messages, "max_tokens": self.config.turn_tokens}
        if prompt.tools:
            body |= {"tools": prompt.tools, "tool_choice": self.config.tool_choice, "parallel_tool_calls": False}
        body |= self.sampling | self.config.keys
        return {key: value for key, value in body.items() if value is not None}


def in_threads(jobs: Iterable[Job], work: Callable[[Job], Result], threads: int) -> Iterator[tuple[Job, Result]]:
    """The results of jobs in the order in which they are finished.

    What a job raises is raised here, and no further job begins. Nobody waits for those that are under way: a request
    may hang for minutes.
    """
    waiting, lock, stopped = iter(jobs), threading.Lock(), threading.Event()
    finished = SimpleQueue[tuple[Job, Result] | BaseException | None]()

    def serve() -> None:
        try:
            while True:
                with lock:
                    job = next(waiting)
                if stopped.is_set():
                    return
                finished.put((job, work(job)))
        except StopIteration:
            finished.put(None)
        except BaseException as error:
            finished.put(error)

    for _ in range(threads):
        threading.Thread(target=serve, daemon=True).start()
    running = threads
    try:
        while running:
            result = finished.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                running -= 1
            else:
                yield result
    finally:
        stopped.set()


def spent_in_words(spent: Mapping[str, Any]) -> str:
    """What the requests took, for a terminal: from `endpoint` of the results."""
    words = (
        f"{spent['requests']} responses of {spent['url']}: {spent['prompt_tokens']} prompt tokens and "
        f"{spent['completion_tokens']} completion tokens"
    )
    if spent["unreported"]:
        words += f", without {spent['unreported']} responses that did not say"
    if spent["cost"] is not None:
        words += f"; they cost {spent['cost']:.4g}"
    failed = [f"{count} failed, and are no wrong answers: {why}" for why, count in spent["failed"].items()]
    return "\n".join([f"{words}.", *failed])
