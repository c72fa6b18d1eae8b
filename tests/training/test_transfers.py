"""What a step sends to the devices: batches, explicitly and once. An implicit transfer is a stall that nobody wrote."""

import dataclasses
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import pytest

from actfer_jax.data.sources import open_source
from actfer_jax.parallel.hosts import Termination
from actfer_jax.rl.estimators import ucgrpo as estimator
from actfer_jax.rollout import engine
from actfer_jax.training.config import read_train_config
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.rl_steps import rl_steps
from actfer_jax.training.sft_steps import sft_steps
from actfer_jax.training.state import initial_state
from configs import sft, ucgrpo


def permitted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with jax.transfer_guard_host_to_device("allow"):
            return function(*args, **options)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft", "rl"])
def test_a_step_sends_nothing_implicitly(agent, algorithm, tmp_path, monkeypatch):
    raw = {"sft": sft, "rl": ucgrpo}[algorithm].get_config("demo")
    raw.data.cache_directory, raw.data.size, raw.evaluation = str(tmp_path), 4, None
    raw.batch.queries, raw.batch.rollouts = (2, 1) if algorithm == "sft" else (1, 4)
    if algorithm == "sft":
        raw.traces.readings_steps = 0
    else:
        raw.loss.kl = 0.01
    config = read_train_config(raw)
    optimizer = make_optimizer(config.optimizer, config.steps)
    agent = dataclasses.replace(agent, rollout=config.rollout, params=jax.tree.map(lambda x: x.copy(), agent.params))
    make_steps = sft_steps if algorithm == "sft" else rl_steps
    # A seed, and arrays of one number a rollout.
    monkeypatch.setattr(engine, "row_keys", permitted(engine.row_keys))
    for name in ("advantages", "token_advantages", "diagnostics"):
        monkeypatch.setattr(estimator, name, permitted(getattr(estimator, name)))
    step = make_steps(config, agent, open_source(config.data), optimizer, 0, Termination())
    output = step(initial_state(agent.params, optimizer, config), 1)
    before = jax.config.jax_transfer_guard_host_to_device
    # In all threads: batches are made in some.
    jax.config.update("jax_transfer_guard_host_to_device", "disallow")
    try:
        output = step(output.state, 2)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x)(1.0)
    finally:
        jax.config.update("jax_transfer_guard_host_to_device", before or "allow")
