"""Compares two runs on the samples that both have: counts of answers, and the tests between them (`paired`).

Shapes: N pairs of answers, U units, C labels, A action units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from actfer_jax.evaluation import paired
from actfer_jax.evaluation.items import Answer, Interval

Pair = tuple[Answer, Answer]


@dataclass(frozen=True)
class Comparison:
    """A figure of two runs on the same samples.

    Attributes:
      figure: its name.
      samples: how many it is computed from.
      first, second: its values.
      difference: first minus second.
      test: which one, with what it rests on.
      p: two-sided.
    """

    figure: str
    samples: int
    first: float
    second: float
    difference: Interval
    test: str
    p: float


def compare(
    first: Sequence[Answer], second: Sequence[Answer], *, aus: Sequence[int] | None = None, seed: int = 0
) -> list[Comparison]:
    """Tests two runs against each other, sample by sample (of the same data set and name).

    Where every sample has a subject, subjects are resampled for the intervals and swapped for the tests, and counts are
    pooled anew. Else samples count as independent: McNemar's exact test for accuracy, a paired bootstrap for F1.

    Args:
      aus: the action units over which F1 is averaged, 0 for one that is never found; None for those true of a sample.

    Returns:
      Accuracy and macro-F1 where samples have labels, F1 of action units where both runs name any; empty where the runs
      share no such sample.
    """
    others = {(one.dataset, one.name): one for one in second}
    pairs = [(one, others[one.dataset, one.name]) for one in first if (one.dataset, one.name) in others]
    labelled = [pair for pair in pairs if pair[0].truth is not None]
    annotated = [pair for pair in pairs if pair[0].aus is not None]
    found = []
    if labelled:
        counts = emotion_counts(labelled)
        found += [
            _tested("accuracy", labelled, counts, paired.accuracy, seed),
            _tested("macro_f1", labelled, counts, paired.macro_f1, seed),
        ]
    if all(any(pair[run].predicted_aus is not None for pair in annotated) for run in (0, 1)):
        figure = partial(paired.au_f1, absent_is_zero=aus is not None)
        found.append(_tested("au_f1", annotated, au_counts(annotated, aus), figure, seed))
    return [one for one in found if one.difference["value"] is not None]


def _tested(
    name: str, pairs: Sequence[Pair], counts_2xN: paired.Counts, figure: paired.Figure, seed: int
) -> Comparison:
    subjects = [one.subject for one, _ in pairs]
    by_subject = all(subjects)
    first_UxC, second_UxC = (_pooled(counts, subjects) for counts in counts_2xN) if by_subject else counts_2xN
    difference, p = paired.bootstrap(first_UxC, second_UxC, figure, seed=seed)
    test = "paired bootstrap"
    if by_subject:
        p = paired.sign_flips(first_UxC, second_UxC, figure, seed=seed)
        test = f"sign flips of {len(first_UxC)} subjects"
    elif name == "accuracy":
        right_Nx2 = np.array([[one.correct for one in pair] for pair in pairs])
        only_first, only_second, p = paired.mcnemar(right_Nx2[:, 0], right_Nx2[:, 1])
        test = f"McNemar, exact ({only_first} against {only_second})"
    first, second = (float(figure(counts.sum(0)[None])[0]) for counts in (first_UxC, second_UxC))
    return Comparison(name, len(pairs), first, second, difference, test, p)


def _pooled(counts_NxC: paired.Counts, subjects: Sequence[str]) -> paired.Counts:
    """The sums over each subject's samples [U, ...]."""
    names, unit_N = np.unique(subjects, return_inverse=True)
    pooled_UxC = np.zeros((len(names), *counts_NxC.shape[1:]))
    np.add.at(pooled_UxC, unit_N, counts_NxC)
    return pooled_UxC


def emotion_counts(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Counts of (truth, answer) of the two runs [2, N, C, C + 1]; the last column is for answers that are no label."""
    labels = list(dict.fromkeys(label for one, _ in pairs for label in one.labels))
    index: dict[str | None, int] = {label: c for c, label in enumerate(labels)}
    counts = np.zeros((2, len(pairs), len(labels), len(labels) + 1))
    for n, pair in enumerate(pairs):
        for run, one in enumerate(pair):
            counts[run, n, index[pair[0].truth], index.get(one.predicted, len(labels))] = 1
    return counts


def au_counts(pairs: Sequence[Pair], aus: Sequence[int] | None) -> NDArray[np.float64]:
    """True and false positives and false negatives of the two runs [2, N, A, 3], of `aus` or all that occur."""
    occurring = (au for pair in pairs for one in pair for au in {*(one.aus or ()), *(one.predicted_aus or ())})
    columns = sorted(set(occurring)) if aus is None else aus
    true_NxA = _members([one.aus for one, _ in pairs], columns)
    counts = np.zeros((2, *true_NxA.shape, 3))
    for run in (0, 1):
        named_NxA = _members([pair[run].predicted_aus for pair in pairs], columns)
        counts[run] = np.stack([true_NxA & named_NxA, ~true_NxA & named_NxA, true_NxA & ~named_NxA], -1)
    return counts


def _members(sets: Sequence[frozenset[int] | None], aus: Sequence[int]) -> NDArray[np.bool_]:
    return np.array([[au in (one or ()) for au in aus] for one in sets], bool).reshape(len(sets), len(aus))
