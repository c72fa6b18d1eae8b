"""The grammar of ActFER: a thought in tags, then a tool call as Qwen writes it, or action units and a label in tags."""

import json

from actfer_jax import facs
from actfer_jax.agent.parser import ToolCall, answer_start, parse_turn
from actfer_jax.agent.prompts import make_prompt

__all__ = ["answer_start", "answer_text", "call_text", "make_prompt", "parse_turn", "thought_text"]


def thought_text(think: str) -> str:
    return f"<think>{think}</think>\n"


def call_text(call: ToolCall) -> str:
    words = json.dumps({"name": call.name, "arguments": call.arguments})
    return f"<tool_call>\n{words}\n</tool_call>"


def answer_text(aus: frozenset[int] | None, emotion: str | None) -> str:
    fields = [] if aus is None else [f"<aus>{facs.format_aus(aus)}</aus>"]
    return "\n".join(fields if emotion is None else [*fields, f"<answer>{emotion}</answer>"])
