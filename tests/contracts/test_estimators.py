"""Every estimator is what `rl.estimators.Estimator` asks for."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from actfer_jax import plugins
from actfer_jax.config import ConfigError, read_config
from actfer_jax.rl.estimators import Estimator, EstimatorConfig, Groups

B, G, L, CLASSES = 6, 8, 5, ("anger", "disgust", "fear")
MEMBERS = [*plugins.names("rl.estimators"), "examples.leave_one_out"]


def groups(seed: int, scale: float = 1.0) -> Groups:
    random = np.random.default_rng(seed)
    inspected = random.random((B, G)) < 0.5
    inspected[0], inspected[1] = True, False  # groups with one arm only
    reward = scale * random.normal(size=(B, G)).astype(np.float32)
    reward[2] = scale  # a group in which all are equal, and call as many tools
    calls = inspected + 1
    calls[2] = 2
    return Groups(
        reward_BxG=reward,
        task_reward_BxG=reward + scale * inspected.astype(np.float32),
        valid_BxG=np.ones((B, G), bool),
        formatted_BxG=random.random((B, G)) < 0.8,
        right_BxG=random.random((B, G)) < 0.5,
        decided_BxG=inspected | (random.random((B, G)) < 0.8),
        inspected_BxG=inspected,
        calls_BxG=calls.astype(np.int32),
        emotion_B=np.array([0, 1, 2, -1, 0, 1], np.int32),
        assigned_BxG=np.where(np.arange(G) < 4, np.where(inspected, 1, -1), 0).astype(np.int32),
        decision_end_BxG=random.integers(0, L, (B, G)).astype(np.int32),
        look_cost=0.03,
    )


def load(name: str) -> tuple[Estimator, EstimatorConfig]:
    config = read_config({"name": name}, EstimatorConfig, "estimator")
    return plugins.load("rl.estimators", name), config


@pytest.mark.parametrize("name", MEMBERS)
def test_an_estimator_keeps_the_contract(name):
    estimator, config = load(name)
    state = estimator.init_state(len(CLASSES))
    mask = np.random.default_rng(9).random((B * G, L)) < 0.7
    for step, scale in enumerate((1.0, 1000.0, 1e-3), start=1):
        batch = groups(step, scale)
        before = jax.tree.map(np.array, state)
        result, after = estimator.advantages(batch, state, config=config, step=step)
        again, _ = estimator.advantages(batch, state, config=config, step=step)
        advantage = np.asarray(result.advantage)
        assert advantage.shape == (B, G) and advantage.dtype == np.float32 and np.isfinite(advantage).all()
        np.testing.assert_array_equal(advantage, again.advantage)
        np.testing.assert_array_equal(advantage[2], 0)  # nothing to learn where all are equal
        # The state is not changed in place, and a checkpoint finds it in the same shape.
        jax.tree.map(np.testing.assert_array_equal, state, before)
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after)]
        assert shapes[0] == shapes[1]
        tokens = np.asarray(estimator.token_advantages(result, batch, mask, config=config))
        assert tokens.shape == mask.shape and tokens.dtype == np.float32
        assert not tokens[~mask].any()
        measures = estimator.diagnostics(result, after, batch, CLASSES)
        assert all(isinstance(value, float) and np.isfinite(value) for value in measures.values())
        state = after


@pytest.mark.parametrize("name", MEMBERS)
def test_more_reward_is_more_advantage_in_a_group_of_one_arm(name):
    estimator, config = load(name)
    batch = groups(4)
    result, _ = estimator.advantages(batch, estimator.init_state(len(CLASSES)), config=config, step=1)
    for row in (0, 1):
        ranks = [np.argsort(values) for values in (np.asarray(result.advantage)[row], batch.reward_BxG[row])]
        np.testing.assert_array_equal(*ranks)


@pytest.mark.parametrize("name", MEMBERS)
def test_what_failed_on_a_host_has_no_advantage_and_no_influence(name):
    estimator, config = load(name)
    batch = groups(6)
    valid = np.ones((B, G), bool)
    valid[0, 3:], valid[1, 1:], valid[2] = False, False, False  # three are left of a group, one, and none
    batch = batch._replace(valid_BxG=valid)
    other = batch._replace(reward_BxG=np.where(valid, batch.reward_BxG, 77).astype(np.float32))
    state = estimator.init_state(len(CLASSES))
    (result, after), (same, same_after) = (
        estimator.advantages(given, state, config=config, step=1) for given in (batch, other)
    )
    np.testing.assert_allclose(result.advantage, same.advantage, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, same_after)
    assert not np.asarray(result.advantage)[~valid].any() and not np.asarray(result.advantage)[1:3].any()
    assert np.asarray(result.advantage)[0, :3].any()
    measures = estimator.diagnostics(result, after, batch, CLASSES)
    assert all(np.isfinite(value) for value in measures.values())


def test_a_look_costs_what_zooms_cost_unless_the_config_says_otherwise():
    estimator, config = load("ucgrpo")
    batch, state = groups(7), estimator.init_state(len(CLASSES))

    def utilities(config: EstimatorConfig, look_cost: float) -> np.ndarray:
        priced = batch._replace(look_cost=look_cost)
        return np.asarray(estimator.advantages(priced, state, config=config, step=1)[0].utility)

    wide = replace(config, u_max=9.0)
    np.testing.assert_allclose(utilities(wide, 0.0) - utilities(wide, 0.06), 0.06, atol=1e-6)
    fixed = replace(wide, cost=0.06)
    np.testing.assert_allclose(utilities(fixed, 0.5), utilities(wide, 0.06))


def test_grpo_is_ucgrpo_without_calibration_and_gain():
    batch = groups(5)._replace(assigned_BxG=np.zeros((B, G), np.int32))
    batch.valid_BxG[1, :5] = False
    grpo, grpo_config = load("grpo")
    ucgrpo = plugins.load("rl.estimators", "ucgrpo")
    for ddof in (0, 1):
        plain = ucgrpo.Config(beta=0.0, gain=1.0, std="group", std_ddof=ddof)
        expected, _ = ucgrpo.advantages(batch, ucgrpo.init_state(len(CLASSES)), config=plain, step=1)
        found, _ = grpo.advantages(batch, (), config=replace(grpo_config, std_ddof=ddof), step=1)
        np.testing.assert_allclose(found.advantage, expected.advantage, rtol=1e-5, atol=1e-6)
        # As numpy has it.
        reward = batch.reward_BxG[0].astype(np.float64)
        by_hand = (reward - reward.mean()) / (reward.std(ddof=ddof) + 1e-4)
        np.testing.assert_allclose(found.advantage[0], by_hand, rtol=1e-5)


def test_a_module_that_is_no_estimator_says_what_it_lacks():
    with pytest.raises(ConfigError, match=r"examples\.brief_reward has no .*advantages.*actfer_jax\.rl\.estimators"):
        plugins.load("rl.estimators", "examples.brief_reward")
