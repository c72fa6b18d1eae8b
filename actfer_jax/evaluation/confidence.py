"""The probability that a policy gave an answer."""

import numpy as np

from actfer_jax.agent.chat import Chat
from actfer_jax.rollout.engine import Rollout


def confidence(chat: Chat, rollout: Rollout) -> float | None:
    """The probability of the answered label: the product over its tokens, each given all that came before it, at
    temperature 1 with nothing banned. None without a label."""
    answer = rollout.episode.answer
    if answer is None or not answer.answer:
        return None
    mask = np.array(rollout.sequence.loss_mask)
    start = int(np.flatnonzero(mask & ~np.roll(mask, 1))[-1])  # of the last turn
    tokens = rollout.sequence.tokens[start:]
    place = rollout.episode.turns[-1].text.rindex(answer.answer)
    first, last = (chat.token_at(tokens, at) for at in (place, place + len(answer.answer) - 1))
    return float(np.exp(np.sum(rollout.raw_log_probs[start + first : start + last + 1], dtype=np.float64)))
