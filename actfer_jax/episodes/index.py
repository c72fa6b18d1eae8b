"""The index of episode records: a line an episode, with what a viewer filters by.

Keys of a line:
  shard, offset, bytes: where the record lies: the shard's path below the workdir, and a part of that file. Together
    they are what `store.read_record` takes. The writer adds them.
  id, step, dataset, image: names of the episode and of its sample; the number in the shard's name.
  class: the true emotion, normalised; null if unknown. strata: of the sample.
  prediction: the answered emotion, or null.
  outcome: "right", "wrong", "no answer" or "failed" (`failure` of the record); null where the emotion is not known.
  arm: "looked", "direct" or "undecided"; null in records of schema 1. looked: whether it zoomed into the
    face.
  regions: of the executed zooms, in order; "bbox" for a box.
  refused: whether a call was refused; lines of before do not have it.
  forced, truncated, reward (its parts), advantage: as in the record.
"""

from collections.abc import Mapping
from typing import Any

from actfer_jax import facs


def entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a record, without where it lies.

    Raises:
      KeyError: the record lacks what is asked for.
    """
    reference, prediction = record["reference"], record["prediction"]
    emotion = reference["emotion"]
    replies = [turn["reply"] for turn in record["turns"] if turn["reply"] is not None]
    zooms = [reply for reply in replies if reply["ok"] and reply["tool"] == "zoom"]
    true = None if emotion is None else facs.normalise_emotion(emotion)
    return {
        "id": record["id"],
        "dataset": record["dataset"],
        "image": record["image"],
        "class": true,
        "strata": reference.get("strata", []),
        "prediction": prediction["emotion"],
        "outcome": "failed" if record.get("failure") else _outcome(prediction, true),
        "arm": record.get("arm"),
        "looked": any(zoom["inspects"] for zoom in zooms),
        "regions": [zoom["region"] for zoom in zooms],
        "refused": not all(reply["ok"] for reply in replies),
        "forced": record.get("forced", ""),
        "truncated": record.get("truncated", False),
        "reward": record["reward"],
        "advantage": record["advantage"],
    }


def _outcome(prediction: Mapping[str, Any], true: str | None) -> str | None:
    if prediction["emotion"] is None and prediction["aus"] is None:
        return "no answer"
    if true is None:
        return None
    return "right" if prediction["emotion"] == true else "wrong"
