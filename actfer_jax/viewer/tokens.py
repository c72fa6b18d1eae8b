"""The tokens that a policy wrote, as text with their log-probabilities."""

import json
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from etils import epath

from actfer_jax.agent.chat import Chat, ChatError
from actfer_jax.files import is_remote
from actfer_jax.models import demo_checkpoint

Decode = Callable[[int], str]
"""The text of a token."""


def written_tokens(record: Mapping[str, Any], decode: Decode | None) -> list[list[list[Any]]] | None:
    """What the policy wrote, turn by turn: [text or null, id, log-probability] of each token.

    Args:
      record: an episode.
      decode: gives the texts; without it they are null.

    Returns:
      None where the record has no tokens, since a server played the policy. The log-probabilities are those of the
      sampled distribution.
    """
    if record["token_ids"] is None:
        return None
    rows = zip(record["loss_mask"], record["token_ids"], record["logprobs"], strict=True)
    return [
        [[decode(token) if decode else None, token, logprob] for _, token, logprob in turn]
        for written, turn in groupby(rows, key=lambda row: bool(row[0]))
        if written
    ]


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
            return lambda token: str(tokenizer.decode([token]))
    return None


def _policies(workdir: epath.Path) -> list[str]:
    manifest, results = _read(workdir / "manifest.json"), _read(workdir / "results.json")
    named = [manifest.get("config", {}).get("model", {}).get("path"), results.get("checkpoint")]
    return [str(workdir / "policy"), *(str(demo_checkpoint()) if name == "demo" else name or "" for name in named)]


def _read(path: epath.Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
