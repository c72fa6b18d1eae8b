"""An answer grammar of your own: every turn is one JSON object, thought first.

    {"think": "tense brows", "call": {"name": "zoom", "arguments": {"region": "mouth"}}}
    {"think": "AU9 at the nose", "aus": [9], "emotion": "disgust"}

The small policy that comes with the package has not learned this grammar. Traces teach it; with a Qwen3-VL:

    python -m actfer_jax.train --config=configs/sft.py --config.rollout.format=examples.json_answers \\
        --config.model.path=DIR --workdir=runs/json
"""

import json

from actfer_jax import facs
from actfer_jax.agent.parser import ParsedTurn, ToolCall, parse_call
from actfer_jax.agent.prompts import ANSWER_NOW, Prompt
from actfer_jax.agent.tools import tool_schemas

_SYSTEM = (
    "You read the action units (AUs) of a face and name its emotion. Every turn is one JSON object: your reasoning as "
    '"think", then a tool call, {"think": "...", "call": {"name": "zoom", "arguments": {"region": "mouth"}}}, or '
    'the answer, {"think": "...", "aus": [1, 2, 5], "emotion": "fear"}, with what you are asked for. The tools are: '
)


def make_prompt(
    style: str,
    labels: tuple[str, ...],
    *,
    ask_aus: bool = True,
    images: int = 1,
    answer_now: bool = False,
    which: str = "",
) -> Prompt:
    tools = [schema["function"] for schema in tool_schemas(images)]
    system = _SYSTEM + json.dumps(tools) if style == "full" else ""
    where = f"{which} " if which else ""
    where += "in the last picture " if images > 1 else ""
    asked = ["emotion"] * bool(labels) + ["action units"] * (ask_aus or not labels)
    request = f"Which {' and '.join(asked)} does the face {where}show?"
    if labels:
        request += f" Choose one emotion of: {', '.join(labels)}."
    return Prompt(system, f"{request} {ANSWER_NOW}" if answer_now else request, None, images)


def parse_turn(text: str) -> ParsedTurn:
    try:
        turn = json.loads(text)
    except (ValueError, RecursionError):
        return ParsedTurn(error="the turn is not one JSON object")
    if not isinstance(turn, dict) or not isinstance(turn.get("think"), str):
        return ParsedTurn(error='the turn has no "think"')
    if turn.keys() == {"think", "call"}:
        call, error = parse_call(json.dumps(turn["call"]))
        return ParsedTurn(think=turn["think"], calls=True, call=call, error=error)
    aus, emotion = turn.get("aus"), turn.get("emotion")
    if not turn.keys() <= {"think", "aus", "emotion"} or len(turn) == 1:
        return ParsedTurn(error='a turn has a "call", or "aus" or "emotion" or both')
    if "emotion" in turn and not isinstance(emotion, str):
        return ParsedTurn(error='"emotion" is a label')
    if "aus" not in turn:
        return ParsedTurn(think=turn["think"], answer=emotion.strip())
    if not isinstance(aus, list) or not all(type(au) is int and au in facs.AU_NAMES for au in aus):
        return ParsedTurn(error='"aus" are the numbers of action units')
    return ParsedTurn(think=turn["think"], aus=frozenset(aus), answer=emotion.strip() if "emotion" in turn else None)


def answer_start(text: str) -> int:
    # Inside the thought, a string of JSON, quotation marks are escaped.
    places = [text.find(f', "{field}":') for field in ("aus", "emotion")]
    return min((place for place in places if place >= 0), default=-1)


def thought_text(think: str) -> str:
    return f'{{"think": {json.dumps(think)}'


def call_text(call: ToolCall) -> str:
    return f', "call": {json.dumps({"name": call.name, "arguments": call.arguments})}}}'


def answer_text(aus: frozenset[int] | None, emotion: str | None) -> str:
    fields = "" if aus is None else f', "aus": {sorted(aus)}'
    return fields + ("}" if emotion is None else f', "emotion": {json.dumps(emotion)}}}')
