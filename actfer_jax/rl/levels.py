"""How right an episode is, level by level: the turn grammar, action units, face regions, and the emotion.

`docs/algorithm.md` has the formulas.
"""

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Reference

LEVELS: tuple[str, ...] = ("format", "tool", "au", "region", "emotion")


def score_levels(episode: Episode, reference: Reference) -> dict[str, float]:
    """Each of `LEVELS` in [0, 1]; 0 where the reference does not know it."""
    return {
        "format": _format(episode, reference),
        "tool": _tool(episode),
        "au": _au(episode, reference),
        "region": _region(episode, reference),
        "emotion": _emotion(episode, reference),
    }


def f1(predicted: frozenset[int], reference: frozenset[int]) -> float:
    """F1 of a predicted set; 1 if both are empty."""
    size = len(predicted) + len(reference)
    return 2 * len(predicted & reference) / size if size else 1.0


def _format(episode: Episode, reference: Reference) -> float:
    """1 if calls led to one answer, which was not cut and has what was asked for: action units, and one label of the
    data set."""
    answer = episode.answer
    if answer is None or episode.turns[-1].truncated or not all(turn.parsed.calls for turn in episode.turns[:-1]):
        return 0.0
    ask_aus = episode.ask_aus or not reference.labels
    if (answer.aus is not None) != ask_aus or (answer.answer is not None) != bool(reference.labels):
        return 0.0
    labels = {facs.normalise_emotion(label) for label in reference.labels}
    return float(answer.answer is None or facs.normalise_emotion(answer.answer) in labels)


def _tool(episode: Episode) -> float:
    """Share of the calls that executed; 1 without calls."""
    executed = [turn.reply is not None and turn.reply.ok for turn in episode.turns if turn.parsed.calls]
    return sum(executed) / len(executed) if executed else 1.0


def known(aus: frozenset[int], reference: Reference) -> frozenset[int]:
    """The action units that the reference was annotated for."""
    return aus if reference.known_aus is None else aus & reference.known_aus


def reference_aus(reference: Reference) -> frozenset[int] | None:
    """The reference action units under their known mask; None where nothing was annotated."""
    if reference.aus is None or reference.known_aus == frozenset():
        return None
    return known(reference.aus, reference)


def _answered_aus(episode: Episode, reference: Reference) -> frozenset[int] | None:
    answer = episode.answer
    return None if answer is None or answer.aus is None else known(answer.aus, reference)


def _au(episode: Episode, reference: Reference) -> float:
    predicted, true = _answered_aus(episode, reference), reference_aus(reference)
    return 0.0 if predicted is None or true is None else f1(predicted, true)


def _region(episode: Episode, reference: Reference) -> float:
    """Mean F1 over the face regions in which the answer or the reference has an action unit."""
    predicted, true = _answered_aus(episode, reference), reference_aus(reference)
    if predicted is None or true is None:
        return 0.0
    active = [aus for aus in facs.REGION_AUS.values() if (predicted | true) & aus]
    if not active:
        return f1(predicted, true)
    return sum(f1(predicted & aus, true & aus) for aus in active) / len(active)


def _emotion(episode: Episode, reference: Reference) -> float:
    answer = episode.answer
    if answer is None or answer.answer is None or reference.emotion is None:
        return 0.0
    return float(facs.normalise_emotion(answer.answer) == facs.normalise_emotion(reference.emotion))
