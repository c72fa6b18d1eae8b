"""Every text that the policy is given, apart from what the tools reply.

Two styles: `full` tells an instruction-following model the task, the format and the tools (through the tool section of
the checkpoint's own chat template); `brief` is for a small model that learns them all from its training traces.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actfer_jax.agent.tools import TOOL_SCHEMAS, tool_schemas

ANSWER_NOW = "Answer now."
ZOOM_FIRST = "Zoom in on one region before you answer."
NO_CALLS_LEFT = "No calls are left."

STYLES = ("full", "brief")

_FULL_SYSTEM = (
    "You are an expert in the Facial Action Coding System. You are shown {shown}, on the "
    "evidence of its action units (AUs).\n"
    "You may look closer: find faces, align a face, and zoom in on a region (brows, eyes, nose, cheeks, mouth, chin) "
    "or a box. Boxes are [left, top, right, bottom] in whole numbers from 0 to 1000 relative to the view they are "
    "given in. Look where the evidence is unclear, and no more than that.\n"
    "Every turn starts with your reasoning in <think></think>. Then either make exactly one tool call, or finish with "
    "the action units that are present and one emotion, for example:\n"
    "<think>The brows are raised and the jaw has dropped.</think>\n"
    "<aus>AU1 AU2 AU5 AU26</aus>\n"
    "<answer>surprise</answer>\n"
    "Write <aus>none</aus> if no action unit is present."
)
_FULL_REQUEST = "Which emotion does the face show? Choose one of: {labels}."
_ONE_IMAGE = "a picture and name the emotion of a face in it"
_SEVERAL_IMAGES = "{images} pictures, numbered from 0, and name the emotion of a face in the last of them"
_BRIEF_REQUEST = "Read this face."


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


def make_prompt(style: str, labels: tuple[str, ...], *, images: int = 1, answer_now: bool = False) -> Prompt:
    """The prompt in one of `STYLES` for a data set's labels and a number of images.

    Args:
      answer_now: tell the policy not to use tools.
    """
    request = _FULL_REQUEST.format(labels=", ".join(labels)) if style == "full" else _BRIEF_REQUEST
    if answer_now:
        request = f"{request} {ANSWER_NOW}"
    if style != "full":
        return Prompt("", request, None, images)
    shown = _ONE_IMAGE if images == 1 else _SEVERAL_IMAGES.format(images=images)
    return Prompt(_FULL_SYSTEM.format(shown=shown), request, tool_schemas(images), images)


def prompts_hash(make_prompt: Callable[[str, tuple[str, ...]], Prompt]) -> str:
    """SHA-256 of the prompts of a grammar, the instructions and the tool schemas: two runs with one hash had the same
    words."""
    prompts = [make_prompt(style, ("LABEL",)) for style in STYLES]
    opening = [{"system": prompt.system, "request": prompt.request, "tools": prompt.tools} for prompt in prompts]
    texts = [opening, ANSWER_NOW, ZOOM_FIRST, NO_CALLS_LEFT, TOOL_SCHEMAS]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
