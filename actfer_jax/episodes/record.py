"""Finished episodes as the plain records that `store.EpisodeWriter` saves.

Keys of a record:
  schema: of the record, a number (added by the writer).
  id, dataset, image: names of the episode, and of its sample.
  trained_on: names of the data sets that the policy had been trained on.
  scene: the view of the first whole image. scenes: the views of all images of the sample.
  turns: each has text, truncated, call (name, arguments) or null, error (why the call or the turn could not be read),
    reply (text, ok, tool, region, inspects, found_by) or null, view or null, and seconds in the tool.
  token_ids, loss_mask, logprobs, raw_logprobs: one entry a token. The last two are 0 for tokens that the policy did not
    choose. `logprobs` are of the sampled distribution, `raw_logprobs` of temperature 1 with nothing banned. All four
    are null where a server played the policy: it gives neither ids nor log-probabilities of the whole row.
  ask_aus: whether action units were asked for.
  usage: where a server played the policy, its requests, prompt_tokens and completion_tokens as it reported them, and
    the number of requests for which it did not (unreported); else null.
  index: the sample's place in an evaluation, where a server played the policy.
  failure: what failed on the host or at the server, so that the episode says nothing of the policy; "" if nothing did.
  images: file names of the views in the order of their placeholders, those of the sample's images first (added by the
    writer).
  prediction: aus, emotion; both null without an answer.
  reference: aus, known_aus, aus_from (the annotator; "" for people), emotion, labels, strata, extra.
  reward: its parts, or null. advantage: a number, or null.
  arm: what the policy did, "looked", "direct" or "undecided". forced: the instructed arm ("", "zoom" or "answer").
  truncated: whether a turn reached its length limit.
  confidence: in evaluations and analyses, the probability of the answered label; else, and without a label, null.
  face: in analyses, which face was read: its number (from 1, the largest first; null for the whole picture), `of` how
    many that were found, its box (left, top, right, bottom) and the detector's score. crop: the part of the image that
    the policy was shown, such a box, or null for the whole. Views map to the whole image all the same.
A view has name, of (the index of the image that it was cut from), size (width, height), to_original (the rows of its
affine map to pixels of that image), picture (an index into `images`) and file (the entry there).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Reference, Sample, Turn
from actfer_jax.episodes.store import picture_name
from actfer_jax.faces.views import View
from actfer_jax.rollout.engine import Rollout

_MAX_DEPTH = 4  # No tool takes arguments nested deeper.


def to_record(
    rollout: Rollout,
    *,
    id: str,
    reward: Mapping[str, float] | None,
    advantage: float | None,
    trained_on: Collection[str],
    confidence: float | None = None,
) -> tuple[dict[str, Any], list[View]]:
    """A rollout as a record, and its views in the order of their placeholders.

    Nothing of the result refers to the images of the sample or to the patches of the views.

    Args:
      rollout: a finished episode.
      id: names the episode within its run.
      reward: parts of its reward, or None.
      advantage: its advantage, or None.
      trained_on: names of the data sets that the policy had been trained on.
      confidence: the probability of its label, if it was asked for.
    """
    record, views = episode_record(
        rollout.query,
        rollout.episode,
        rollout.views,
        id=id,
        reward=reward,
        advantage=advantage,
        trained_on=trained_on,
        failure=rollout.failure,
    )
    tokens = {
        "token_ids": np.array(rollout.sequence.tokens),
        "loss_mask": np.array(rollout.sequence.loss_mask, int),
        "logprobs": _numbers(rollout.log_probs),
        "raw_logprobs": _numbers(rollout.raw_log_probs),
        "confidence": confidence,
    }
    return record | tokens, views


def episode_record(
    sample: Sample,
    episode: Episode,
    views: Sequence[View],
    *,
    id: str,
    reward: Mapping[str, float] | None,
    advantage: float | None = None,
    trained_on: Collection[str],
    usage: Mapping[str, int] | None = None,
    failure: str = "",
) -> tuple[dict[str, Any], list[View]]:
    """An episode of which no tokens are known as a record, and its views in the order of their placeholders.

    Args:
      views: the scene of each image, then the views that the tools returned.
      id, reward, advantage, trained_on: as for `to_record`.
      usage, failure: the keys of those names.
    """
    scenes = views[: len(sample.images)]
    turns, shown = [], len(scenes)
    for turn in episode.turns:
        view = None if turn.reply is None else turn.reply.view
        turns.append(_turn(turn) | {"view": None if view is None else _view(view, shown)})
        shown += view is not None
    record = {
        "id": id,
        "dataset": sample.dataset,
        "image": _clean(sample.name),
        "trained_on": list(trained_on),
        "scene": _view(scenes[0], 0),
        "scenes": [_view(scene, index) for index, scene in enumerate(scenes)],
        "turns": turns,
        "token_ids": None,
        "loss_mask": None,
        "logprobs": None,
        "raw_logprobs": None,
        "ask_aus": episode.ask_aus,
        "prediction": _prediction(episode),
        "reference": _reference(sample.reference),
        "reward": None if reward is None else dict(reward),
        "advantage": advantage,
        "arm": "looked" if episode.inspected else "direct" if episode.decided else "undecided",
        "forced": episode.forced,
        "truncated": any(turn.truncated for turn in episode.turns),
        "usage": None if usage is None else dict(usage),
        "failure": failure,
        "confidence": None,
    }
    return record, list(views)


def _turn(turn: Turn) -> dict[str, Any]:
    call, reply = turn.parsed.call, turn.reply
    parts = ("text", "ok", "tool", "region", "inspects", "found_by")
    return {
        "text": turn.text,
        "truncated": turn.truncated,
        "call": None if call is None else {"name": _clean(call.name), "arguments": _plain(call.arguments, _MAX_DEPTH)},
        "error": turn.parsed.error,
        "reply": None if reply is None else {part: getattr(reply, part) for part in parts},
        "seconds": turn.seconds,
    }


def _view(view: View, picture: int) -> dict[str, Any]:
    return {
        "name": view.name,
        "of": view.image,
        "size": [view.width, view.height],
        "to_original": view.to_original.tolist(),
        "picture": picture,
        "file": picture_name(view),
    }


def _prediction(episode: Episode) -> dict[str, Any]:
    answer = episode.answer
    if answer is None:
        return {"aus": None, "emotion": None}
    emotion = None if answer.answer is None else facs.normalise_emotion(answer.answer)
    return {"aus": _sorted(answer.aus), "emotion": emotion}


def _reference(reference: Reference) -> dict[str, Any]:
    return {
        "aus": _sorted(reference.aus),
        "known_aus": _sorted(reference.known_aus),
        "aus_from": reference.aus_from,
        "emotion": reference.emotion,
        "labels": list(reference.labels),
        "strata": list(reference.strata),
        "extra": reference.extra,
    }


def _sorted(aus: Collection[int] | None) -> list[int] | None:
    return None if aus is None else sorted(aus)


def _numbers(values: np.ndarray) -> np.ndarray:
    """The numbers with the shortest decimals that round to the same float32, as float64."""
    numbers = np.zeros(len(values))
    chosen = np.flatnonzero(values)  # Most are 0.
    numbers[chosen] = [float(str(value)) for value in np.asarray(values, np.float32)[chosen]]
    return numbers


def _plain(value: Any, depth: int) -> Any:
    """Arguments as the policy wrote them, except NaN, infinities and lone surrogates, which are not JSON."""
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        return {_clean(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
