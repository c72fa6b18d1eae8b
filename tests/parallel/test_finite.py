"""What stops a run whose numbers are no longer finite, and what does not."""

import math
from typing import Any

import jax.numpy as jnp
import pytest

from actfer_jax.parallel.finite import STATE_FINITE, NotFiniteError, Watch, not_finite

STATE = {"params": jnp.ones(3), "opt_state": [jnp.zeros(2), jnp.int32(7)]}


def metrics(norm: float = 1.0, **others: Any) -> dict[str, Any]:
    return {"sft/loss": 0.5, "sft/grad_norm": norm, STATE_FINITE: jnp.bool(True)} | others


def test_arrays_are_named_by_their_paths() -> None:
    state = {"params": {"w": jnp.array([1.0, jnp.inf]), "b": jnp.array([2.0])}, "moments": [jnp.array(jnp.nan)]}
    assert not_finite(state) == ["moments/0", "params/w"]
    assert not_finite(STATE) == []


def test_a_state_that_is_not_finite_stops_the_run_with_step_arrays_and_metrics() -> None:
    watch = Watch(None)
    fine = metrics()
    watch.check(1, STATE, fine)
    assert fine.keys() == {"sft/loss", "sft/grad_norm"}
    bad = STATE | {"params": jnp.array([1.0, math.nan, 2.0])}
    expected = r"^step 2: .* 1 of 3 arrays .*\(params\), where sft/loss is 0.5, sft/grad_norm is 2;"
    with pytest.raises(NotFiniteError, match=expected):
        watch.check(2, bad, metrics(2.0, **{STATE_FINITE: jnp.bool(False)}))


def test_skipped_updates_are_said_and_stop_the_run_when_nothing_else_comes(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(None)
    for step in range(1, 20):
        watch.check(step, STATE, metrics(math.inf))
    assert "step 19: an update was skipped: sft/grad_norm is inf" in caplog.text
    watch.check(20, STATE, metrics())
    for step in range(21, 40):
        watch.check(step, STATE, metrics(math.nan))
    with pytest.raises(NotFiniteError, match=r"^step 40: each of the last 20 steps skipped .*sft/grad_norm is nan"):
        watch.check(40, STATE, metrics(math.nan))


def test_rollouts_without_probabilities_stop_the_run() -> None:
    bad = metrics(math.nan, **{"mismatch/logp_abs_diff": math.nan})
    with pytest.raises(NotFiniteError, match=r"^step 3: .*mismatch/logp_abs_diff is nan"):
        Watch(None).check(3, STATE, bad)
