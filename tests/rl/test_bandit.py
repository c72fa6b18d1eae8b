"""The bandit of benchmarks/: it learns, its gain is a learning rate on the decision, and failures do not mislead it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def bandit():
    path = Path(__file__).parents[2] / "benchmarks" / "bandit.py"
    spec = importlib.util.spec_from_file_location("bandit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_learns_when_to_look(bandit):
    seeds = np.arange(24)
    for first_look_rate in (0.5, 0.05):
        world = bandit.World(own_spread=0.1, first_look_rate=first_look_rate)
        untrained = bandit.cumulative_regret(seeds, 0.0, world, bandit.METHODS["GRPO"]).mean()
        for name, method in bandit.METHODS.items():
            assert bandit.cumulative_regret(seeds, 32.0, world, method).mean() < 0.5 * untrained, name


def test_gain_is_a_learning_rate_on_the_decision(bandit):
    seeds, world = np.arange(24), bandit.World(own_spread=0.1, first_look_rate=0.5)
    grpo = bandit.cumulative_regret(seeds, 16.0, world, bandit.METHODS["GRPO"])
    gain = bandit.cumulative_regret(seeds, 8.0, world, bandit.METHODS["GRPO with gain"])
    # Run by run the same, but for draws that fall within rounding of the probability.
    assert np.median(np.abs(gain / grpo - 1)) < 1e-4


def test_failures_are_not_taken_for_a_contrast(bandit):
    """Where looking brings nothing. Between seeds the contrast of a class has a standard deviation of 0.05."""
    seeds = np.arange(48)
    for rates in ({"undecided_rate": 0.3}, {"unreadable_rate": 0.3}):
        assert np.abs(bandit.contrast_from_failures(seeds, **rates).mean(axis=0)).max() < 0.04
    untold = bandit.contrast_from_failures(seeds, undecided_rate=0.3, told=False)
    assert untold.mean(axis=0).min() > 0.2
