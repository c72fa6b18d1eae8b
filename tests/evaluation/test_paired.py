"""Tests between runs against closed forms, brute force and simulations whose truth is known."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from actfer_jax.evaluation import paired
from actfer_jax.evaluation.calibration import expected_calibration_error
from actfer_jax.evaluation.comparison import compare
from actfer_jax.evaluation.items import Answer
from actfer_jax.evaluation.metrics import Outcome, summarise

LABELS = ("anger", "fear", "joy")
AUS = (1, 4, 12)


def answers(rng: np.random.Generator, count: int, right: float, subjects: int = 0, seed: int = 0) -> list[Answer]:
    """Answers to the same samples for the same seed: a share `right` of them is right."""
    samples, found = np.random.default_rng(seed), []
    for index in range(count):
        truth = str(samples.choice(LABELS))
        aus = frozenset(au for au in AUS if samples.random() < 0.4)
        predicted = truth if rng.random() < right else (str(rng.choice(LABELS)) if rng.random() < 0.9 else None)
        named = frozenset(au for au in AUS if (au in aus) == (rng.random() < 0.7 + 0.2 * right))
        subject = f"s{index % subjects}" if subjects else ""
        found.append(Answer("set", f"{index}", LABELS, truth, predicted, "", aus, named, subject=subject))
    return found


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 3), (9, 2), (2, 9), (40, 25)])
def test_mcnemar_is_the_binomial_test_of_the_pictures_that_only_one_had_right(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True, False] * 5)
    second = np.array([False] * only_first + [True] * only_second + [True, False] * 5)
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    assert paired.mcnemar(first, second) == (only_first, only_second, pytest.approx(min(1.0, 2 * tail)))


@pytest.mark.parametrize("seed", range(3))
def test_sign_flips_try_every_way_to_swap_subjects(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 9, (2, 6, 3, 4)).astype(float)

    def difference(swapped: tuple[int, ...]) -> float:
        """Of macro-F1, from counts that are pooled in plain Python."""
        scores = []
        for mine, others in ((first, second), (second, first)):
            pooled = sum(others[unit] if swap else mine[unit] for unit, swap in enumerate(swapped))
            f1s = [2 * pooled[c][c] / (sum(pooled[c]) + sum(pooled[row][c] for row in range(3))) for c in range(3)]
            scores.append(sum(f1s) / 3)
        return scores[0] - scores[1]

    found = abs(difference((0,) * 6))
    as_large = sum(abs(difference(swapped)) >= found - 1e-12 for swapped in product((0, 1), repeat=6))
    assert paired.sign_flips(first, second, paired.macro_f1) == pytest.approx(as_large / 64)
    drawn = paired.sign_flips(first, second, paired.macro_f1, swaps=63)  # At random where there are too many.
    assert drawn == pytest.approx(as_large / 64, abs=0.2)


def test_the_interval_of_a_difference_has_the_width_that_theory_gives():
    only_first, only_second, count = 90, 60, 1000
    first = [Answer("set", f"{n}", LABELS, "joy", "joy" if n < 500 + only_first else "fear", "") for n in range(count)]
    second = [replace(one, predicted="joy") if n < 500 or n >= count - only_second else replace(one, predicted="fear")
              for n, one in enumerate(first)]  # fmt: skip
    accuracy, *_ = compare(first, second)
    change = (only_first - only_second) / count
    half = 1.96 * math.sqrt(((only_first + only_second) / count - change**2) / count)
    assert accuracy.difference["value"] == pytest.approx(change)
    assert accuracy.difference["high"] - accuracy.difference["low"] == pytest.approx(2 * half, rel=0.12)
    assert accuracy.test == "McNemar, exact (90 against 60)"


def test_the_figures_that_are_compared_are_those_of_an_evaluation():
    rng = np.random.default_rng(0)
    runs = answers(rng, 200, 0.8), answers(rng, 200, 0.4)
    found = {one.figure: one for one in compare(*runs)}
    for run, side in zip(runs, ("first", "second"), strict=True):
        outcomes = [
            Outcome(one.labels, one.truth, one.predicted, True, one.aus, one.predicted_aus, (), False, (), (), 1, False)
            for one in run
        ]
        summary = summarise(outcomes, resamples=2)
        for figure, name in (("accuracy", "accuracy"), ("macro_f1", "macro_f1"), ("au_f1", "au_f1_pooled")):
            assert getattr(found[figure], side) == pytest.approx(summary[name]["value"])
    assert all(one.difference["low"] > 0 and one.p < 0.05 for one in found.values())
    assert found["macro_f1"].test == "paired bootstrap"


def test_action_units_that_are_never_found_count_as_nothing_where_all_of_a_list_count():
    one = Answer("set", "a", (), None, None, "", frozenset({1}), frozenset({1}))
    other = replace(one, predicted_aus=frozenset({1, 4}))
    (found,) = compare([one], [other], aus=(1, 4, 12))
    assert (found.first, found.second) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    (found,) = compare([one], [other])
    assert (found.first, found.second, found.samples) == (1, 1, 1)


def test_frames_of_the_same_people_are_no_further_evidence():
    """A hundred frames of each of six people say no more than one: neither p nor interval may shrink."""
    rng = np.random.default_rng(5)
    once = answers(rng, 6, 0.9, subjects=6), answers(rng, 6, 0.3, subjects=6)
    often = [[replace(one, name=f"{one.name}-{n}") for one in run for n in range(100)] for run in once]
    few, many = compare(*once), compare(*often)
    assert [one.p for one in many] == [one.p for one in few] and many[0].p >= 2 / 2**6
    assert [one.difference for one in many] == [pytest.approx(one.difference) for one in few]
    assert many[0].test == "sign flips of 6 subjects" and many[0].samples == 600
    independent = compare(*([replace(one, subject="") for one in run] for run in often))
    assert independent[0].p < 1e-6  # What counting frames would have claimed.


def test_one_person_says_nothing_of_others():
    rng = np.random.default_rng(3)
    accuracy, *_ = compare(answers(rng, 50, 0.9, subjects=1), answers(rng, 50, 0.2, subjects=1))
    assert accuracy.p == 1 and accuracy.difference["low"] is None


def test_runs_that_are_alike_are_seldom_told_apart():
    """Under the null hypothesis about one test in twenty has p below 0.05."""
    rng, times = np.random.default_rng(2), 60
    for subjects in (0, 8):
        low = {"accuracy": 0, "macro_f1": 0, "au_f1": 0}
        for seed in range(times):
            for one in compare(*(answers(rng, 60, 0.6, subjects, seed=seed) for _ in range(2))):
                low[one.figure] += one.p < 0.05
        assert all(count / times < 0.11 for count in low.values()), (subjects, low)


def test_only_samples_of_both_runs_are_compared():
    rng = np.random.default_rng(1)
    first = answers(rng, 30, 0.5)
    assert compare(first[:20], first[10:])[0].samples == 10 and compare(first[:10], first[10:]) == []
    assert compare(first, [replace(one, dataset="another") for one in first]) == []


def test_calibration_error_is_the_gap_in_each_bin():
    assert expected_calibration_error([1.0] * 10, [True] * 7 + [False] * 3) == pytest.approx(0.3)
    assert expected_calibration_error([0.75] * 4 + [0.25] * 4, [1, 1, 1, 0, 1, 0, 0, 0]) == 0
    # Opposite gaps in two bins do not cancel.
    assert expected_calibration_error([0.95, 0.05], [False, True]) == pytest.approx(0.95)
    rng = np.random.default_rng(0)
    confidence = rng.random(300)
    correct = rng.random(300) < confidence**2
    expected = 0.0
    for low in range(10):
        inside = [n for n in range(300) if low / 10 <= confidence[n] < (low + 1) / 10]
        expected += abs(sum(correct[n] for n in inside) - sum(confidence[n] for n in inside)) / 300
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)
