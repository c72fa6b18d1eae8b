"""The grammar of ActFER for a model without tools: it looks at the picture as it is, and answers in one turn."""

from actfer_jax.agent import prompts
from actfer_jax.agent.formats.actfer import answer_start, answer_text, call_text, parse_turn, thought_text
from actfer_jax.agent.prompts import Prompt

__all__ = ["answer_start", "answer_text", "call_text", "make_prompt", "parse_turn", "thought_text"]

_ANSWER = " First reason in <think></think>. Then write {fields}, and nothing else."
_AUS = "its action units in <aus></aus>, such as <aus>AU1 AU26</aus> or <aus>none</aus>"
_EMOTION = "the emotion in <answer></answer>"


def make_prompt(
    style: str,
    labels: tuple[str, ...],
    *,
    ask_aus: bool = True,
    images: int = 1,
    answer_now: bool = False,
    which: str = "",
) -> Prompt:
    """The request of `prompts.make_prompt` without its system message and tools; "full" says how to answer."""
    prompt = prompts.make_prompt(style, labels, ask_aus=ask_aus, images=images, which=which)
    request = prompt.request
    if style == "full":
        if images > 1:
            request += " The last picture is meant."
        fields = ([_AUS] if ask_aus or not labels else []) + ([_EMOTION] if labels else [])
        request += _ANSWER.format(fields=" and ".join(fields))
    return Prompt("", f"{request} {prompts.ANSWER_NOW}" if answer_now else request, None, images)
