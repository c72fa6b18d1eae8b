"""The tokens that a policy wrote, as text with their log-probabilities."""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from etils import epath

from actfer_jax.agent.chat import Chat, ChatError
from actfer_jax.files import is_remote
from actfer_jax.models import demo_checkpoint

Decode = Callable[[list[int]], str]
"""The text of tokens."""
_MOST_BYTES = 4  # Of a character, each of which may be a token.


def written_tokens(record: Mapping[str, Any], decode: Decode | None) -> list[list[list[Any]]] | None:
    """What the policy wrote, turn by turn: [text or null, id, log-probability] of each token.

    Args:
      record: an episode.
      decode: gives the texts; without it they are null.

    Returns:
      None where the record has no tokens, since a server played the policy. The log-probabilities are those of the
      sampled distribution. A character that takes several tokens is the text of the last, and that of the others is "".
    """
    if record["token_ids"] is None:
        return None
    rows = zip(record["loss_mask"], record["token_ids"], record["logprobs"], strict=True)
    turns = [list(turn) for written, turn in groupby(rows, key=lambda row: bool(row[0])) if written]
    return [
        [[text, token, logprob] for text, (_, token, logprob) in zip(_texts(turn, decode), turn, strict=True)]
        for turn in turns
    ]


def _texts(turn: list[tuple[Any, int, float]], decode: Decode | None) -> Iterator[str | None]:
    waiting = list[int]()
    for _, token, _ in turn:
        waiting.append(token)
        text = decode(waiting) if decode else None
        if text and text.endswith("\ufffd") and len(waiting) < _MOST_BYTES:
            yield ""
        else:
            yield text
            waiting = []


def find_decoder(workdir: epath.Path) -> Decode | None:
    """The tokenizer of the policy that played a run's episodes, where one is on this machine.

    It is that of the run's `policy/`, of the model that the run began with, or of the policy that was evaluated.
    """
    for path in _policies(workdir):
        if path and not is_remote(path) and Path(path).is_dir():
            try:
                tokenizer = Chat.from_pretrained(path).tokenizer
            except ChatError:
                continue
            return lambda tokens: str(tokenizer.decode(tokens))
    return None


def _policies(workdir: epath.Path) -> list[str]:
    manifest, results = _read(workdir / "manifest.json"), _read(workdir / "results.json")
    named = [manifest.get("config", {}).get("model", {}).get("path"), results.get("checkpoint")]
    return [str(workdir / "policy"), *(str(demo_checkpoint()) if name == "demo" else name or "" for name in named)]


def _read(path: epath.Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
