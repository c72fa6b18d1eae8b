"""The policy loss against loops in numpy, finite differences, and expectations over a whole distribution."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actfer_jax.rl import loss as losses
from actfer_jax.rl.loss import LossConfig

B, L = 6, 9


def random_rows(seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    mask = rng.random((B, L)) < 0.6
    mask[2] = False  # a row without policy tokens
    old = -rng.gamma(1.0, 1.0, (B, L))
    arrays = {
        "log_prob": old + rng.normal(0, spread, (B, L)),
        "old": old,
        "advantage": rng.normal(0, 1, (B, L)),
        "reference": old + rng.normal(0, 1, (B, L)),
        "sampler": old + rng.normal(0, 0.3, (B, L)),
        "entropy": rng.gamma(1.0, 1.0, (B, L)),
    }
    return arrays, mask


def loss_of(arrays, mask, config, total=None):
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
    return losses.policy_loss(
        arrays["log_prob"], arrays["old"], arrays["advantage"], mask, total or losses.totals(mask), config=config,
        entropy_BxL=arrays["entropy"], reference_log_prob_BxL=arrays["reference"],
        sampler_log_prob_BxL=arrays["sampler"],
    )  # fmt: skip


def numpy_loss(arrays, mask, config, total=None):
    """The same formulas, token by token in float64."""
    tokens, sequences = (mask.sum(), mask.any(1).sum()) if total is None else total
    value, clip_low, clip_high, ratios = 0.0, 0, 0, [0.0]
    for b in range(B):
        positions = np.flatnonzero(mask[b])
        if not len(positions):
            continue
        row_ratio = math.exp(np.mean([arrays["log_prob"][b, t] - arrays["old"][b, t] for t in positions]))
        for t in positions:
            a = arrays["advantage"][b, t]
            ratio = math.exp(arrays["log_prob"][b, t] - arrays["old"][b, t]) if config.ratio == "token" else row_ratio
            objective = min(ratio * a, min(max(ratio, 1 - config.clip_low), 1 + config.clip_high) * a)
            if config.dual_clip is not None and a < 0:
                objective = max(objective, config.dual_clip * a)
            if config.importance_cap is not None:
                objective *= min(math.exp(arrays["old"][b, t] - arrays["sampler"][b, t]), config.importance_cap)
            x = arrays["reference"][b, t] - arrays["log_prob"][b, t]
            kl = math.exp(x) - x - 1 if config.kl_estimator == "k3" else x * x / 2
            token = -objective + config.kl * kl - config.entropy_bonus * arrays["entropy"][b, t]
            value += (
                token
                / {
                    "token": tokens,
                    "sequence": len(positions) * sequences,
                    "sequence_norm": sequences * config.norm_length,
                }[config.aggregation]
            )
            clip_low += ratio < 1 - config.clip_low and a < 0
            clip_high += ratio > 1 + config.clip_high and a > 0
            ratios.append(ratio)
    return value, {
        "policy/clip_low": clip_low / tokens,
        "policy/clip_high": clip_high / tokens,
        "policy/ratio_max": max(ratios),
        "policy/loss": value,
    }


CONFIGS = [
    LossConfig(),
    LossConfig(aggregation="sequence", kl=0.1),
    LossConfig(aggregation="sequence_norm", norm_length=20, kl=0.1, kl_estimator="k2"),
    LossConfig(dual_clip=1.5, entropy_bonus=0.3),
    LossConfig(importance_cap=1.1, clip_low=0.1, clip_high=0.1),
    LossConfig(ratio="sequence", aggregation="sequence", clip_low=0.05, clip_high=0.06),
    LossConfig(ratio="sequence_token", clip_low=0.05, clip_high=0.06),
]
by_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.ratio}-{c.aggregation}-{CONFIGS.index(c)}")


@by_config
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_loop(config, seed):
    arrays, mask = random_rows(seed)
    value, metrics = loss_of(arrays, mask, config)
    expected, expected_metrics = numpy_loss(arrays, mask, config)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for name, number in expected_metrics.items():
        assert metrics[name] == pytest.approx(number, rel=1e-5, abs=1e-6), name
    assert metrics["policy/entropy"] == pytest.approx(arrays["entropy"][mask].mean(), rel=1e-5)


@by_config
def test_gradient_agrees_with_finite_differences(config):
    arrays, mask = random_rows(7)
    if config.ratio == "sequence_token":
        # Its value is that of the row, and its gradient that of each token: with one advantage a row they are equal.
        arrays["advantage"][:] = arrays["advantage"][:, :1]
    gradient = jax.grad(lambda x: loss_of(arrays | {"log_prob": x}, mask, config)[0])(
        jnp.asarray(arrays["log_prob"], jnp.float32)
    )
    assert not np.asarray(gradient)[~mask].any()
    h = 1e-6
    numeric = np.zeros((B, L))
    for index in np.ndindex(B, L):
        up, down = arrays["log_prob"].copy(), arrays["log_prob"].copy()
        up[index] += h
        down[index] -= h
        numeric[index] = (
            numpy_loss(arrays | {"log_prob": up}, mask, config)[0]
            - numpy_loss(arrays | {"log_prob": down}, mask, config)[0]
        ) / (2 * h)
    if config.ratio == "sequence_token":
        np.testing.assert_allclose(gradient.sum(axis=1), numeric.sum(axis=1), atol=1e-5)
    else:
        np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_on_policy_the_gradient_is_the_policy_gradient():
    """At ratio 1 nothing is clipped: minus the advantage over the tokens of the batch, whatever the ratio's kind."""
    arrays, mask = random_rows(1, spread=0.0)
    for ratio in ("token", "sequence_token"):
        config = LossConfig(ratio=ratio)
        gradient = jax.grad(lambda x, config=config: loss_of(arrays | {"log_prob": x}, mask, config)[0])(
            jnp.asarray(arrays["log_prob"], jnp.float32)
        )
        np.testing.assert_allclose(gradient, np.where(mask, -arrays["advantage"], 0) / mask.sum(), atol=1e-6)


def test_the_clip_stops_the_gradient_on_its_side_only():
    config = LossConfig(clip_low=0.2, clip_high=0.28)
    old = jnp.zeros((1, 6))
    log_prob = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5, 1.25, 0.85]]))
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    mask = np.ones((1, 6), bool)
    gradient = jax.grad(
        lambda x: losses.policy_loss(x, old, advantage, mask, losses.totals(mask), config=config)[0]
    )(log_prob)  # fmt: skip
    np.testing.assert_allclose(gradient[0] * 6, [0, 1.5, -0.5, 0, -1.25, 0.85], atol=1e-6)


def test_dual_clip_stops_the_gradient_of_a_runaway_ratio():
    old, advantage, mask = jnp.zeros((1, 2)), -jnp.ones((1, 2)), np.ones((1, 2), bool)
    log_prob = jnp.log(jnp.array([[2.0, 5.0]]))
    for dual_clip, expected in ((None, [1.0, 2.5]), (3.0, [1.0, 0.0])):
        gradient = jax.grad(
            lambda x, dual_clip=dual_clip: losses.policy_loss(
                x, old, advantage, mask, losses.totals(mask), config=LossConfig(dual_clip=dual_clip)
            )[0]
        )(log_prob)
        np.testing.assert_allclose(gradient[0], expected, atol=1e-6)


@by_config
def test_microbatches_add_up_to_the_batch(config):
    arrays, mask = random_rows(3)
    total = losses.totals(mask)
    parts = [losses.totals(mask[i : i + 2]) for i in range(0, B, 2)]
    assert [sum(x) for x in zip(*parts, strict=True)] == list(total)

    def gradient(rows, config=config):
        piece = {name: value[rows] for name, value in arrays.items()}
        return jax.value_and_grad(
            lambda x: loss_of(piece | {"log_prob": x}, mask[rows], config, total), has_aux=True
        )(jnp.asarray(piece["log_prob"], jnp.float32))  # fmt: skip

    (whole, metrics), whole_gradient = gradient(slice(None))
    pieces = [gradient(slice(i, i + 2)) for i in range(0, B, 2)]
    assert whole == pytest.approx(sum(float(value) for (value, _), _ in pieces), rel=1e-5)
    np.testing.assert_allclose(np.concatenate([g for _, g in pieces]), whole_gradient, atol=1e-6)
    for name, value in metrics.items():
        combine = max if name == "policy/ratio_max" else sum
        assert value == pytest.approx(combine(float(m[name]) for (_, m), _ in pieces), rel=1e-5, abs=1e-7), name


def test_jit_equals_eager():
    arrays, mask = random_rows(4)
    config = LossConfig(kl=0.1, entropy_bonus=0.1, dual_clip=3.0)
    eager = loss_of(arrays, mask, config)
    jitted = jax.jit(partial(loss_of, config=config))(arrays, mask)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jitted, eager)


def test_what_is_masked_has_no_influence_and_extremes_stay_finite():
    arrays, mask = random_rows(5)
    config = LossConfig(kl=0.1, entropy_bonus=0.1, importance_cap=2.0)
    expected = loss_of(arrays, mask, config)
    poisoned = {name: np.where(mask, value, np.nan) for name, value in arrays.items()}
    jax.tree.map(np.testing.assert_array_equal, loss_of(poisoned, mask, config), expected)

    far = arrays | {"log_prob": np.full((B, L), -1e4), "old": np.full((B, L), -1.0), "reference": np.zeros((B, L))}
    for other in (far, far | {"log_prob": far["old"], "old": far["log_prob"]}):
        (value, metrics), gradient = jax.value_and_grad(
            lambda x, other=other: loss_of(other | {"log_prob": x}, mask, config), has_aux=True
        )(jnp.asarray(other["log_prob"], jnp.float32))
        assert all(np.isfinite(x).all() for x in (value, gradient, *metrics.values()))


def test_a_batch_without_policy_tokens_has_no_loss():
    arrays, mask = random_rows(6)
    for config in CONFIGS:
        value, metrics = loss_of(arrays, np.zeros_like(mask), config)
        assert value == 0
        assert all(number == 0 for number in metrics.values())


def test_gradients_of_the_kl_estimators():
    """Expected gradients over a whole softmax: k2 descends KL(policy || reference), k3 KL(reference || policy)."""
    rng = np.random.default_rng(0)
    logits, reference = (jnp.asarray(rng.normal(0, 1, 11), jnp.float32) for _ in range(2))
    log_q = jax.nn.log_softmax(reference)

    def expected_gradient(estimator):
        weights = jax.nn.softmax(logits)  # of the policy that drew the tokens: no gradient
        return jax.grad(lambda x: (weights * losses.kl_estimate(jax.nn.log_softmax(x), log_q, estimator)).sum())(logits)

    def forward(x):
        return (jax.nn.softmax(x) * (jax.nn.log_softmax(x) - log_q)).sum()

    def reverse(x):
        return (jnp.exp(log_q) * (log_q - jax.nn.log_softmax(x))).sum()

    np.testing.assert_allclose(expected_gradient("k2"), jax.grad(forward)(logits), atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k3"), jax.grad(reverse)(logits), atol=1e-6)
    value = (jax.nn.softmax(logits) * losses.kl_estimate(jax.nn.log_softmax(logits), log_q, "k3")).sum()
    assert value == pytest.approx(float(forward(logits)), rel=1e-5)


def test_metrics_name_what_was_given_only():
    arrays, mask = random_rows()
    rows = [jnp.asarray(arrays[name], jnp.float32) for name in ("log_prob", "old", "advantage")]
    _, metrics = losses.policy_loss(*rows, mask, losses.totals(mask), config=LossConfig())
    assert set(metrics) == {"policy/loss", "policy/clip_low", "policy/clip_high", "policy/ratio_max"}
    for field, missing in (("kl", "reference"), ("entropy_bonus", "entropy"), ("importance_cap", "sampler")):
        with pytest.raises(ValueError, match=f"{field}.*{missing}"):
            losses.policy_loss(*rows, mask, losses.totals(mask), config=LossConfig(**{field: 0.5}))


def test_cross_entropy_adds_up_over_microbatches():
    arrays, mask = random_rows()
    log_prob, total = jnp.asarray(arrays["log_prob"], jnp.float32), losses.totals(mask).tokens
    halves = [losses.cross_entropy(log_prob[rows], mask[rows], total) for rows in (slice(0, 3), slice(3, B))]
    assert sum(halves) == pytest.approx(-arrays["log_prob"][mask].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_low", 1.0),
        ("clip_high", 0.0),
        ("dual_clip", 1.0),
        ("aggregation", "mean"),
        ("ratio", "row"),
        ("kl", -1.0),
        ("kl_estimator", "k1"),
        ("entropy_bonus", float("nan")),
        ("importance_cap", 0.0),
    ],
)
def test_bad_constants_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} "):
        LossConfig(**{field: value})
    with pytest.raises(ValueError, match="norm_length is 0; it must be at least 1"):
        LossConfig(aggregation="sequence_norm")
