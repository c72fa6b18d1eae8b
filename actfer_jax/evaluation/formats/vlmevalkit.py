"""VLMEvalKit's predictions of multiple choice, `MODEL_DATASET.tsv` (github.com/open-compass/VLMEvalKit at 3529626).

A row has `index`, `image_path`, `question`, the options `A`, `B`, ..., `answer` (the letter of the right one),
`category` and `prediction`. The file without its predictions is the data set that VLMEvalKit reads. `prediction` is the
letter of the label that was answered, so that their exact matching counts as we do, and "Z", their sign for no option,
without one. Ours has the model's words in `response`; theirs may have them in `prediction`.
"""

import csv
import io
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from actfer_jax.errors import UserError
from actfer_jax.evaluation.formats.lmms_eval import QUESTION
from actfer_jax.evaluation.items import Answer, Prediction, text_of
from actfer_jax.evaluation.results import Results, subset, tasks

_LETTERS = string.ascii_uppercase
_NO_OPTION = "Z"


def write(results: Results, answers: Mapping[str, Sequence[Answer]]) -> dict[str, str]:
    return {
        f"{control}/{results.model}_{task}.tsv": _table(items)
        for control, given in answers.items()
        for task, items in tasks(given).items()
    }


def _table(answers: Sequence[Answer]) -> str:
    options = _LETTERS[: max(len(answer.labels) for answer in answers)]
    columns = ["index", "image_path", "question", *options, "answer", "category", "prediction", "response"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writeheader()
    for number, answer in enumerate(answers):
        letters = dict(zip(answer.labels, options, strict=False))
        row = {
            "index": number,
            "image_path": answer.name,
            "question": QUESTION,
            "answer": letters[str(answer.truth)],
            "category": subset(answer) or answer.dataset,
            "prediction": letters.get(answer.predicted or "", _NO_OPTION),
            "response": answer.response,
        }
        table.writerow(row | {letter: label for label, letter in letters.items()})
    return text.getvalue()


def prediction(item: Mapping[str, Any], name: str, place: str) -> Prediction:
    options = {letter: item[letter] for letter in _LETTERS if item.get(letter)}
    truth = text_of(item, "answer", place)
    if truth not in options:
        raise UserError(f"{place}: answer is {truth!r}; it must be the letter of one of the columns A, B, ...")
    return Prediction(
        place=place,
        image_path=item.get("image_path") or f"{item.get('category') or ''}/{item.get('index')}",
        true_label=options[truth],
        candidate_labels=tuple(options.values()),
        response=item["response"] if item.get("response") is not None else _words(item, options, place),
        failed=False,
        subset=None,
    )


def _words(item: Mapping[str, Any], options: Mapping[str, str], place: str) -> str:
    """The prediction, a letter alone as the answer that it stands for."""
    words = text_of(item, "prediction", place)
    letter = re.fullmatch(r"\W*([A-Z])\W*", words)
    if letter is None:
        return words
    return f"<answer>{options[letter[1]]}</answer>" if letter[1] in options else ""
