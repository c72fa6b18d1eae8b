"""Between conversations and token ids, by the checkpoint's own chat template.

Token-in, token-out: only the prompt and the tool replies are ever encoded. What the policy sampled is kept as the ids
that it sampled, so the ids of an episode are prompt, turn, reply, turn, ... put end to end.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actfer_jax.agent.prompts import Prompt

IMAGE_PAD = "<|image_pad|>"
TURN_END = "<|im_end|>"
_NEEDED = ("<|im_start|>", TURN_END, "<|vision_start|>", "<|vision_end|>", IMAGE_PAD)
_SENTINEL = "@@text@@"
_TURN_HEADER = "<|im_start|>assistant\n"


class Encoding(Protocol):
    """What the rules of an episode ask of a chat. `Chat` has the meanings."""

    turn_start: str
    turn_end_id: int

    def prompt_ids(self, prompt: Prompt, image_tokens: Sequence[int]) -> list[int]: ...

    def reply_ids(self, text: str, image_tokens: int | None) -> list[int]: ...


class Uncounted:
    """The encoding of a model whose tokenizer is not known: nothing has a length, so that no limit in tokens binds."""

    turn_start, turn_end_id = "", -1

    def prompt_ids(self, prompt: Prompt, image_tokens: Sequence[int]) -> list[int]:
        return []

    def reply_ids(self, text: str, image_tokens: int | None) -> list[int]:
        return []


class ChatError(ValueError):
    """A tokenizer or chat template that cannot carry a conversation with tools and images."""


class Chat:
    """Encodes prompts and tool replies, decodes turns.

    Args:
      tokenizer: a Hugging Face tokenizer with Qwen's special tokens and a chat template that knows tool replies with
        images.
      name: where it came from, for messages.

    Attributes:
      turn_start: what the template opens a turn of the policy with, after its header: "", or "<think>\\n" in the
        templates of Thinking checkpoints. It is context: the policy goes on from there.

    Raises:
      ChatError: a special token is missing, or the template drops the image of a tool reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str):
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in _NEEDED if token not in vocabulary]
        if missing:
            raise ChatError(
                f"{name}: the tokenizer lacks {', '.join(missing)}; use the tokenizer of a Qwen3-VL checkpoint"
            )
        if not tokenizer.chat_template:
            raise ChatError(
                f"{name}: the tokenizer has no chat template; add chat_template.jinja of a Qwen3-VL checkpoint"
            )
        self.turn_end_id: int = vocabulary[TURN_END]
        self.image_pad_id: int = vocabulary[IMAGE_PAD]
        text = {"type": "text", "text": _SENTINEL}
        try:
            self._text_reply = self._after_turn([text])
            self._image_reply = self._after_turn([text, {"type": "image"}])
        # A template is a program, which may fail in any way.
        except Exception as error:
            raise ChatError(f"{name}: the chat template fails ({error}); use that of a Qwen3-VL checkpoint") from error
        self.turn_start = self._text_reply.rpartition(_TURN_HEADER)[2]
        if self._image_reply.count(_SENTINEL) != 1 or self._image_reply.count(IMAGE_PAD) != 1:
            raise ChatError(
                f"{name}: the chat template does not render a tool reply made of a text and an image; use that of a "
                "Qwen3-VL checkpoint"
            )

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Chat":
        """The tokenizer and template of a Hugging Face directory.

        Raises:
          ChatError: there is none that can be used.
        """
        remedy = "copy the tokenizer's files (tokenizer*.json, chat_template.jinja) from the Qwen3-VL it is made of"
        # Without these transformers makes an empty one.
        if not any((Path(path) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ChatError(f"{path}: there is no tokenizer; {remedy}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        # A damaged file makes the library raise nearly anything.
        except Exception as error:
            raise ChatError(f"{path}: the tokenizer cannot be loaded ({error}); {remedy}") from error
        return cls(tokenizer, str(path))

    def banned(self, vocabulary_size: int) -> np.ndarray:
        """Which ids may never be sampled, bool [V]: ids without a token, and every special token but the end of a turn.

        So the policy can forge neither an image nor another speaker.
        """
        banned_V = np.ones(vocabulary_size, bool)
        banned_V[list(self.tokenizer.get_vocab().values())] = False
        banned_V[[id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special]] = True
        banned_V[self.turn_end_id] = False
        return banned_V

    def prompt_ids(self, prompt: Prompt, image_tokens: Sequence[int]) -> list[int]:
        """Ids of everything before the first assistant turn, with room for the image tokens of each image."""
        return self._encode(self._render(self.opening(prompt), prompt.tools), image_tokens)

    def reply_ids(self, text: str, image_tokens: int | None) -> list[int]:
        """Ids between the end token of an assistant turn and the start of the next turn's text: the tool reply."""
        template = self._text_reply if image_tokens is None else self._image_reply
        return self._encode(template.replace(_SENTINEL, as_read(text)), [image_tokens or 0])

    def turn_text(self, ids: list[int]) -> str:
        """What the policy wrote, without the end-of-turn token."""
        return str(self.tokenizer.decode([id for id in ids if id != self.turn_end_id], skip_special_tokens=False))

    def token_at(self, ids: list[int], place: int) -> int:
        """Index of the token that has a place of a turn's text: the first with which the text is longer than that."""
        counts = range(1, len(ids) + 1)
        return bisect_left(counts, True, key=lambda count: len(self.turn_text(ids[:count])) > place)

    @staticmethod
    def opening(prompt: Prompt) -> list[dict[str, Any]]:
        """The messages before the first assistant turn, as a chat template takes them."""
        content = [{"type": "image"}] * prompt.images + [{"type": "text", "text": prompt.request}]
        user = {"role": "user", "content": content}
        return [{"role": "system", "content": prompt.system}, user] if prompt.system else [user]

    def _after_turn(self, content: list[dict[str, Any]]) -> str:
        """What the template puts between the end token of an assistant turn and the start of the next turn's text."""
        turn = "@@assistant@@"
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "@@request@@"},
            {"role": "assistant", "content": turn},
            {"role": "tool", "content": content},
        ]
        return self._render(messages, None).partition(turn + TURN_END)[2]

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        text = self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        return text

    def _encode(self, text: str, image_tokens: Sequence[int]) -> list[int]:
        """Ids of a text in which each placeholder of an image stands for as many tokens as the image has."""
        counts = iter(image_tokens)
        text = re.sub(re.escape(IMAGE_PAD), lambda placeholder: placeholder.group() * next(counts), text)
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def as_read(reply: str) -> str:
    """A reply as the policy reads it.

    Angle brackets become round ones, so that no word of the policy's that a tool repeats turns into a special token.
    """
    return reply.replace("<", "(").replace(">", ")")
