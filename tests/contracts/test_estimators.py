"""Every estimator is what `rl.estimators.Estimator` asks for."""

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
    reward[2] = scale  # a group in which all are equal
    return Groups(
        reward_BxG=reward,
        task_reward_BxG=reward + scale * inspected.astype(np.float32),
        inspected_BxG=inspected,
        emotion_B=np.array([0, 1, 2, -1, 0, 1], np.int32),
        assigned_BxG=np.where(np.arange(G) < 4, np.where(inspected, 1, -1), 0).astype(np.int32),
        decision_end_BxG=random.integers(0, L, (B, G)).astype(np.int32),
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


def test_grpo_is_ucgrpo_without_calibration_and_gain():
    batch = groups(5)._replace(assigned_BxG=np.zeros((B, G), np.int32))
    grpo, grpo_config = load("grpo")
    ucgrpo = plugins.load("rl.estimators", "ucgrpo")
    plain = ucgrpo.Config(beta=0.0, gain=1.0)
    expected, _ = ucgrpo.advantages(batch, ucgrpo.init_state(len(CLASSES)), config=plain, step=1)
    found, _ = grpo.advantages(batch, (), config=grpo_config, step=1)
    np.testing.assert_allclose(found.advantage, expected.advantage, rtol=1e-5, atol=1e-6)


def test_a_module_that_is_no_estimator_says_what_it_lacks():
    with pytest.raises(ConfigError, match=r"examples\.brief_reward has no .*advantages.*actfer_jax\.rl\.estimators"):
        plugins.load("rl.estimators", "examples.brief_reward")
