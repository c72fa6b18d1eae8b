"""Statistics over seeds against closed forms, and against simulations whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from actfer_jax.studies.statistics import crossed_interval, holm, paired_t, seed_interval, smallest_difference

REPETITIONS = 400
SAMPLES = 40


def binomial_bounds(rate: float, repetitions: int = REPETITIONS) -> tuple[float, float]:
    """The shares between which a right procedure falls in all but one of 10,000 runs of a test."""
    low, high = stats.binom.interval(1 - 1e-4, repetitions, rate)
    return low / repetitions, high / repetitions


def crossed(rng: np.random.Generator, seeds: int, of_seeds: float, of_samples: float) -> np.ndarray:
    """Values of mean 0 [K, N]: seeds, samples and their interaction differ, with these standard deviations, and 1."""
    shape = (seeds, SAMPLES)
    by_seed, by_sample = rng.normal(0, of_seeds, (seeds, 1)), rng.normal(0, of_samples, (1, SAMPLES))
    return by_seed + by_sample + rng.normal(0, 1, shape)


def coverage(interval, seeds: int, of_seeds: float, of_samples: float) -> float:
    rng = np.random.default_rng(seeds)
    found = [interval(crossed(rng, seeds, of_seeds, of_samples)) for _ in range(REPETITIONS)]
    return float(np.mean([one["low"] <= 0 <= one["high"] for one in found]))


def both_ways(values: np.ndarray) -> dict[str, float]:
    """The plain alternative: seeds and samples resampled with replacement."""
    rng = np.random.default_rng(0)
    seeds, samples = values.shape
    seeds_RxK = rng.multinomial(seeds, np.full(seeds, 1 / seeds), 400) / seeds
    samples_RxN = rng.multinomial(samples, np.full(samples, 1 / samples), 400) / samples
    low, high = np.quantile(((seeds_RxK @ values) * samples_RxN).sum(1), (0.025, 0.975))
    return {"low": low, "high": high}


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_an_interval_over_seeds_holds_for_other_seeds_on_the_same_samples(seeds):
    low, high = binomial_bounds(0.95)
    assert low <= coverage(lambda values: seed_interval(values.mean(1)), seeds, 0.3, 0.0) <= high


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("of_seeds", "of_samples"), [(0.3, 0.0), (0.3, 1.0), (0.1, 2.0)])
def test_a_crossed_interval_holds_for_other_seeds_and_samples(seeds, of_seeds, of_samples):
    """It may be a little too wide where neither alone decides: its degrees of freedom are an approximation."""
    found = coverage(crossed_interval, seeds, of_seeds, of_samples)
    assert found >= binomial_bounds(0.94)[0]


def test_what_a_report_does_not_take_is_too_narrow_with_few_seeds():
    enough = binomial_bounds(0.95)[0]
    assert coverage(lambda values: seed_interval(values.mean(1)), 5, 0.1, 2.0) < 0.7 < enough
    assert coverage(both_ways, 3, 0.3, 0.3) < 0.9 < enough


def test_a_crossed_interval_is_that_over_seeds_where_all_samples_are_alike():
    by_seed = np.array([0.2, 0.5, 0.9])
    same = crossed_interval(np.repeat(by_seed[:, None], 40, 1))
    assert same == pytest.approx(seed_interval(by_seed))


def test_the_variance_of_a_crossed_interval_is_that_of_a_table_by_hand():
    values = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    # Means by seed 2/3 and 1, by sample 1, 1/2 and 1; mean squares 1/6, 1/6 and 1/6: samples add nothing to the seeds.
    half = stats.t.ppf(0.975, 1) * math.sqrt(1 / 6 / 6)
    assert crossed_interval(values) == pytest.approx({"value": 5 / 6, "low": 5 / 6 - half, "high": 5 / 6 + half})


def test_a_paired_t_by_hand_and_by_scipy():
    differences = np.array([1.0, 2.0, 3.0])
    found = paired_t(differences)
    assert found.t == pytest.approx(2 * math.sqrt(3))  # The mean is 2, the deviation 1.
    # The distribution of t with two degrees of freedom in closed form.
    assert found.p == pytest.approx(1 - found.t / math.sqrt(2 + found.t**2))
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    expected = stats.ttest_rel(first, second)
    assert (paired_t(first - second).t, paired_t(first - second).p) == pytest.approx(tuple(expected))
    interval = expected.confidence_interval()
    assert paired_t(first - second).difference["low"] == pytest.approx(interval.low)


def test_a_single_seed_shows_nothing_and_equal_differences_have_no_t():
    assert paired_t(np.array([0.3])).p is None and paired_t(np.array([0.3])).difference["low"] is None
    assert paired_t(np.zeros(4)).p == 1.0 and paired_t(np.full(4, 0.1)).p == 0.0
    assert crossed_interval(np.ones((1, 5)))["low"] is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_holm_rejects_what_closed_testing_rejects():
    """Holm is the closure of Bonferroni: a hypothesis falls if each set with it has a p of 0.05 over its size."""
    for p in np.random.default_rng(1).uniform(0, 0.06, (40, 4)):
        sets = [set(one) for size in range(1, 5) for one in itertools.combinations(range(4), size)]
        falls = [len(one) * min(p[index] for index in one) <= 0.05 for one in sets]
        closed = [all(fell for one, fell in zip(sets, falls, strict=True) if index in one) for index in range(4)]
        assert [adjusted <= 0.05 for adjusted in holm(list(p))] == closed


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_any_false_positive_among_four_contrasts_is_as_rare_as_promised(seeds):
    """Four methods against one that they equal: the contrasts share its runs, as those of a study do."""
    rng = np.random.default_rng(seeds)
    false = 0
    for _ in range(REPETITIONS):
        baseline, *others = rng.normal(size=(5, seeds))
        p = [paired_t(other - baseline).p for other in others]
        false += min(holm([one for one in p if one is not None])) <= 0.05
    assert false / REPETITIONS <= binomial_bounds(0.05)[1]


@pytest.mark.parametrize(("seeds", "contrasts"), [(5, 1), (5, 3), (10, 1)])
def test_the_smallest_difference_is_found_four_times_of_five(seeds, contrasts):
    size = smallest_difference(seeds, contrasts=contrasts)
    assert size is not None
    differences = np.random.default_rng(seeds).normal(size, 1, (REPETITIONS, seeds))
    p = stats.ttest_1samp(differences, 0, axis=1).pvalue
    low, high = binomial_bounds(0.8)
    assert low <= np.mean(p <= 0.05 / contrasts) <= high


def test_five_seeds_see_a_difference_of_about_1_7_deviations_and_one_sees_none():
    assert smallest_difference(5) == pytest.approx(1.68, abs=0.01)
    assert smallest_difference(1) is None
