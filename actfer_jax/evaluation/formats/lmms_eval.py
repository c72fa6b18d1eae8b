"""lmms-eval's logs (lmms_eval 0.7.3): `DATE_samples_TASK.jsonl`, a sample a line, beside `DATE_results.json`.

A line has `doc_id`, `target`, `input`, `filtered_resps` (the answer), `resps` (the whole response, left out where it is
the answer) and the sample's metrics. Versions before 0.7.3 write the responses in lists of lists. Their lines name
neither picture nor labels: the task's name tells the subset, as in `ferbench_rafdb`. Ours have `image_path`,
`candidate_labels` and `subset` in addition, and `score`, which lmms-eval's comparison of two models reads.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from actfer_jax.errors import UserError
from actfer_jax.evaluation.items import Answer, Prediction, checked_truth, shown
from actfer_jax.evaluation.results import Results, subset, tasks

QUESTION = "Which emotion does the face show?"
"""Stands for the prompt, which records do not keep."""


def write(results: Results, answers: Mapping[str, Sequence[Answer]]) -> dict[str, str]:
    date = re.sub(r"\D", "", results.provenance["date"])
    stem = f"{date[:8]}_{date[8:]}"
    files = {}
    for control, given in answers.items():
        by_task = tasks(given)
        for task, items in by_task.items():
            lines = (json.dumps(_line(number, one), ensure_ascii=False) for number, one in enumerate(items))
            files[f"{control}/{stem}_samples_{task}.jsonl"] = "".join(f"{line}\n" for line in lines)
        files[f"{control}/{stem}_results.json"] = json.dumps(_results(results, stem, by_task), indent=2) + "\n"
    return files


def _line(number: int, answer: Answer) -> dict[str, Any]:
    return {
        "doc_id": number,
        "target": answer.truth,
        "input": QUESTION,
        "resps": [answer.response],
        "filtered_resps": answer.predicted or "",
        "doc_hash": hashlib.sha256(f"{answer.dataset}/{answer.name}".encode()).hexdigest(),
        "score": float(answer.correct),
        "image_path": answer.name,
        "candidate_labels": list(answer.labels),
        "subset": subset(answer) or None,
    }


def _results(results: Results, date: str, by_task: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    policy = results.provenance["policy"]
    accuracy = {task: sum(one.correct for one in items) / len(items) for task, items in by_task.items()}
    return {
        "results": {task: {"alias": task, "score,none": value} for task, value in accuracy.items()},
        "configs": {task: {"task": task} for task in by_task},
        "versions": dict.fromkeys(by_task, results.provenance["version"]),
        "n-shot": dict.fromkeys(by_task, 0),
        "higher_is_better": {task: {"score": True} for task in by_task},
        "n-samples": {task: {"original": len(items), "effective": len(items)} for task, items in by_task.items()},
        "config": {"model": "actfer_jax", "model_args": f"pretrained={policy}"},
        "date": date,
        "model_name": policy,
        "model_name_sanitized": results.model,
    }


def prediction(item: Mapping[str, Any], name: str, place: str) -> Prediction:
    labels, path = tuple(item.get("candidate_labels") or ()), item.get("image_path")
    if path is None:
        task = name.removesuffix(".jsonl").rpartition("_samples_")[2]
        path = f"{task.replace('_', '/')}/{item.get('doc_id')}"
    return Prediction(
        place=place,
        image_path=path,
        true_label=checked_truth(item, "target", labels, place),
        candidate_labels=labels,
        response=_text(item["filtered_resps"] if item.get("resps") is None else item["resps"], place),
        failed=False,
        subset=item.get("subset"),
    )


def _text(responses: Any, place: str) -> str:
    """The first text in lists of responses."""
    found = responses
    while isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, str):
        raise UserError(f"{place}: resps is {shown(responses)}; it must have a text")
    return found
