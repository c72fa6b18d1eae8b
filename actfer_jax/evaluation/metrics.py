"""Figures of a set of finished episodes, with bootstrap intervals, in plain numpy.

Every figure is computed from sums over episodes. The first row of `Bootstrap.total` gives the figure itself. The others
are resamples, of subjects where it is known who is shown, and give its 95% interval.

Shapes: N episodes, S rows, C labels, A action units.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.data.annotations import PSEUDO
from actfer_jax.evaluation.bootstrap import RESAMPLES, Bootstrap, Floats, bootstrap, interval, nanmean, ratio, value
from actfer_jax.evaluation.calibration import reliability
from actfer_jax.faces.views import pitch
from actfer_jax.rl.levels import f1

INVALID = "invalid"

Summary = dict[str, Any]
"""Nested JSON values. A figure without episodes that define it is None."""


@dataclass(frozen=True)
class Outcome:
    """The parts of one episode that the figures use.

    Attributes:
      labels: the data set's emotion labels, normalised.
      emotion: the true label, or None if unknown.
      predicted: the answered label; None without an answer, or if the answer is not one of the labels.
      answered: whether the episode ended in an answer, with any label.
      aus: true action units among the known ones, or None if unannotated or not asked for.
      predicted_aus: answered action units among the known ones; None if none were answered.
      strata: names of the strata that the sample belongs to.
      inspected: whether the episode zoomed into the face at least once (the z of UC-GRPO).
      regions: named regions ("bbox" for a box) of the executed zooms, in order.
      zoom_pitches: pixels of the original image that a pixel of each of these zooms spans.
      calls: (tool, executed) of each call; the tool is "" if the call could not be read.
      turns: the number of assistant turns.
      truncated: whether a turn reached its length limit.
      subject: who is shown; "" where that is not known.
      choices: the labels as the sample offers them, in its order and spelling.
      response: the text of the last turn.
      failed: whether it failed on the host or at a server, and so says nothing of the policy.
      aus_from: the annotator that found `aus`; "" where people coded them.
      extra: what else the data set records (`Reference.extra`).
      confidence: the probability of the answered label (`confidence`); None if it is not known.
    """

    labels: tuple[str, ...]
    emotion: str | None
    predicted: str | None
    answered: bool
    aus: frozenset[int] | None
    predicted_aus: frozenset[int] | None
    strata: tuple[str, ...]
    inspected: bool
    regions: tuple[str, ...]
    calls: tuple[tuple[str, bool], ...]
    turns: int
    truncated: bool
    subject: str = ""
    choices: tuple[str, ...] = ()
    response: str = ""
    failed: bool = False
    aus_from: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    zoom_pitches: tuple[float, ...] = ()
    confidence: float | None = None

    @property
    def correct(self) -> bool:
        return self.predicted is not None and self.predicted == self.emotion

    @property
    def au_f1(self) -> float:
        """F1 of the answered action units; 1 if there are none in truth and answer, 0 without an answer."""
        return 0.0 if self.predicted_aus is None or self.aus is None else f1(self.predicted_aus, self.aus)


def outcome(episode: Episode, reference: Reference, confidence: float | None = None) -> Outcome:
    """The outcome of a finished episode, with the probability of its answer where that is known."""
    answer = episode.answer
    labels = tuple(facs.normalise_emotion(label) for label in reference.labels)
    predicted = None if answer is None or answer.answer is None else facs.normalise_emotion(answer.answer)

    def known(aus: frozenset[int] | None) -> frozenset[int] | None:
        return aus if aus is None or reference.known_aus is None else aus & reference.known_aus

    return Outcome(
        labels=labels,
        emotion=None if reference.emotion is None else facs.normalise_emotion(reference.emotion),
        predicted=predicted if predicted in labels else None,
        answered=answer is not None,
        aus=known(reference.aus) if reference.has_aus and episode.ask_aus else None,
        predicted_aus=None if answer is None else known(answer.aus),
        strata=reference.strata,
        inspected=episode.inspected,
        regions=tuple(zoom.region for zoom in episode.zooms),
        calls=tuple((reply.tool, reply.ok) for reply in episode.replies),
        turns=len(episode.turns),
        truncated=any(turn.truncated for turn in episode.turns),
        subject=str(reference.extra.get("subject", "")),
        choices=reference.labels,
        response=episode.turns[-1].text if episode.turns else "",
        aus_from=reference.aus_from,
        extra=reference.extra,
        zoom_pitches=tuple(
            float(pitch(zoom.view.to_original).mean()) for zoom in episode.zooms if zoom.view is not None
        ),
        confidence=confidence,
    )


def label_notes(outcomes: Sequence[Outcome], trained_on: Iterable[str]) -> list[str]:
    """What has to be said of figures on action units that no person coded, or of a policy that learnt from such.

    Args:
      trained_on: the data sets behind the policy.
    """
    sources = Counter(one.aus_from for one in outcomes if one.aus is not None)
    total = sources.total()
    measured = [
        f"AU labels: {f'{count} of {total} ' if count < total else ''}by {name}, not people"
        for name, count in sorted(sources.items())
        if name
    ]
    return measured + [f"policy trained on {name}" for name in trained_on if name.startswith(PSEUDO)]


def summarise(outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES) -> Summary:
    """Every figure of a set of episodes, from one data set or from several with different labels.

    An answer is correct if it equals the truth, and valid if it is one of its episode's labels. The classes are the
    labels of all episodes, in the order of their first occurrence.

    Args:
      outcomes: at least one.
      seed: of the resampling.
      resamples: bootstrap resamples behind each interval.

    Returns:
      A nested dict. Figures with an interval are {"value", "low", "high"}:
        episodes, turns, truncated, no_answer;
        resampled ("subjects" or "samples", for the intervals);
        accuracy, macro_f1 (mean over the labels that occur in truth or answers), uar (unweighted average recall: the
        mean over the labels that occur in truth), au_f1_sample (mean over samples of F1 within a sample), au_f1_pooled
        (the macro mean: over the action units that occur in truth, of F1 over all samples);
        ece and calibration, of the probability of the answered label (`calibration.reliability`);
        majority: what answering the commonest true label always would score: label, accuracy, macro_f1, uar;
        strata: for each stratum episodes, accuracy, au_f1_sample, zoom_rate, zoom_pitch, accuracy_gap, au_f1_gap and
        zoom_gap (its figure minus that of the samples only in other strata) and zoom_gap_within_class (mean of the last
        over emotions, weighted by samples);
        zoom: rate, regions (zooms per episode), per_episode, pitch (`zoom_pitch`);
        tools: calls, success, and the same for each tool;
        confusion: labels (rows, the truth), columns (answers, the last is "invalid"), counts;
        classes: for each label episodes, precision, recall, f1, zoom_rate, zoom_rate_in (the rate in each stratum),
        zooms (episodes, value, low and high of the rate, of "all" and in each stratum);
        aus: for each action unit name, true_positives, false_positives, false_negatives, f1, and its low and high.

    Raises:
      ValueError: outcomes is empty.
    """
    if not outcomes:
        raise ValueError("there are no episodes to summarise")
    labels = list(dict.fromkeys(label for one in outcomes for label in one.labels))
    drawn = bootstrap([one.subject for one in outcomes], seed=seed, resamples=resamples)
    labelled = np.array([one.emotion is not None for one in outcomes])
    annotated = np.array([one.aus is not None for one in outcomes])
    correct, inspected = (np.array([getattr(one, name) for one in outcomes]) for name in ("correct", "inspected"))
    au_f1 = np.array([one.au_f1 for one in outcomes])
    strata = {
        name: np.array([name in one.strata for one in outcomes])
        for name in sorted(set().union(*(one.strata for one in outcomes)))
    }
    stratified = np.array([bool(one.strata) for one in outcomes])

    def rate(values: ArrayLike, where: NDArray[np.bool_] | None = None) -> Floats:
        return drawn.mean(values, np.ones(len(outcomes), bool) if where is None else where)

    confidence = np.array(
        [np.nan if one.confidence is None or one.emotion is None else one.confidence for one in outcomes], np.float64
    )
    counts_SxCxK = confusion_counts(drawn, outcomes, labels)
    _, recall_SxC, f1_SxC = class_scores(counts_SxCxK)
    aus = sorted(set().union(*(one.aus | (one.predicted_aus or set()) for one in outcomes if one.aus is not None)))
    true_SxA, false_SxA, missed_SxA = au_counts(drawn, outcomes, aus)
    au_f1_SxA = ratio(2 * true_SxA, 2 * true_SxA + false_SxA + missed_SxA)
    occurs_SxA = true_SxA + missed_SxA > 0
    return {
        "episodes": len(outcomes),
        "resampled": drawn.resampled,
        "accuracy": interval(rate(correct, labelled)),
        "macro_f1": interval(nanmean(f1_SxC)),
        "uar": interval(nanmean(recall_SxC)),
        "au_f1_sample": interval(rate(au_f1, annotated)),
        "au_f1_pooled": interval(nanmean(np.where(occurs_SxA, au_f1_SxA, np.nan))),
        **reliability(drawn, confidence, correct),
        "majority": _majority(drawn, counts_SxCxK.sum(2), labels),
        "strata": {
            name: {
                "episodes": int(member.sum()),
                "accuracy": interval(rate(correct, member & labelled)),
                "au_f1_sample": interval(rate(au_f1, member & annotated)),
                "accuracy_gap": interval(
                    rate(correct, member & labelled) - rate(correct, stratified & ~member & labelled)
                ),
                "au_f1_gap": interval(rate(au_f1, member & annotated) - rate(au_f1, stratified & ~member & annotated)),
                "zoom_rate": interval(rate(inspected, member)),
                "zoom_pitch": zoom_pitch(one for one, inside in zip(outcomes, member, strict=True) if inside),
                "zoom_gap": interval(rate(inspected, member) - rate(inspected, stratified & ~member)),
                "zoom_gap_within_class": interval(
                    _gap_within_class(drawn, outcomes, labels, inspected, member, stratified & ~member)
                ),
            }
            for name, member in strata.items()
        },
        "zoom": {
            "rate": interval(rate(inspected)),
            "per_episode": value(rate([len(one.regions) for one in outcomes])),
            "pitch": zoom_pitch(outcomes),
            "regions": {
                region: value(rate([one.regions.count(region) for one in outcomes]))
                for region in (*facs.REGIONS, "bbox")
            },
        },
        "tools": _tools(outcomes),
        "turns": value(rate([one.turns for one in outcomes])),
        "truncated": value(rate([one.truncated for one in outcomes])),
        "no_answer": value(rate([not one.answered for one in outcomes])),
        "confusion": {
            "labels": labels,
            "columns": [*labels, INVALID],
            "counts": counts_SxCxK[0].astype(int).tolist(),
        },
        "classes": _classes(drawn, outcomes, labels, counts_SxCxK[:1], inspected, strata),
        "aus": au_entries(aus, (true_SxA, false_SxA, missed_SxA), au_f1_SxA),
    }


def zoom_pitch(outcomes: Iterable[Outcome]) -> float | None:
    """The median over zooms of the original pixels that a pixel of the zoom spans; None without zooms.

    Below 1, a zoom only enlarges what is there.
    """
    pitches = [pitch for one in outcomes for pitch in one.zoom_pitches]
    return statistics.median(pitches) if pitches else None


def confusion_counts(drawn: Bootstrap, outcomes: Sequence[Outcome], labels: Sequence[str]) -> Floats:
    """Counts of (truth, answer) [S, C, C + 1]. The last column counts answers that are not a label."""
    index = {label: c for c, label in enumerate(labels)}
    cells = np.zeros((len(outcomes), len(labels), len(labels) + 1))
    for n, one in enumerate(outcomes):
        if one.emotion in index:
            cells[n, index[one.emotion], len(labels) if one.predicted is None else index[one.predicted]] = 1
    return drawn.total(cells)


def class_scores(counts_SxCxK: Floats) -> tuple[Floats, ...]:
    """Precision, recall and F1 of each label [S, C] from a confusion matrix; NaN for a ratio without a denominator."""
    size = counts_SxCxK.shape[1]
    hits = np.einsum("scc->sc", counts_SxCxK[:, :, :size])
    true, answered = counts_SxCxK.sum(2), counts_SxCxK[:, :, :size].sum(1)
    return ratio(hits, answered), ratio(hits, true), ratio(2 * hits, true + answered)


def au_counts(
    drawn: Bootstrap, outcomes: Sequence[Outcome], aus: Sequence[int], where_N: NDArray[np.bool_] | None = None
) -> tuple[Floats, Floats, Floats]:
    """The true and false positives and the false negatives of action units [S, A], of a part of the episodes or of all.

    An episode without an answer counts as naming none.
    """
    inside_Nx1 = np.ones((len(outcomes), 1), bool) if where_N is None else where_N[:, None]

    def table(sets: Iterable[frozenset[int] | None]) -> NDArray[np.bool_]:
        cells = [[au in (there or ()) for au in aus] for there in sets]
        return np.array(cells, bool).reshape(len(outcomes), len(aus))

    true_NxA = table(one.aus for one in outcomes)
    named_NxA = table(None if one.aus is None else one.predicted_aus for one in outcomes)
    return (
        drawn.total(true_NxA & named_NxA & inside_Nx1),
        drawn.total(named_NxA & ~true_NxA & inside_Nx1),
        drawn.total(true_NxA & ~named_NxA & inside_Nx1),
    )


def au_entries(aus: Sequence[int], counts_3xSxA: Sequence[Floats], f1_SxA: Floats) -> Summary:
    """The counts of `au_counts` and the F1 of each action unit with its interval, by its name; a NaN is None."""
    kinds = ("true_positives", "false_positives", "false_negatives")
    return {
        f"AU{au}": {
            "name": facs.AU_NAMES.get(au, ""),
            **{kind: int(counts_SxA[0, a]) for kind, counts_SxA in zip(kinds, counts_3xSxA, strict=True)},
            "f1": value(f1_SxA[:, a]),
            **{side: interval(f1_SxA[:, a])[side] for side in ("low", "high")},
        }
        for a, au in enumerate(aus)
    }


def _gap_within_class(
    drawn: Bootstrap,
    outcomes: Sequence[Outcome],
    labels: Sequence[str],
    inspected_N: NDArray[np.bool_],
    inside_N: NDArray[np.bool_],
    outside_N: NDArray[np.bool_],
) -> Floats:
    """The mean gap in zoom rate over emotions with samples both inside and outside, weighted by their samples [S]."""
    total, weight = (np.zeros(len(drawn.weights_SxU)) for _ in range(2))
    for label in labels:
        members = np.array([one.emotion == label for one in outcomes])
        inside, outside = (drawn.mean(inspected_N, members & part) for part in (inside_N, outside_N))
        gap = inside - outside
        size = np.where(np.isnan(gap), 0.0, drawn.total(members & (inside_N | outside_N)))
        total += size * np.nan_to_num(gap)
        weight += size
    return ratio(total, weight)


def _majority(drawn: Bootstrap, true_SxC: Floats, labels: Sequence[str]) -> Summary:
    """The figures of an answer that is the same for every sample: the label with the most samples."""
    if not true_SxC[0].any():
        return {"label": None} | dict.fromkeys(("accuracy", "macro_f1", "uar"), interval(np.full(1, np.nan)))
    commonest = int(true_SxC[0].argmax())
    accuracy_S = ratio(true_SxC[:, commonest], true_SxC.sum(1))
    occurring_S = (true_SxC > 0).sum(1)
    return {
        "label": labels[commonest],
        "accuracy": interval(accuracy_S),
        # Precision is the accuracy, and recall 1; of every other label both are 0.
        "macro_f1": interval(2 * accuracy_S / (1 + accuracy_S) / occurring_S),
        "uar": interval(np.where(accuracy_S > 0, 1 / occurring_S, 0.0)),
    }


def _classes(
    drawn: Bootstrap,
    outcomes: Sequence[Outcome],
    labels: Sequence[str],
    counts_1xCxK: Floats,
    inspected: NDArray[np.bool_],
    strata: dict[str, NDArray[np.bool_]],
) -> dict[str, Any]:
    precision, recall, scores = class_scores(counts_1xCxK)
    parts = {"all": np.ones(len(outcomes), bool), **strata}
    classes = {}
    for c, label in enumerate(labels):
        members = np.array([one.emotion == label for one in outcomes])
        zooms = {
            name: {"episodes": int((members & part).sum()), **interval(drawn.mean(inspected, members & part))}
            for name, part in parts.items()
        }
        classes[label] = {
            "episodes": int(members.sum()),
            "precision": value(precision[:, c]),
            "recall": value(recall[:, c]),
            "f1": value(scores[:, c]),
            "zoom_rate": zooms["all"]["value"],
            "zoom_rate_in": {name: zooms[name]["value"] for name in strata},
            "zooms": zooms,
        }
    return classes


def _tools(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    calls = Counter(tool or "unreadable" for one in outcomes for tool, _ in one.calls)
    executed = Counter(tool for one in outcomes for tool, ok in one.calls if ok)
    total = sum(calls.values())
    return {
        "calls": total,
        "success": sum(executed.values()) / total if total else None,
        **{tool: {"calls": calls[tool], "success": executed[tool] / calls[tool]} for tool in sorted(calls)},
    }
