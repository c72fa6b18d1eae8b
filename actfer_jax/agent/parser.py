"""The strict grammar of one assistant turn.

    turn   := "<think>" text "</think>" (call | answer)
    call   := "<tool_call>" json-object "</tool_call>"
    answer := aus label | aus | label
    aus    := "<aus>" AUs "</aus>"
    label  := "<answer>" text "</answer>"

White space between the parts is free; anything else outside them, a tag inside the thought, or a second
call or answer makes the turn malformed. Text is only ever matched and read as JSON, never evaluated. Which parts an
answer should have depends on what was asked (`rl.levels`).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from actfer_jax import facs

_TAG = r"</?(?:think|tool_call|aus|answer|tool_response)>"
_TEXT = rf"((?:(?!{_TAG}).)*)"
_TURN = re.compile(
    rf"\s*<think>{_TEXT}</think>\s*"
    rf"(?:<tool_call>{_TEXT}</tool_call>|(?=<)(?:<aus>{_TEXT}</aus>\s*)?(?:<answer>{_TEXT}</answer>)?)\s*",
    re.DOTALL,
)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_ANSWER_FIELD = re.compile("<aus>|<answer>")
_MAX_CALL_CHARACTERS = 2000


@dataclass(frozen=True)
class ToolCall:
    """A tool's name and its JSON arguments, well-formed but not yet checked against the tool."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ParsedTurn:
    """One turn as read. Exactly one of these holds: it calls, it answers, or it is malformed.

    Attributes:
      think: the thought; "" in a malformed turn.
      calls: the turn is a tool call, even one that cannot be read.
      call: the call, or None where it could not be read.
      error: what is wrong with an unreadable call, or with a malformed turn; "" otherwise.
      aus: the answered action units; None if the turn has none.
      answer: the answered label as written, stripped; None if the turn has none.
    """

    think: str = ""
    calls: bool = False
    call: ToolCall | None = None
    error: str = ""
    aus: frozenset[int] | None = None
    answer: str | None = None

    @property
    def answers(self) -> bool:
        return self.aus is not None or self.answer is not None

    @property
    def well_formed(self) -> bool:
        return self.calls or self.answers


def parse_turn(text: str) -> ParsedTurn:
    """Reads one assistant turn, without its end-of-turn token."""
    match = _TURN.fullmatch(text)
    if match is None:
        return ParsedTurn(error="not a thought followed by one tool call or one answer")
    think, call_text, aus_text, answer = match.groups()
    if call_text is not None:
        call, error = parse_call(call_text)
        return ParsedTurn(think=think.strip(), calls=True, call=call, error=error)
    try:
        aus = None if aus_text is None else facs.parse_aus(aus_text)
    except ValueError as error:
        return ParsedTurn(error=str(error))
    return ParsedTurn(think=think.strip(), aus=aus, answer=None if answer is None else answer.strip())


def answer_start(text: str) -> int:
    """Where an answer begins in a turn, well formed or not: the first of its fields outside the thought; -1 without."""
    outside = _THOUGHT.sub(lambda thought: " " * len(thought.group()), text)
    field = _ANSWER_FIELD.search(outside)
    return field.start() if field else -1


def parse_call(text: str) -> tuple[ToolCall | None, str]:
    """Reads a call, a JSON object with "name" and "arguments": the call, or None and what is wrong with it."""
    if len(text) > _MAX_CALL_CHARACTERS:
        return None, f"a tool call may be at most {_MAX_CALL_CHARACTERS} characters"
    try:
        # A document nested a thousand deep raises RecursionError, not ValueError.
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, "the tool call is not valid JSON"
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return None, 'a tool call has exactly the keys "name" and "arguments"'
    if not isinstance(value["name"], str) or not isinstance(value["arguments"], dict):
        return None, '"name" is a string and "arguments" an object'
    return ToolCall(value["name"], value["arguments"]), ""
