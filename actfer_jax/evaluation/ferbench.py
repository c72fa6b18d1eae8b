"""FERBench's rules: how a response is read as a label, and how the labels become figures (arXiv 2511.00389).

The three protocols:

- `reference`: as the authors score all subsets together. A label is searched for in the first answer of one line, then
  in the whole response, then by synonyms. Failed items are left out. In macro-F1 the answer "unknown" is a class.
- `reference_sfew_own`: the same, except that SFEW is read as the authors read it alone: an answer may have several
  lines, and its tags are in lower case.
- `strict`: the one answer must be a label and nothing else. Failed items are wrong. In macro-F1 "unknown" is no class.

Shapes: S the figure itself and its resamples, K classes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actfer_jax.evaluation.bootstrap import RESAMPLES, interval, nanmean, ratio
from actfer_jax.evaluation.metrics import Summary, class_scores

PROTOCOLS = ("reference", "reference_sfew_own", "strict")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Subset:
    """One of the four data sets in FERBench.

    Attributes:
      size: the official number of items.
      labels: in the order of the prompt.
      synonyms: words by label; the first label with a word in the response is taken.
    """

    size: int
    labels: tuple[str, ...]
    synonyms: Mapping[str, tuple[str, ...]]


_SHARED = {"neutral": ("normal", "calm", "blank"), "surprise": ("shock", "astonishment")}
_CONTEMPT = {"contempt": ("scorn", "disdain")}
_DISGUST_FEAR = {"disgust": ("revulsion", "repulsion"), "fear": ("terror", "fright")}
_NOUNS = {**_DISGUST_FEAR, "happiness": ("joy", "happy"), "sadness": ("sad",), **_SHARED}
_ADJECTIVES = {**_DISGUST_FEAR, "happy": ("joy", "happiness"), "sad": ("sorrow", "unhappy"), **_SHARED}

SUBSETS = {
    "rafdb": Subset(
        3068,
        ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
        {"anger": ("angry",), **_NOUNS},
    ),
    "ferplus": Subset(
        3573,
        ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
        {"angry": ("anger",), **_CONTEMPT, **_ADJECTIVES},
    ),
    "affectnet": Subset(
        4000,
        ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
        {"anger": ("angry", "mad"), **_CONTEMPT, **_NOUNS},
    ),
    "sfew_2.0": Subset(
        431,
        ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
        {"angry": ("anger", "mad"), **_ADJECTIVES},
    ),
}
_SPELLINGS = {re.sub(r"[^a-z0-9]", "", name): name for name in SUBSETS} | {"sfew": "sfew_2.0"}
_POOLED = {"angry": "anger", "happy": "happiness", "sad": "sadness"}

# What follows each opening tag, up to the next closing one.
_ANSWERS = re.compile(r"(?=<answer>(.*?)</answer>)", re.IGNORECASE | re.DOTALL)
_SFEW_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_STRICT_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Item:
    """A scored item.

    Attributes:
      subset: a name of `SUBSETS`, or "" for none.
      truth: the true label.
      answer: the label that was read from the response, or `UNKNOWN`.
      failed: whether the model gave no response.
    """

    subset: str
    truth: str
    answer: str
    failed: bool = False


def subset_named(name: str) -> str | None:
    """The subset of a name in any spelling, such as "SFEW-2.0"; None if there is none."""
    return _SPELLINGS.get(re.sub(r"[^a-z0-9]", "", name.lower()))


def subset_of(image_path: str, labels: Iterable[str]) -> str | None:
    """The subset of an item that does not name it: by a folder of its path, or else by its labels; None if unclear."""
    folders = filter(None, map(subset_named, reversed(re.split(r"[/\\]", image_path))))
    return next(folders, None) or next((name for name, one in SUBSETS.items() if set(one.labels) == set(labels)), None)


def read_answer(response: str, labels: Sequence[str], subset: str, protocol: str) -> str:
    """The label that a protocol reads in a response, or `UNKNOWN`.

    Args:
      response: the model's last turn.
      labels: the item's candidate labels, in their order.
      subset: a name of `SUBSETS`; "" for none, which has no synonyms.
      protocol: a name of `PROTOCOLS`.
    """
    if protocol == "strict":
        answers = [answer.strip().lower() for answer in _STRICT_ANSWER.findall(response)]
        return next((label for label in labels if answers == [label.lower()]), UNKNOWN)
    if protocol == "reference_sfew_own" and subset == "sfew_2.0":
        answers = _SFEW_ANSWER.findall(response)
    else:
        answers = [answer for answer in _ANSWERS.findall(response) if "\n" not in answer.strip()]
    answer, whole = "".join(answers[:1]).lower(), response.lower()
    in_answer = (label for label in labels if label.lower() in answer)
    in_response = (label for label in labels if label in whole)
    synonyms = SUBSETS[subset].synonyms if subset else {}
    by_synonym = (label for label, words in synonyms.items() if any(word in whole for word in words))
    return next((label for found in (in_answer, in_response, by_synonym) for label in found), UNKNOWN)


def summarise(items: Sequence[Item], protocol: str, *, seed: int) -> Summary:
    """The figures of all subsets that occur, and of their items together.

    Returns:
      subsets (by name) and overall, each with n (items in the denominator), errors (failed items), unknown (of n),
      accuracy, macro_f1, their 95% intervals (`accuracy_interval`, `macro_f1_interval`: low and high), confusion (rows,
      the truth; columns, the answers); official: the number of items that FERBench has. Figures of no items are None.
      resampled: "samples", for the intervals.
      Overall, "angry", "happy" and "sad" are "anger", "happiness" and "sadness".
    """
    pooled = [replace(i, truth=_POOLED.get(i.truth, i.truth), answer=_POOLED.get(i.answer, i.answer)) for i in items]
    parts = {name: [item for item in items if item.subset == name] for name in SUBSETS}
    return {
        "resampled": "samples",
        "subsets": {
            name: {"official": SUBSETS[name].size, **_figures(part, protocol, seed)}
            for name, part in parts.items()
            if part
        },
        "overall": {
            "official": sum(subset.size for subset in SUBSETS.values()),
            **_figures(pooled, protocol, seed),
        },
    }


def _figures(items: Sequence[Item], protocol: str, seed: int) -> Summary:
    strict = protocol == "strict"
    counted = [item for item in items if strict or not item.failed]
    labels = sorted({name for item in counted for name in (item.truth, item.answer)} - {UNKNOWN})
    columns = [*labels, UNKNOWN]
    counts_KxK = np.zeros((len(columns), len(columns)), int)
    for item in counted:
        counts_KxK[columns.index(item.truth), columns.index(item.answer)] += 1
    accuracy_S, macro_f1_S = _scores(_resampled(counts_KxK, seed), unknown_is_class=not strict)
    accuracy, macro_f1 = interval(accuracy_S), interval(macro_f1_S)
    return {
        "n": len(counted),
        "errors": sum(item.failed for item in items),
        "unknown": sum(item.answer == UNKNOWN for item in counted),
        "accuracy": accuracy["value"],
        "macro_f1": macro_f1["value"],
        "accuracy_interval": [accuracy["low"], accuracy["high"]],
        "macro_f1_interval": [macro_f1["low"], macro_f1["high"]],
        "confusion": {"labels": labels, "columns": columns, "counts": counts_KxK[:-1].tolist()},
    }


def _resampled(counts_KxK: NDArray[np.int_], seed: int) -> NDArray[np.float64]:
    """The counts, then those of resamples with replacement [S, K, K].

    The items of a cell are alike, so that cells are drawn instead of items.
    """
    total = counts_KxK.sum()
    if not total:
        return counts_KxK[None].astype(float)
    drawn = np.random.default_rng(seed).multinomial(total, counts_KxK.ravel() / total, size=RESAMPLES)
    return np.concatenate([counts_KxK[None], drawn.reshape(-1, *counts_KxK.shape)]).astype(float)


def _scores(
    counts_SxKxK: NDArray[np.float64], *, unknown_is_class: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy and macro-F1 [S]. The classes are those that occur in truth or answers; a class without a hit has 0."""
    accuracy_S = ratio(np.einsum("skk->s", counts_SxKxK), counts_SxKxK.sum((1, 2)))
    f1_SxK = class_scores(counts_SxKxK if unknown_is_class else counts_SxKxK[:, :-1])[2]
    return accuracy_S, nanmean(f1_SxK)
