"""The optimizer against AdamW written out in numpy, and updates that must not happen."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import numpy as np
import pytest
from flax import nnx

from actfer_jax.models import load_pretrained
from actfer_jax.models.layers import Execution, linear
from actfer_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from actfer_jax.training.update import TrainState, apply_gradients, init_train_state

PEAK, WARMUP, UPDATES, FINAL = 3e-3, 4, 24, 0.2


def rate(schedule: str, done: int) -> float:
    """The learning rate after so many updates, in closed form."""
    if done < WARMUP:
        return PEAK * done / WARMUP
    passed = min((done - WARMUP) / (UPDATES - WARMUP), 1.0)
    share = {"constant": 1.0, "linear": 1 - passed, "cosine": (1 + np.cos(np.pi * passed)) / 2}[schedule]
    return PEAK * (FINAL + (1 - FINAL) * share)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_have_their_closed_forms(schedule: str) -> None:
    config = OptimizerConfig(learning_rate=PEAK, schedule=schedule, warmup_steps=WARMUP, final_fraction=FINAL)
    found = [float(learning_rate(config, UPDATES)(done)) for done in range(UPDATES + 3)]
    np.testing.assert_allclose(found, [rate(schedule, done) for done in range(UPDATES + 3)], rtol=1e-5)


def test_without_a_warm_up_the_first_update_has_the_peak() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert learning_rate(OptimizerConfig(learning_rate=PEAK, schedule=schedule), UPDATES)(0) == pytest.approx(PEAK)


@pytest.fixture(scope="module")
def params() -> nnx.State:
    """One matrix [5, 3] and one vector [3]."""
    layer = linear(5, 3, ("embed", "mlp"), bias=True, execution=Execution(), rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.array([0.5, -1.0, 2.0])
    return nnx.state(layer, nnx.Param)


def gradients_like(params: nnx.State, scales: Iterable[float]) -> list[nnx.State]:
    random = np.random.default_rng(0)
    return [
        jax.tree.map(lambda x, scale=scale: jnp.asarray(scale * random.normal(size=x.shape), x.dtype), params)
        for scale in scales
    ]


def test_updates_are_those_of_adamw_with_clipped_gradients(params: nnx.State) -> None:
    config = OptimizerConfig(PEAK, "cosine", WARMUP, FINAL, weight_decay=0.1, max_grad_norm=1.5, b1=0.8, b2=0.95)
    gradients = gradients_like(params, [0.1, 40.0, 0.02, 3.0, 1e-3, 1.0])  # norms on both sides of the limit
    optimizer = make_optimizer(config, UPDATES)
    state = init_train_state(params, optimizer)
    expected = {name: np.asarray(params[name][...], np.float64) for name in ("kernel", "bias")}
    first, second = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for done, gradient in enumerate(gradients):
        state, norm = apply_gradients(state, gradient, optimizer)
        arrays = {name: np.asarray(gradient[name][...], np.float64) for name in expected}
        size = np.sqrt(sum((array**2).sum() for array in arrays.values()))
        assert float(norm) == pytest.approx(size, rel=1e-5)
        for name, array in arrays.items():
            clipped = array * min(1.0, config.max_grad_norm / size)
            first[name] = 0.8 * first[name] + 0.2 * clipped
            second[name] = 0.95 * second[name] + 0.05 * clipped**2
            mean, square = first[name] / (1 - 0.8 ** (done + 1)), second[name] / (1 - 0.95 ** (done + 1))
            decay = 0.1 * expected[name] if name == "kernel" else 0.0
            expected[name] = expected[name] - rate("cosine", done) * (mean / (np.sqrt(square) + 1e-8) + decay)
            np.testing.assert_allclose(state.params[name][...], expected[name], rtol=1e-4, atol=1e-6)
    assert int(state.skipped) == 0


def test_weight_decay_shrinks_matrices_and_leaves_vectors(tmp_path) -> None:
    """Also where the vectors of many layers are one array."""
    params = nnx.state(load_pretrained(fixtures.write_checkpoint(tmp_path / "model")), nnx.Param)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), updates=1)
    zero = jax.tree.map(jnp.zeros_like, params)
    state, _ = jax.jit(lambda state: apply_gradients(state, zero, optimizer))(init_train_state(params, optimizer))
    after = dict(nnx.to_flat_state(state.params))
    assert {path[-1] for path in after} == {"kernel", "bias", "scale", "embed_tokens", "pos_embed"}
    for path, before in nnx.to_flat_state(params):
        kept = 1.0 if path[-1] in ("bias", "scale") else 1 - 0.1 * 0.5
        np.testing.assert_allclose(after[path][...], kept * before[...], rtol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=["nan", "inf", "norm overflows"])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(params: nnx.State, bad: float) -> None:
    optimizer = make_optimizer(OptimizerConfig(PEAK, "linear", WARMUP), UPDATES)
    update = jax.jit(lambda state, gradients: apply_gradients(state, gradients, optimizer))

    def train(gradients: list[nnx.State]) -> tuple[TrainState, list[bool]]:
        state, finite = init_train_state(params, optimizer), []
        for gradient in gradients:
            state, norm = update(state, gradient)
            finite.append(bool(jnp.isfinite(norm)))
        return state, finite

    first, second, spoilt = gradients_like(params, [1.0, 0.3, 0.5])
    spoilt["bias"][...] = spoilt["bias"][...].at[1].set(bad)
    expected, _ = train([first, second])
    found, finite = train([first, spoilt, second, spoilt])
    assert finite == [True, False, True, False]
    assert (int(found.skipped), int(expected.skipped)) == (2, 0)
    for one, other in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(expected[:2]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_parameters_stay_and_the_weights_are_all_of_them(params: nnx.State) -> None:
    optimizer = make_optimizer(OptimizerConfig(PEAK, "linear", WARMUP), UPDATES)
    trained, frozen = nnx.State({"kernel": params["kernel"]}), nnx.State({"bias": params["bias"]})
    state = init_train_state(trained, optimizer, frozen=frozen)
    assert len(jax.tree.leaves(state.opt_state)) < len(jax.tree.leaves(optimizer.init(params)))
    for gradient in gradients_like(trained, [1.0, 0.5]):
        state, _ = apply_gradients(state, gradient, optimizer)
    weights = state.weights
    assert set(weights) == {"kernel", "bias"}
    assert np.abs(weights["kernel"][...] - params["kernel"][...]).max() > 0
    np.testing.assert_array_equal(weights["bias"][...], params["bias"][...])
