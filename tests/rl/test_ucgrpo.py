"""UC-GRPO against a float64 brute-force loop, against plain GRPO, and by its properties."""

import math
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

GRPO = ucgrpo.UCGRPOConfig(beta=0.0, gain=1.0)
B, G, E = 4, 6, 3

jitted_advantages = jax.jit(ucgrpo.advantages, static_argnames="config")


def brute_force(reward, task, looked, emotion, state, config, step, valid, forced):
    """The formulas of docs/algorithm.md, one number at a time in float64."""
    n_queries, n_rollouts = reward.shape
    out = {name: np.zeros((n_queries, n_rollouts)) for name in ("advantage", "within", "between")}
    out |= {name: np.zeros(n_queries) for name in ("contrast", "utility", "weight", "trust", "pairs", "blend")}
    raw_within, raw_between = np.zeros(reward.shape), np.zeros(reward.shape)
    pulls, spreads = np.zeros(n_queries), np.zeros(n_queries)
    for i in range(n_queries):
        live = [g for g in range(n_rollouts) if valid[i, g]]
        zoomed = [g for g in live if looked[i, g]]
        direct = [g for g in live if not looked[i, g]]
        n, n1, n0 = len(live), len(zoomed), len(direct)
        pairs = n1 * n0 / n if n else 0.0
        rate = n1 / n if n else 0.0
        contrast = reward_contrast = trust = 0.0
        if n1 and n0:
            contrast = sum(task[i, g] for g in zoomed) / n1 - sum(task[i, g] for g in direct) / n0
            reward_contrast = sum(reward[i, g] for g in zoomed) / n1 - sum(reward[i, g] for g in direct) / n0
            trust = pairs / (pairs + config.kappa)
        labelled = 0 <= emotion[i] < len(state["D"])
        count = state["N"][emotion[i]] if labelled else state["N_g"]
        expected = state["D_g"]
        if labelled and count + config.kappa_g > 0:
            expected = (count * state["D"][emotion[i]] + config.kappa_g * state["D_g"]) / (count + config.kappa_g)
        utility = trust * contrast + (1 - trust) * expected - config.cost
        utility = max(-config.u_max, min(config.u_max, utility))
        rewards = [reward[i, g] for g in live]
        warm = 1.0 if config.ramp == 0 else min(1.0, step / config.ramp)
        differs = bool(live) and max(rewards) - min(rewards) >= 1e-6
        blend = config.beta * warm * (count >= config.n_min) * differs
        pull = config.gain * ((1 - blend) * reward_contrast + blend * utility)
        free = [g for g in live if not forced[i, g]]
        free_rate = sum(looked[i, g] for g in free) / len(free) if free else 0.0
        for g in live:
            arm = zoomed if looked[i, g] else direct
            raw_within[i, g] = reward[i, g] - sum(reward[i, h] for h in arm) / len(arm)
            raw_between[i, g] = pull * (looked[i, g] - free_rate) if g in free else 0.0
        mean = sum(rewards) / n if n else 0.0
        variance = sum((r - mean) ** 2 for r in rewards) / n if n else 0.0
        spreads[i] = math.sqrt(variance + (config.gain * blend * utility) ** 2 * rate * (1 - rate))
        pulls[i] = pull
        for name, value in {
            "contrast": contrast,
            "utility": utility,
            "trust": trust,
            "pairs": pairs,
            "blend": blend,
        }.items():
            out[name][i] = value
    counted = [i for i in range(n_queries) if valid[i].sum() >= 2]
    batch = math.sqrt(sum(spreads[i] ** 2 for i in counted) / len(counted)) if counted else 0.0
    for i in counted:
        scale = {"group": spreads[i] + config.eps, "batch": batch + config.eps, "none": 1.0}[config.std]
        out["within"][i], out["between"][i] = raw_within[i] / scale, raw_between[i] / scale
        out["advantage"][i] = (raw_within[i] + raw_between[i]) / scale
        out["weight"][i] = pulls[i] / scale

    new = {"D": list(state["D"]), "N": list(state["N"]), "D_g": state["D_g"], "N_g": state["N_g"]}

    def moved(average, count, groups):
        total = sum(out["pairs"][i] for i in groups)
        if total == 0:
            return average, count
        fresh = sum(out["pairs"][i] * out["contrast"][i] for i in groups) / total
        a = 1 - (1 - config.ema_rate) ** (total / 2)
        return ((1 - a) * count * average + total * fresh) / ((1 - a) * count + total), (1 - a) * count + total

    for e in range(len(state["D"])):
        new["D"][e], new["N"][e] = moved(state["D"][e], state["N"][e], [i for i in range(n_queries) if emotion[i] == e])
    new["D_g"], new["N_g"] = moved(state["D_g"], state["N_g"], range(n_queries))
    return out, new


def random_batch(rng, shape=(B, G)):
    reward = rng.choice([0.0, 0.03, 0.15, 0.55, 0.85, 1.0], shape) + rng.normal(0, 0.05, shape)
    return SimpleNamespace(
        reward=reward.astype(np.float32),
        task=(reward + rng.normal(0, 0.1, shape)).astype(np.float32),
        looked=rng.random(shape) < rng.choice([0.0, 0.2, 0.5, 0.8, 1.0], (shape[0], 1)),
        emotion=rng.integers(-1, E, shape[0]),
        valid=rng.random(shape) < rng.choice([0.1, 0.8, 1.0]),
        forced=rng.random(shape) < rng.choice([0.0, 0.3]),
    )


def run(batch, state=None, *, config=GRPO, step=100, function=jitted_advantages):
    state = ucgrpo.init_calibration(E) if state is None else state
    arrays = (batch.reward, batch.task, batch.looked, batch.emotion, state)
    return function(*arrays, config=config, step=step, valid=batch.valid, forced=batch.forced)


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
        u_max=rng.choice([0.1, 0.5]),
        n_min=rng.choice([0.0, 3.7]),
        ramp=int(rng.choice([0, 4])),
        std=std,
    )
    state, expected_state = ucgrpo.init_calibration(E), {"D": [0.0] * E, "N": [0.0] * E, "D_g": 0.0, "N_g": 0.0}
    for step in range(10):
        batch = random_batch(rng)
        arguments = (batch.reward, batch.task, batch.looked, batch.emotion)
        result, state = jitted_advantages(
            *arguments, state, config=config, step=step, valid=batch.valid, forced=batch.forced
        )
        expected, expected_state = brute_force(
            *(np.asarray(x, np.float64) if x is not batch.emotion else x for x in arguments),
            expected_state, config, step, batch.valid, batch.forced,
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
    looked=stnp.arrays(bool, (B, G)),
    valid=stnp.arrays(bool, (B, G)),
    std=st.sampled_from(["group", "batch", "none"]),
)
def test_without_calibration_and_gain_it_is_grpo_for_any_reward(reward, looked, valid, std):
    config = ucgrpo.UCGRPOConfig(beta=0.0, gain=1.0, std=std)
    emotion = np.arange(B) % E
    result, _ = jitted_advantages(reward, reward, looked, emotion, warm_state(), config=config, step=9, valid=valid)
    expected = grpo(reward, valid, std, config.eps)
    largest = np.abs(np.where(valid, reward, 0)).max(1, keepdims=True)
    tolerance = 1e-5 + 1e-6 * (largest if std == "none" else 1)
    assert (np.abs(result.advantage - expected) <= tolerance + 1e-5 * np.abs(expected)).all()


rewards = stnp.arrays(np.float32, (B, G), elements=st.floats(-1, 1, width=32))
masks = stnp.arrays(bool, (B, G))
configs = st.sampled_from([ucgrpo.UCGRPOConfig(std=std) for std in ucgrpo.STD_MODES])


@settings(max_examples=60, deadline=None)
@given(reward=rewards, task=rewards, looked=masks, valid=masks, forced=masks, config=configs)
def test_both_parts_sum_to_zero_and_stay_bounded(reward, task, looked, valid, forced, config):
    result, _ = jitted_advantages(
        reward, task, looked, np.arange(B) % E, warm_state(), config=config, step=99, valid=valid, forced=forced
    )
    scale = 1 + np.abs(result.advantage).max()
    for arm in (valid & looked, valid & ~looked):
        assert np.abs(np.where(arm, result.within, 0).sum(1)).max() < 1e-5 * scale
    assert np.abs(np.asarray(result.between).sum(1)).max() < 1e-5 * scale
    assert not np.asarray(result.between)[forced].any()
    assert not np.asarray(result.advantage)[~valid].any()
    assert not np.asarray(result.advantage)[valid.sum(1) < 2].any()
    np.testing.assert_array_equal(result.advantage, result.within + result.between)
    if config.std == "group":
        # n var R >= n_h d_R^2 bounds the contrast by the spread, and the spread contains the utility.
        assert np.abs(result.advantage).max() <= np.sqrt(G) + (config.gain + 1) * np.sqrt(2 * G)


@given(reward=rewards, looked=st.booleans(), config=configs)
@settings(max_examples=40, deadline=None)
def test_a_single_arm_gives_plain_grpo(reward, looked, config):
    result, state = jitted_advantages(
        reward, reward, np.full((B, G), looked), np.arange(B) % E, warm_state(), config=config, step=99
    )
    expected = grpo(reward, np.ones((B, G), bool), config.std, config.eps)
    np.testing.assert_allclose(result.advantage, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, state, warm_state())


def test_the_decision_is_learned_from_its_first_step_on():
    config = ucgrpo.UCGRPOConfig(decision_start=3, ramp=0, n_min=0)
    reward, looked = np.array([[0.2, 0.9, 0.4, 0.5]]), np.array([[1, 1, 0, 0]])

    def at(step):
        config_then = ucgrpo.at_step(config, step)
        return ucgrpo.advantages(reward, reward, looked, [0], warm_state(), config=config_then, step=step)

    for step, factor in ((1, 0), (2, 0), (3, 1), (4, 1)):
        result, state = at(step)
        assert np.sign(np.asarray(result.between)).tolist() == [[factor, factor, -factor, -factor]]
        np.testing.assert_allclose(np.sign(result.within), [[-1, 1, -1, 1]])
        jax.tree.map(np.testing.assert_array_equal, state, at(9)[1])  # the calibration counts from the first


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_nothing(n, std):
    # A utility far from 0 stands ready, and the mean of n times 0.85 is not 0.85 in float32.
    config = ucgrpo.UCGRPOConfig(beta=1.0, std=std, ramp=0, n_min=0)
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
    full, state = run(batch, warm_state(), config=ucgrpo.UCGRPOConfig())
    short = SimpleNamespace(**{k: v[:, :4] if v.ndim == 2 else v for k, v in vars(batch).items()})
    cut, cut_state = run(short, warm_state(), config=ucgrpo.UCGRPOConfig())
    batch.reward[:, 4:], batch.task[:, 4:] = np.nan, np.inf
    poisoned, poisoned_state = run(batch, warm_state(), config=ucgrpo.UCGRPOConfig())
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
    config = ucgrpo.UCGRPOConfig(std="batch")
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
    for step in range(200):
        _, state = jitted_advantages(
            task, task, looked, np.array([2, -1]), state, config=ucgrpo.UCGRPOConfig(), step=step
        )
    np.testing.assert_allclose(state.utility_E, [0, 0, 0.3, 0], atol=1e-5)
    np.testing.assert_array_equal(state.count_E[np.array([0, 1, 3])], 0)
    np.testing.assert_allclose(state.global_utility, 0.2, atol=1e-5)
    # In the steady state N = S / a, with S = 2 pairs a step.
    np.testing.assert_allclose(state.count_E[2], 2 / 0.05, rtol=1e-3)


def test_a_query_that_always_inspects_is_pulled_by_what_its_class_has_shown():
    """Where a group says little, the utility of the class decides the sign."""
    reward = np.array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4]], np.float32)
    looked = np.array([[0, 1, 1, 1, 1, 1, 1, 1]])
    config = ucgrpo.UCGRPOConfig(beta=1.0, ramp=0, n_min=0)
    for emotion, sign in ((0, 1), (1, -1)):  # the warm state has 0.4 and -0.2
        result, _ = jitted_advantages(reward, reward, looked, np.array([emotion]), warm_state(), config=config, step=0)
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
    config = ucgrpo.UCGRPOConfig(beta=1.0, ramp=0, n_min=0)
    result, state = jitted_advantages(reward, reward, looked, np.zeros(2), warm_state(), config=config, step=0)
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
            ucgrpo.advantages(*arguments, state, config=GRPO, step=0)
    with pytest.raises(ValueError, match="std must be one of"):
        ucgrpo.advantages(reward, reward, reward, [0, 1], state, config=SimpleNamespace(std="x"), step=0)
