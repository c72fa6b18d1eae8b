"""The benchmark DISFA against counting frame by frame."""

import numpy as np
import pytest
from data_fixtures import DISFA_PEOPLE

from actfer_jax.data.datasets.disfa import FOLDS
from actfer_jax.evaluation.benchmarks import disfa
from actfer_jax.evaluation.metrics import Outcome

AUS = (1, 2, 4, 6, 9, 12, 25, 26)


def frames(people: list[str], count: int, seed: int = 0) -> list[Outcome]:
    """Answers about frames of some people in turn. AU9 never occurs, AU2 is never named, AU20 is not evaluated."""
    rng = np.random.default_rng(seed)

    def some(rate: float, *never: int) -> frozenset[int]:
        return frozenset(au for au in AUS if au not in never and rng.random() < rate)

    return [
        Outcome(
            labels=(),
            emotion=None,
            predicted=None,
            answered=True,
            aus=some(0.4, 9),
            predicted_aus=some(0.3, 2) | {20} if rng.random() < 0.9 else None,
            strata=(),
            inspected=False,
            regions=(),
            calls=(),
            turns=1,
            truncated=False,
            subject=people[number % len(people)],
        )
        for number in range(count)
    ]


def f1_by_hand(outcomes: list[Outcome], au: int) -> float:
    true = [au in one.aus for one in outcomes]
    named = [au in (one.predicted_aus or ()) for one in outcomes]
    hits = sum(t and n for t, n in zip(true, named, strict=True))
    return 2 * hits / (sum(true) + sum(named)) if sum(true) + sum(named) else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_both_conventions_equal_counting(seed):
    outcomes = frames(DISFA_PEOPLE, 500, seed)
    found = disfa.measure(outcomes, config=disfa.Config(), seed=0)
    by_hand = {f"AU{au}": f1_by_hand(outcomes, au) for au in AUS}
    assert {au: entry["f1"] for au, entry in found["aus"].items()} == pytest.approx(by_hand)
    assert by_hand["AU9"] == by_hand["AU2"] == 0.0
    assert found["f1"]["value"] == pytest.approx(np.mean([*by_hand.values()]))
    means = []
    for fold, people in FOLDS.items():
        inside = [one for one in outcomes if one.subject in people]
        of_fold = {f"AU{au}": f1_by_hand(inside, au) for au in AUS}
        assert found["folds"][str(fold)]["aus"] == pytest.approx(of_fold)
        assert found["folds"][str(fold)]["frames"] == len(inside)
        means.append(np.mean([*of_fold.values()]))
    assert found["f1_folds"]["value"] == pytest.approx(np.mean(means)) != found["f1"]["value"]
    assert (found["subjects"], found["frames"], found["resampled"]) == (27, 500, "subjects")


def test_the_interval_is_that_of_people_and_not_of_their_frames():
    outcomes = frames(DISFA_PEOPLE, 270)
    found, rng, drawn = disfa.measure(outcomes, config=disfa.Config(), seed=3), np.random.default_rng(3), []
    for counts in rng.multinomial(27, [1 / 27] * 27, size=1000)[:, None]:
        repeated = [outcomes[i] for i in range(270) for _ in range(int(counts[0, i % 27]))]
        drawn.append(np.mean([f1_by_hand(repeated, au) for au in AUS]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found["f1"]["low"], found["f1"]["high"]) == pytest.approx((low, high))
    copies = disfa.measure(outcomes * 10, config=disfa.Config(), seed=3)
    assert copies["f1"] == pytest.approx(found["f1"])


def test_a_part_has_no_mean_of_folds_and_published_figures_are_marked():
    of_one = disfa.measure(frames(list(FOLDS[2]), 90), config=disfa.Config(), seed=0)
    assert list(of_one["folds"]) == ["2"] and of_one["f1_folds"]["value"] is None
    report = disfa.report({"normal": of_one})
    assert "mean of folds" not in report.partition("published")[0]
    rows = {line.split("  ")[0]: line for line in report.partition("published, not measured here")[2].splitlines()}
    assert "38.1" in rows["Qwen3-VL-4B"] and "2604.08990" in rows["Qwen3-VL-4B"]
    assert "58.2" in rows["ActFER"] and "InsightFace" in rows["ActFER"]
