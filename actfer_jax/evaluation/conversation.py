"""Between the turns of an episode and the messages of a chat-completions server.

A call may come in a message's `tool_calls`, or in its text as the grammar writes it. So that both are played, scored
and recorded alike, the first is written into the text of the turn, where a chat template would render it.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

from actfer_jax.agent.formats import Format
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.prompts import Prompt
from actfer_jax.episodes.store import png
from actfer_jax.faces.views import View

Message = dict[str, Any]


class Conversation:
    """The messages of one episode.

    Args:
      prompt: what opens it.
      scenes: the views of the sample's images.
      grammar: of the turns.
      images_in: the role of the message that shows the view of a call in `tool_calls`: "tool", as chat templates such
        as Qwen3-VL's have it, or "user", since many servers take images from the user only.

    Attributes:
      messages: so far, as the server is sent them.
    """

    def __init__(self, prompt: Prompt, scenes: Sequence[View], grammar: Format, images_in: str = "user"):
        self.grammar, self.images_in = grammar, images_in
        self.messages: list[Message] = []
        if prompt.system:
            self.messages.append({"role": "system", "content": prompt.system})
        self.messages.append(_message("user", *scenes, prompt.request))
        self._call_id: str | None = None

    def hear(self, message: Message) -> str:
        """Takes in a message of the assistant; returns the text of the turn. Messages of any kind give a text."""
        text, calls = _words(message.get("content")), message.get("tool_calls")
        calls = [_Call(call, number) for number, call in enumerate(calls)] if isinstance(calls, list) else []
        said: Message = {"role": "assistant", "content": text or _words(message.get("refusal"))}
        if calls:
            said["tool_calls"] = [call.message for call in calls]
        self.messages.append(said)
        self._call_id = calls[0].id if calls else None
        # Some servers take the thought out of the text.
        thought = _words(message.get("reasoning_content")) or _words(message.get("reasoning"))
        turn = said["content"]
        if not turn.lstrip().startswith(self.grammar.thought_text("\0").partition("\0")[0]):
            if calls:
                # Whatever precedes a call is its thought.
                turn = self.grammar.thought_text("\n".join(filter(None, (thought.strip(), turn.strip()))))
            elif thought:
                turn = self.grammar.thought_text(thought.strip()) + turn.lstrip()
        return "\n".join([turn.rstrip(), *(call.text(self.grammar) for call in calls)]) if calls else turn

    def reply(self, text: str, views: Sequence[View]) -> None:
        """Adds the reply to the last turn."""
        if self._call_id is None:
            # Qwen's template renders this like a message of a tool, which servers refuse without an id of a call.
            self.messages.append(_message("user", f"<tool_response>\n{text}", *views, "\n</tool_response>"))
            return
        tool = {"tool_call_id": self._call_id}
        if self.images_in == "tool" or not views:
            self.messages.append(_message("tool", text, *views) | tool)
        else:
            self.messages += [_message("tool", text) | tool, _message("user", *views)]


class _Call:
    """A call of `tool_calls`, whatever a server put there."""

    def __init__(self, call: Any, number: int):
        call = call if isinstance(call, dict) else {}
        function = call.get("function") if isinstance(call.get("function"), dict) else {}
        given = function.get("arguments")
        self.id = _words(call.get("id")) or f"call_{number}"
        self.name = _words(function.get("name"))
        self.arguments: str = given if isinstance(given, str) else json.dumps(given)
        if not self.arguments.strip() or given is None:
            self.arguments = "{}"  # So some servers write that there are none.

    @property
    def message(self) -> Message:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    def text(self, grammar: Format) -> str:
        """As the grammar writes it, or as Qwen's template does where the arguments are broken."""
        try:
            arguments = json.loads(self.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            return grammar.call_text(ToolCall(self.name, arguments))
        call = f'{{"name": {json.dumps(self.name)}, "arguments": {self.arguments}}}'
        return f"<tool_call>\n{call}\n</tool_call>"


def data_url(view: View) -> str:
    """A view's pixels, unchanged, as a PNG file in a URL."""
    return f"data:image/png;base64,{base64.b64encode(png(view)).decode()}"


def _message(role: str, *parts: str | View) -> Message:
    """A message of texts and views; plain text where there is nothing else."""
    if all(isinstance(part, str) for part in parts):
        return {"role": role, "content": "".join(map(str, parts))}
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    return {"role": role, "content": content}


def _words(content: Any) -> str:
    """The text of a message's content: text, parts of which some are text, or nothing."""
    if isinstance(content, list):
        return "".join(_words(part.get("text")) for part in content if isinstance(part, dict))
    # Half a pair of surrogates is no text, though JSON can write it.
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
