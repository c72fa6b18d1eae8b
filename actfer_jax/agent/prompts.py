"""Every text that the policy is given, apart from what the tools reply.

Two styles: `full` tells an instruction-following model the task, the format and the tools (through the tool section of
the checkpoint's own chat template); `brief` is for a small model that learns them all from its training traces.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actfer_jax import facs
from actfer_jax.agent.tools import TOOL_SCHEMAS, tool_schemas

ANSWER_NOW = "Answer now."
ZOOM_FIRST = "Zoom in on one region before you answer."
NO_CALLS_LEFT = "No calls are left."

STYLES = ("full", "brief")

_FULL_SYSTEM = (
    "You are an expert in the Facial Action Coding System. You are shown {shown} and name {asked}.\n"
    "With the tools you look closer. Look where the evidence is unclear, and no more than that.\n"
    "Every turn starts with your reasoning in <think></think>. Then make exactly one tool call, or finish with "
    "{answer}, for example:\n"
    "<think>The brows are raised and the jaw has dropped.</think>\n"
    "{example}"
)
_AUS_EXAMPLE = "<aus>AU1 AU2 AU5 AU26</aus>"
_EMOTION_EXAMPLE = "<answer>{label}</answer>"
_NO_AUS = "Write <aus>none</aus> if no action unit is present."
_EMOTION_REQUEST = "Which emotion does the face{which} show?"
_CHOICE = " Choose one of: {labels}."
_AUS_REQUEST = "Which action units does the face{which} show?"
_BRIEF_REQUEST, _BRIEF_REQUEST_OF_SEVERAL = "Read this face.", "Read the face{which}."


@dataclass(frozen=True)
class Prompt:
    """What opens an episode.

    Attributes:
      system: the system message, or "" for none.
      request: the user's words, after the images.
      tools: function schemas for the chat template, or None.
      images: how many images there are.
    """

    system: str
    request: str
    tools: list[dict[str, Any]] | None
    images: int = 1


def make_prompt(
    style: str,
    labels: tuple[str, ...],
    *,
    ask_aus: bool = True,
    images: int = 1,
    answer_now: bool = False,
    which: str = "",
) -> Prompt:
    """The prompt in one of `STYLES` for a data set's labels and a number of images.

    Args:
      labels: the emotions to choose from; without any, only action units are asked for.
      ask_aus: ask for action units.
      answer_now: tell the policy not to use tools.
      which: which face of several is meant (`Sample.which`).
    """
    ask_aus = ask_aus or not labels
    request = _EMOTION_REQUEST if labels else _AUS_REQUEST
    if style == "brief" and labels and ask_aus:
        request = _BRIEF_REQUEST_OF_SEVERAL if which else _BRIEF_REQUEST
    request = request.format(which=f" {which}" if which else "")
    if style == "full" and labels:
        request += _CHOICE.format(labels=", ".join(labels))
    if answer_now:
        request = f"{request} {ANSWER_NOW}"
    if style != "full":
        return Prompt("", request, None, images)
    shown, it = ("a picture", "it") if images == 1 else (f"{images} pictures, numbered from 0,", "the last of them")
    asked = f"the emotion of a face in {it}" if labels else f"the action units (AUs) of a face in {it}"
    answer, example = [], []
    if ask_aus:
        answer.append("the action units that are present")
        example.append(_AUS_EXAMPLE)
    if labels:
        asked += ", on the evidence of its action units (AUs)" if ask_aus else ""
        answer.append("one emotion")
        surprise = (label for label in labels if facs.normalise_emotion(label) == "surprise")
        example.append(_EMOTION_EXAMPLE.format(label=next(surprise, "LABEL")))
    if ask_aus:
        example.append(_NO_AUS)
    system = _FULL_SYSTEM.format(shown=shown, asked=asked, answer=" and ".join(answer), example="\n".join(example))
    return Prompt(system, request, tool_schemas(images), images)


def prompts_hash(make_prompt: Callable[..., Prompt]) -> str:
    """SHA-256 of the prompts of a grammar, the instructions and the tool schemas: two runs with one hash had the same
    words."""
    asked = ((("LABEL",), True), (("LABEL",), False), ((), True))
    prompts = [make_prompt(style, labels, ask_aus=ask_aus) for style in STYLES for labels, ask_aus in asked]
    opening = [{"system": prompt.system, "request": prompt.request, "tools": prompt.tools} for prompt in prompts]
    texts = [opening, ANSWER_NOW, ZOOM_FIRST, NO_CALLS_LEFT, TOOL_SCHEMAS]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
