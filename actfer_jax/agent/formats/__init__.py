"""Answer grammars, a file each: how a policy writes its turns, and what it is told about that."""

from typing import Protocol

from actfer_jax.agent.parser import ParsedTurn, ToolCall
from actfer_jax.agent.prompts import Prompt


class Format(Protocol):
    """A module of this folder. A turn is `thought_text` followed by `call_text` or `answer_text`."""

    def make_prompt(
        self,
        style: str,
        labels: tuple[str, ...],
        *,
        ask_aus: bool = True,
        images: int = 1,
        answer_now: bool = False,
        which: str = "",
    ) -> Prompt:
        """What opens an episode, in one of `prompts.STYLES`; "full" names every label.

        Args:
          labels: the emotions to choose from; without any, only action units are asked for.
          ask_aus: ask for action units.
          images: how many images the sample has; of several, the last is to be read.
          answer_now: tell the policy not to use tools.
          which: which face of several is meant, such as "on the left"; "" where there is one only.
        """

    def parse_turn(self, text: str) -> ParsedTurn:
        """Reads a turn, without its end-of-turn token. Text of any kind gives a result; it never raises."""

    def answer_start(self, text: str) -> int:
        """Where the fields of an answer begin in a turn that does not call, whether or not it can be read; -1 where
        there are none outside the thought. Up to there a policy can still decide to call a tool."""

    def thought_text(self, think: str) -> str:
        """How a turn begins."""

    def call_text(self, call: ToolCall) -> str:
        """How a turn with a tool call ends."""

    def answer_text(self, aus: frozenset[int] | None, emotion: str | None) -> str:
        """How a turn with an answer ends; what was not asked for is None."""
