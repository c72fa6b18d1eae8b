"""UC-GRPO against a float64 brute-force loop, against plain GRPO, and by its properties."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from actfer_jax.rl import ucgrpo

GRPO = ucgrpo.UCGRPOConfig(beta=0.0, gain=1.0, std="group", cost=0.03)
UCGRPO = ucgrpo.UCGRPOConfig(cost=0.03)
B, G, E = 4, 6, 3
MASKS = ("valid", "forced", "decided", "formatted")

jitted_advantages = jax.jit(ucgrpo.advantages, static_argnames="config")


def mean(values):
    return sum(values) / len(values) if values else 0.0


def brute_force(reward, task, looked, emotion, state, config, step, valid, forced, decided, formatted):
    """The formulas of docs/algorithm.md, one number at a time in float64."""
    n_queries, n_rollouts = reward.shape
    started = step >= config.decision_start
    gain = config.gain if started else 0.0
    warm = 1.0 if config.ramp == 0 else min(1.0, max(0, step - config.decision_start + 1) / config.ramp)
    groups = []
    for i in range(n_queries):
        live = [g for g in range(n_rollouts) if valid[i, g]]
        zoom = [g for g in live if looked[i, g]]
        direct = [g for g in live if decided[i, g] and not looked[i, g]]
        undecided = [g for g in live if g not in zoom and g not in direct]
        readable_zoom, readable_direct = ([g for g in arm if formatted[i, g]] for arm in (zoom, direct))
        n1, n0 = len(readable_zoom), len(readable_direct)
        contrast = pairs = trust = reward_contrast = 0.0
        if zoom and direct:
            reward_contrast = mean([reward[i, g] for g in zoom]) - mean([reward[i, g] for g in direct])
        if n1 and n0:
            contrast = mean([task[i, g] for g in readable_zoom]) - mean([task[i, g] for g in readable_direct])
            pairs = n1 * n0 / (n1 + n0)
            trust = pairs / (pairs + config.kappa)
        labelled = 0 <= emotion[i] < len(state["D"])
        count = state["N"][emotion[i]] if labelled else state["N_g"]
        expected = state["D_g"]
        if labelled and count + config.kappa_g > 0:
            expected = (count * state["D"][emotion[i]] + config.kappa_g * state["D_g"]) / (count + config.kappa_g)
        utility = trust * contrast + (1 - trust) * expected - config.cost
        utility = max(-config.u_max, min(config.u_max, utility))
        rewards = [reward[i, g] for g in live]
        differs = bool(live) and max(rewards) - min(rewards) >= 1e-6
        blend = config.beta * warm * (count >= config.n_min) * differs
        pull = gain * ((1 - blend) * reward_contrast + blend * utility)
        free = [g for g in zoom + direct if not forced[i, g]]
        free_rate = mean([float(looked[i, g]) for g in free])
        within, between = np.zeros(n_rollouts), np.zeros(n_rollouts)
        for arm, own_set in ((zoom, zoom + direct), (direct, zoom + direct), (undecided, undecided)):
            for g in arm:
                within[g] = reward[i, g] - mean([reward[i, h] for h in arm])
                within[g] += mean([reward[i, h] for h in own_set]) - mean(rewards)
        for g in free:
            between[g] = pull * (looked[i, g] - free_rate)
        variance = sum((r - mean(rewards)) ** 2 for r in rewards) / max(len(live) - config.std_ddof, 1)
        rate = mean([float(looked[i, g]) for g in zoom + direct])
        share = len(zoom + direct) / len(live) if live else 0.0
        spread = math.sqrt(variance + share * (gain * blend * utility) ** 2 * rate * (1 - rate))
        groups.append(SimpleNamespace(**locals()))

    counted = [group for group in groups if len(group.live) >= 2]
    batch = math.sqrt(mean([group.spread**2 for group in counted]))
    for group in groups:
        scale = {"group": group.spread + config.eps, "batch": batch + config.eps, "none": 1.0}[config.std]
        factor = 1 / scale if group in counted else 0.0
        group.within, group.between, group.weight = (
            x * factor for x in (group.within, group.between, group.pull)
        )  # fmt: skip
        group.advantage = group.within + group.between
    names = ("advantage", "within", "between", "contrast", "utility", "weight", "trust", "pairs", "blend")
    out = {name: np.array([getattr(group, name) for group in groups]) for name in names}
    out["reward_contrast"] = np.array([group.reward_contrast for group in groups])

    def moved(average, count, members):
        total = sum(group.pairs for group in members)
        if total == 0 or not started:
            return average, count
        fresh = sum(group.pairs * group.contrast for group in members) / total
        a = 1 - (1 - config.ema_rate) ** (total / 2)
        return ((1 - a) * count * average + total * fresh) / ((1 - a) * count + total), (1 - a) * count + total

    new = {"D": [], "N": []}
    for e in range(len(state["D"])):
        average, count = moved(state["D"][e], state["N"][e], [group for group in groups if emotion[group.i] == e])
        new["D"].append(average)
        new["N"].append(count)
    new["D_g"], new["N_g"] = moved(state["D_g"], state["N_g"], groups)
    return out, new


def random_batch(rng, shape=(B, G)):
    """Rewards between those of failures and of right answers, and arms of all sizes, empty ones among them."""
    reward = rng.choice([0.0, 0.03, 0.15, 0.55, 0.85, 1.0], shape) + rng.normal(0, 0.05, shape)
    share = {name: rng.choice(rates, (shape[0], 1)) for name, rates in {
        "looked": [0.0, 0.2, 0.5, 0.8, 1.0], "valid": [0.1, 0.8, 1.0], "forced": [0.0, 0.3], "decided": [0.0, 0.7, 1.0],
        "formatted": [0.0, 0.7, 1.0]}.items()}  # fmt: skip
    return SimpleNamespace(
        reward=reward.astype(np.float32),
        task=(reward + rng.normal(0, 0.1, shape)).astype(np.float32),
        emotion=rng.integers(-1, E, shape[0]),
        **{name: rng.random(shape) < rate for name, rate in share.items()},
    )


def run(batch, state=None, *, config=GRPO, step=100, function=jitted_advantages):
    state = ucgrpo.init_calibration(E) if state is None else state
    arrays = (batch.reward, batch.task, batch.looked, batch.emotion, state)
    masks = {name: getattr(batch, name, None) for name in MASKS}
    return function(*arrays, config=config, step=step, **masks)


def warm_state():
    return ucgrpo.Calibration(
        jnp.array([0.4, -0.2, 0.1]), jnp.array([50.0, 40.0, 30.0]), jnp.float32(0.15), jnp.float32(100.0)
    )


@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_brute_force_loop_over_many_steps(std, seed):
    rng = np.random.default_rng(seed)
    config = ucgrpo.UCGRPOConfig(
        kappa=rng.choice([0.0, 2.0]),
        kappa_g=rng.choice([0.0, 20.0]),
        ema_rate=rng.choice([0.05, 0.7]),
        beta=rng.choice([0.5, 1.0]),
        gain=rng.choice([1.0, 2.5]),
        decision_start=int(rng.choice([1, 4])),
        u_max=rng.choice([0.1, 0.5]),
        cost=rng.choice([0.0, 0.09]),
        n_min=rng.choice([0.0, 3.7]),
        ramp=int(rng.choice([0, 4])),
        std=std,
        std_ddof=seed % 2,
    )
    state, expected_state = ucgrpo.init_calibration(E), {"D": [0.0] * E, "N": [0.0] * E, "D_g": 0.0, "N_g": 0.0}
    for step in range(1, 16):
        batch = random_batch(rng)
        result, state = run(batch, state, config=config, step=step)
        expected, expected_state = brute_force(
            batch.reward.astype(np.float64), batch.task.astype(np.float64), batch.looked, batch.emotion,
            expected_state, config, step, *(getattr(batch, name) for name in MASKS),
        )  # fmt: skip
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(result, name), values, rtol=2e-4, atol=2e-5, err_msg=name)
        for name, values in zip(("D", "N", "D_g", "N_g"), state, strict=True):
            np.testing.assert_allclose(values, expected_state[name], rtol=1e-5, atol=1e-6, err_msg=name)


def grpo(reward, valid, std, eps):
    """Plain GRPO in float64."""
    reward = np.where(valid, reward, 0.0).astype(np.float64)
    n = valid.sum(1, keepdims=True)
    centred = np.where(valid, reward - reward.sum(1, keepdims=True) / np.maximum(n, 1), 0)
    variance = (centred**2).sum(1, keepdims=True) / np.maximum(n, 1)
    if std == "none":
        scale = 1.0
    elif std == "group":
        scale = np.sqrt(variance) + eps
    else:
        scale = np.sqrt(variance[n >= 2].mean() if (n >= 2).any() else 0.0) + eps
    return np.where(n >= 2, centred / scale, 0)


@settings(max_examples=60, deadline=None)
@given(
    reward=stnp.arrays(np.float32, (B, G), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    masks=stnp.arrays(bool, (4, B, G)) | st.sampled_from([np.zeros((4, B, G), bool), np.ones((4, B, G), bool)]),
    std=st.sampled_from(["group", "batch", "none"]),
)
def test_without_calibration_and_gain_it_is_grpo_for_any_reward(reward, masks, std):
    """Whatever arms there are: none, one, all undecided, one decided."""
    config = ucgrpo.UCGRPOConfig(beta=0.0, gain=1.0, std=std, cost=0.03)
    looked, valid, decided, formatted = masks
    batch = SimpleNamespace(
        reward=reward, task=reward, emotion=np.arange(B) % E, looked=looked, valid=valid, decided=decided,
        formatted=formatted,
    )  # fmt: skip
    result, _ = run(batch, warm_state(), config=config, step=9)
    expected = grpo(reward, valid, std, config.eps)
    largest = np.abs(np.where(valid, reward, 0)).max(1, keepdims=True)
    tolerance = 1e-5 + 1e-6 * (largest if std == "none" else 1)
    assert (np.abs(result.advantage - expected) <= tolerance + 1e-5 * np.abs(expected)).all()


rewards = stnp.arrays(np.float32, (B, G), elements=st.floats(-1, 1, width=32))
masks = stnp.arrays(bool, (B, G))
configs = st.sampled_from([ucgrpo.UCGRPOConfig(std=std, cost=0.03) for std in ucgrpo.STD_MODES])


@settings(max_examples=60, deadline=None)
@given(reward=rewards, task=rewards, looked=masks, given=stnp.arrays(bool, (4, B, G)), config=configs)
def test_both_parts_sum_to_zero_and_stay_bounded(reward, task, looked, given, config):
    valid, forced, decided, formatted = given
    batch = SimpleNamespace(reward=reward, task=task, looked=looked, emotion=np.arange(B) % E)
    vars(batch).update(zip(MASKS, given, strict=True))
    result, _ = run(batch, warm_state(), config=config, step=99)
    scale = 1 + np.abs(result.advantage).max()
    for part in (result.within, result.between):
        assert np.abs(np.asarray(part).sum(1)).max() < 1e-5 * scale
    assert not np.asarray(result.between)[forced | ~(decided | looked)].any()
    assert not np.asarray(result.advantage)[~valid].any()
    assert not np.asarray(result.advantage)[valid.sum(1) < 2].any()
    np.testing.assert_array_equal(result.advantage, result.within + result.between)
    if config.std != "none":
        # n var R >= n_h d_R^2 bounds the contrast by the spread, and the spread contains the utility. That of the batch
        # is at least 1 / sqrt B of a group's.
        bound = np.sqrt(G) + (config.gain + 1) * np.sqrt(2 * G)
        assert np.abs(result.advantage).max() <= bound * (1 if config.std == "group" else np.sqrt(B))


@given(reward=rewards, looked=st.booleans(), config=configs)
@settings(max_examples=40, deadline=None)
def test_a_single_arm_gives_plain_grpo(reward, looked, config):
    result, state = jitted_advantages(
        reward, reward, np.full((B, G), looked), np.arange(B) % E, warm_state(), config=config, step=99
    )
    expected = grpo(reward, np.ones((B, G), bool), config.std, config.eps)
    np.testing.assert_allclose(result.advantage, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, state, warm_state())


def test_before_its_first_step_the_decision_is_not_learned_and_nothing_is_calibrated():
    config = replace(UCGRPO, decision_start=3, ramp=2, n_min=0, beta=1.0, std="none")
    reward = np.array([[0.2, 0.9, 0.4, 0.5, 0.0]])
    looked, decided = np.array([[1, 1, 0, 0, 0]]), np.array([[1, 1, 1, 1, 0]])
    batch = SimpleNamespace(reward=reward, task=reward, looked=looked, decided=decided, emotion=[0])
    for step, blend in ((1, 0), (2, 0), (3, 0.5), (4, 1), (5, 1)):
        result, state = run(batch, warm_state(), config=config, step=step)
        np.testing.assert_allclose(result.blend, [blend])
        weight = (1 - blend) * 0.1 + blend * float(result.utility[0])
        np.testing.assert_allclose(result.weight, [config.gain * weight * (step >= 3)], atol=1e-6)
        assert np.asarray(result.between).any() == (step >= 3)
        # The format is learnt from the first step on: those that decided lie 0.1 above the mean, the other 0.4 below.
        np.testing.assert_allclose(result.within, [[-0.25, 0.45, 0.05, 0.15, -0.4]], atol=1e-6)
        same = jax.tree.map(lambda new, old: bool((new == old).all()), state, warm_state())
        assert all(same) == (step < 3)


def test_answers_that_cannot_be_read_and_failures_before_one_are_no_contrast():
    """Looking brings 0.5; one rollout is spoilt after a look, one without a look, and one never answers."""
    task = np.array([[0.8, 0.8, 0.0, 0.3, 0.3, 0.0, 0.0]])
    looked = np.array([[1, 1, 1, 0, 0, 0, 0]])
    decided, formatted = np.array([[1, 1, 1, 1, 1, 1, 0]]), np.array([[1, 1, 0, 1, 1, 0, 0]])
    batch = SimpleNamespace(reward=task, task=task, looked=looked, decided=decided, formatted=formatted, emotion=[1])
    result, state = run(batch, step=1)
    np.testing.assert_allclose((result.contrast[0], result.pairs[0]), (0.5, 1.0), atol=1e-6)
    np.testing.assert_allclose(state.utility_E, [0, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(result.reward_contrast, [1.6 / 3 - 0.2], atol=1e-6)
    # A rollout that looked has decided, whatever it is said to have done.
    batch.decided = decided & ~looked
    jax.tree.map(np.testing.assert_array_equal, run(batch, step=1), (result, state))


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_nothing(n, std):
    # A utility far from 0 stands ready, and the mean of n times 0.85 is not 0.85 in float32.
    config = replace(UCGRPO, beta=1.0, std=std, ramp=0, n_min=0)
    looked = np.arange(n)[None, :] < max(1, n // 2)
    for value in (0.85, 1e-7, -3.3, 1e37):
        reward = np.full((1, n), value, np.float32)
        result, _ = jitted_advantages(
            reward, np.zeros((1, n)), looked, np.array([0]), warm_state(), config=config, step=5
        )
        assert not np.asarray(result.advantage).any()


def test_what_is_invalid_has_no_influence():
    rng = np.random.default_rng(0)
    batch = random_batch(rng)
    batch.valid = np.ones((B, G), bool)
    batch.valid[:, 4:] = False
    full, state = run(batch, warm_state(), config=UCGRPO)
    short = SimpleNamespace(**{k: v[:, :4] if v.ndim == 2 else v for k, v in vars(batch).items()})
    cut, cut_state = run(short, warm_state(), config=UCGRPO)
    batch.reward[:, 4:], batch.task[:, 4:] = np.nan, np.inf
    poisoned, poisoned_state = run(batch, warm_state(), config=UCGRPO)
    for name in ucgrpo.Result._fields:
        value = getattr(full, name)
        np.testing.assert_array_equal(value, getattr(poisoned, name))
        np.testing.assert_allclose(value[:, :4] if value.ndim == 2 else value, getattr(cut, name), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state, poisoned_state)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), state, cut_state)


def test_forced_rollouts_teach_the_calibration_and_not_the_decision():
    reward = np.array([[1.0, 0.8, 0.2, 0.0]], np.float32)
    looked, forced = np.array([[1, 1, 0, 0]]), np.array([[0, 1, 0, 1]])
    state = ucgrpo.init_calibration(2)
    result, new = jitted_advantages(reward, reward, looked, np.array([1]), state, config=GRPO, step=1, forced=forced)
    scale = reward.std() + GRPO.eps
    np.testing.assert_allclose(result.within, np.array([[0.1, -0.1, 0.1, -0.1]]) / scale, atol=1e-5)
    # d_R = 0.8, and the free rollouts are one of each arm.
    np.testing.assert_allclose(result.between, np.array([[0.4, 0, -0.4, 0]]) / scale, atol=1e-5)
    np.testing.assert_allclose(new.utility_E, [0, 0.8], atol=1e-6)
    np.testing.assert_allclose(new.count_E, [0, 1])


@given(
    values=stnp.arrays(np.float32, (2, B, G), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    looked=masks,
    valid=masks,
    forced=masks,
    old=stnp.arrays(np.float32, (E + 1,), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    config=configs,
)
@settings(max_examples=60, deadline=None)
def test_finite_input_of_any_size_gives_finite_output(values, looked, valid, forced, old, config):
    state = ucgrpo.Calibration(jnp.array(old[:E]), jnp.full(E, 60.0), jnp.float32(old[E]), jnp.float32(60.0))
    for step in (1, 2_000_000_000):
        result, state = jitted_advantages(
            *values, looked, np.arange(B) - 1, state, config=config, step=step, valid=valid, forced=forced
        )
        assert all(np.isfinite(array).all() for array in (*result, *state))


def test_float64_rewards_beyond_float32_saturate():
    reward = np.array([[1e300, -1e300, 0.0, 1.0]])
    result, state = run(
        SimpleNamespace(reward=reward, task=reward, looked=reward > 0, emotion=np.array([0]), valid=None, forced=None)
    )
    assert all(np.isfinite(array).all() for array in (*result, *state))
    np.testing.assert_allclose(result.advantage, grpo(reward / 1e300, np.ones((1, 4), bool), "group", 0), atol=1e-5)


def test_integer_and_boolean_inputs_mean_the_same():
    reward, looked = np.array([[1, 0, 0, 1], [0, 1, 1, 1]]), np.array([[1, 0, 1, 0], [1, 1, 0, 0]])
    results = [
        ucgrpo.advantages(r, r, z, e, warm_state(), config=GRPO, step=100, valid=v)
        for r, z, e, v in (
            (reward, looked, np.array([0, 1]), np.ones((2, 4), np.int8)),
            (reward.astype(bool), looked.astype(bool), np.array([0.0, 1.0]), None),
            (jnp.asarray(reward, jnp.bfloat16), looked.astype(np.float64), [0, 1], np.ones((2, 4), bool)),
            (reward.tolist(), looked.tolist(), (0, 1), None),
        )
    ]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    assert results[0][0].advantage.dtype == jnp.float32


def test_jit_equals_eager_and_the_order_of_rows_does_not_matter():
    config = UCGRPO
    batch = random_batch(np.random.default_rng(3))
    eager = run(batch, warm_state(), config=config, step=7, function=ucgrpo.advantages)
    jitted = run(batch, warm_state(), config=config, step=7)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), jitted, eager)

    rows, columns = np.array([2, 0, 3, 1]), np.array([5, 3, 1, 0, 2, 4])
    shuffled = SimpleNamespace(**{k: v[rows][:, columns] if v.ndim == 2 else v[rows] for k, v in vars(batch).items()})
    result, state = run(shuffled, warm_state(), config=config, step=7)
    np.testing.assert_allclose(result.advantage, eager[0].advantage[rows][:, columns], rtol=1e-5, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), state, eager[1])


def test_calibration_converges_to_the_contrast_of_each_class_and_leaves_the_others_alone():
    looked = np.tile(np.arange(8) < 4, (2, 1))
    task = np.where(looked, 0.7, 0.4) + np.array([[0.0], [-0.2]]) * looked  # contrasts 0.3 and 0.1
    state = ucgrpo.init_calibration(4)
    for step in range(1, 201):
        _, state = jitted_advantages(task, task, looked, np.array([2, -1]), state, config=UCGRPO, step=step)
    np.testing.assert_allclose(state.utility_E, [0, 0, 0.3, 0], atol=1e-5)
    np.testing.assert_array_equal(state.count_E[np.array([0, 1, 3])], 0)
    np.testing.assert_allclose(state.global_utility, 0.2, atol=1e-5)
    # In the steady state N = S / a, with S = 2 pairs a step.
    np.testing.assert_allclose(state.count_E[2], 2 / 0.05, rtol=1e-3)


def test_a_query_that_always_inspects_is_pulled_by_what_its_class_has_shown():
    """Where a group says little, the utility of the class decides the sign."""
    reward = np.array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4]], np.float32)
    looked = np.array([[0, 1, 1, 1, 1, 1, 1, 1]])
    config = replace(UCGRPO, beta=1.0, ramp=0, n_min=0)
    for emotion, sign in ((0, 1), (1, -1)):  # the warm state has 0.4 and -0.2
        result, _ = jitted_advantages(reward, reward, looked, np.array([emotion]), warm_state(), config=config, step=1)
        assert np.sign(result.weight[0]) == sign


def test_credit_by_decision_stops_the_arm_part_at_the_decision():
    batch = random_batch(np.random.default_rng(1), (2, 2))
    batch.looked = np.array([[1, 0], [0, 1]])
    result, _ = run(batch)
    mask = np.array([[0, 1, 1, 0, 1, 1]] * 4)
    end = np.array([[2, 0], [4, 5]])
    tokens = np.asarray(ucgrpo.token_advantages(result, end, mask, credit="decision"))
    for row in range(4):
        b, g = divmod(row, 2)
        for position in range(6):
            expected = result.within[b, g] + (result.between[b, g] if position <= end[b, g] else 0)
            assert tokens[row, position] == pytest.approx(float(expected) * mask[row, position], abs=1e-6)
    np.testing.assert_array_equal(
        ucgrpo.token_advantages(result, None, mask, credit="trajectory"),
        np.asarray(result.advantage).reshape(4, 1) * mask,
    )
    with pytest.raises(ValueError, match="decision_end"):
        ucgrpo.token_advantages(result, None, mask, credit="decision")
    with pytest.raises(ValueError, match="credit"):
        ucgrpo.token_advantages(result, end, mask, credit="token")


def test_diagnostics_tell_what_the_batch_can_tell():
    reward = np.array([[1.0, 0.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0]], np.float32)
    looked = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    assigned = np.array([[1, -1, 0, 0], [1, -1, 0, 0], [0, 0, 0, 0]])
    emotion = np.array([0, 0, 2])
    result, state = jitted_advantages(
        reward, reward, looked, emotion, ucgrpo.init_calibration(3), config=GRPO, step=1, forced=assigned != 0
    )
    measures = ucgrpo.diagnostics(
        result, state, emotion, ("joy", "fear", "anger"), task_reward_BxG=reward, assigned_BxG=assigned
    )
    assert measures["uc/d"] == pytest.approx(1.0)
    assert measures["uc/d_randomised"] == pytest.approx((1.0 - 0.1) / 2)
    assert measures["uc/frac_all_zoom"] == pytest.approx(1 / 3)
    assert measures["uc/frac_no_zoom"] == 0
    assert measures["uc/n_h"] == pytest.approx(2 / 3)
    assert measures["uc/lambda"] == pytest.approx(2 / 3 * (1 / (1 + 2)))
    assert measures["uc/ema/class/joy"] == pytest.approx(1.0)
    assert measures["uc/weight/class/anger"] == pytest.approx(1 / (0.5 + GRPO.eps), rel=1e-5)
    assert "uc/weight/class/fear" not in measures
    assert all(math.isfinite(value) for value in measures.values())


def test_diagnostics_count_the_groups_whose_sign_the_calibration_turned():
    reward = np.array([[0.6, 0.5, 0.5, 0.6]] * 2, np.float32)
    looked = np.array([[0, 0, 1, 0], [1, 0, 0, 0]])  # d_R is below 0 in the first, above in the second
    config = replace(UCGRPO, beta=1.0, ramp=0, n_min=0)
    result, state = jitted_advantages(reward, reward, looked, np.zeros(2), warm_state(), config=config, step=1)
    assert ucgrpo.diagnostics(result, state, [0, 0], ("joy",))["uc/frac_sign_flip"] == 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("std", "global"),
        ("credit", "token"),
        ("eps", 0.0),
        ("beta", 1.5),
        ("kappa", -1.0),
        ("u_max", float("nan")),
        ("decision_start", -1),
    ],
)
def test_bad_constants_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} "):
        ucgrpo.UCGRPOConfig(**{field: value})


def test_shapes_that_do_not_fit_are_named():
    state, reward = ucgrpo.init_calibration(2), np.zeros((2, 3))
    for name, arguments in {
        "inspected": (reward, reward, reward[:, :2], [0, 1]),
        "task_reward": (reward, reward[:1], reward, [0, 1]),
        "emotion": (reward, reward, reward, [0, 1, 1]),
        "reward": (reward[0], reward[0], reward[0], [0, 1]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} "):
            ucgrpo.advantages(*arguments, state, config=GRPO, step=1)
    with pytest.raises(ValueError, match="^decided "):
        ucgrpo.advantages(reward, reward, reward, [0, 1], state, config=GRPO, step=1, decided=reward[:1])
    with pytest.raises(ValueError, match="std must be one of"):
        ucgrpo.advantages(reward, reward, reward, [0, 1], state, config=SimpleNamespace(std="x"), step=1)
    with pytest.raises(ValueError, match="^cost is None"):
        ucgrpo.advantages(reward, reward, reward, [0, 1], state, config=ucgrpo.UCGRPOConfig(), step=1)
