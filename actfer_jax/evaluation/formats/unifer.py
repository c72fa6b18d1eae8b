"""UniFER's `*_results.json` (github.com/zfkarl/UniFER at 1f1950f): one list for each subset of FERBench.

Its scorer reads `true_label`, `candidate_labels`, `model_response` and `error`. JSON lines of the same objects are read
too. In files of ours, `subset` says what UniFER's folders say.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from actfer_jax.errors import UserError
from actfer_jax.evaluation.items import Answer, Prediction, checked_truth, shown, text_of
from actfer_jax.evaluation.results import Results, subset, tasks


def write(results: Results, answers: Mapping[str, Sequence[Answer]]) -> dict[str, str]:
    return {
        f"{control}/{task}_{results.model}_results.json": json.dumps([_item(one) for one in items], indent=2)
        for control, given in answers.items()
        for task, items in tasks(given).items()
    }


def _item(answer: Answer) -> dict[str, Any]:
    item = {
        "image_path": answer.name,
        "true_label": answer.truth,
        "candidate_labels": list(answer.labels),
        "model_response": answer.response,
    }
    return item | ({"subset": subset(answer)} if subset(answer) else {}) | ({"error": True} if answer.failed else {})


def prediction(item: Mapping[str, Any], name: str, place: str) -> Prediction:
    failed = bool(item.get("error"))
    given = [key for key in ("response", "model_response") if item.get(key) is not None]
    if len(given) > 1 or not (given or failed):
        raise UserError(f"{place}: it must have one of response and model_response, and has {len(given)}")
    labels = item.get("candidate_labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(one, str) and one.strip() for one in labels):
        raise UserError(f"{place}: candidate_labels is {shown(labels)}; it must be a list of labels")
    return Prediction(
        place=place,
        image_path=text_of(item, "image_path", place),
        true_label=checked_truth(item, "true_label", tuple(labels), place),
        candidate_labels=tuple(labels),
        response=text_of(item, given[0], place) if given else "",
        failed=failed,
        subset=None if item.get("subset") is None else text_of(item, "subset", place),
    )
