"""Published methods as `configs/baselines` sets them up, against loops written from the papers' formulas."""

import importlib
import math
import statistics
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actfer_jax import plugins
from actfer_jax.config import ConfigError
from actfer_jax.rl.estimators import Groups
from actfer_jax.rl.loss import policy_loss, totals
from actfer_jax.training.config import TrainConfig, read_train_config
from configs import ucgrpo

BASELINES = ("dr_grpo", "dapo", "gspo", "rloo", "reinforce_plus_plus", "deepeyes", "hdpo")
CONFIGS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "baselines").glob("*.py"))
B, G, L = 4, 6, 9


def baseline(name: str, variant: str = "demo") -> TrainConfig:
    raw = importlib.import_module(f"configs.baselines.{name}").get_config(variant)
    raw.model.path = "demo"
    return read_train_config(raw)


def groups(seed: int, queries: int = B, all_valid: bool = False) -> Groups:
    random = np.random.default_rng(seed)
    shape = (queries, G)
    return Groups(
        reward_BxG=random.choice([0.0, 0.1, 0.5, 1.0], shape).astype(np.float32),
        task_reward_BxG=np.zeros(shape, np.float32),
        valid_BxG=np.ones(shape, bool) if all_valid else random.random(shape) < 0.7,
        formatted_BxG=np.ones(shape, bool),
        right_BxG=random.random(shape) < 0.6,
        decided_BxG=np.ones(shape, bool),
        inspected_BxG=random.random(shape) < 0.5,
        calls_BxG=random.integers(0, 4, shape).astype(np.int32),
        emotion_B=np.zeros(queries, np.int32),
        assigned_BxG=np.zeros(shape, np.int32),
        decision_end_BxG=np.zeros(shape, np.int32),
        look_cost=0.0,
    )


def in_units(values: list[float], unbiased: bool, eps: float) -> list[float]:
    """(x - mean) / std, as the papers of groups write it."""
    if len(values) < 2:
        return [0.0] * len(values)
    mean, std = statistics.fmean(values), (statistics.stdev if unbiased else statistics.pstdev)(values)
    return [(value - mean) / (std + eps) for value in values]


def by_the_paper(name: str, batch: Groups, options: dict[str, str]) -> np.ndarray:
    """Advantages of the valid rollouts, group by group and rollout by rollout, in float64."""
    result = np.zeros(batch.valid_BxG.shape)
    members = [np.flatnonzero(valid).tolist() for valid in batch.valid_BxG]
    reward = batch.reward_BxG.astype(np.float64)
    everywhere = []  # REINFORCE++ divides by the spread of these
    for b, group in enumerate(members):
        mine = [reward[b, g] for g in group]
        if name == "reinforce_plus_plus" and options.get("baseline") == "batch":
            everywhere += [(b, g, reward[b, g]) for g in group]
        if len(group) < 2:
            continue
        if name in ("dapo", "gspo", "deepeyes", "hdpo"):
            for g, advantage in zip(group, in_units(mine, True, 1e-6), strict=True):
                result[b, g] = advantage
        if name == "hdpo":
            right = [g for g in group if batch.right_BxG[b, g]]
            economy = in_units([1 / (batch.calls_BxG[b, g] + 1) for g in right], True, 1e-6)
            for g, advantage in zip(right, economy, strict=True):
                result[b, g] += 0.1 * advantage
        for g in group:
            others = [reward[b, other] for other in group if other != g]
            if name == "dr_grpo":
                result[b, g] = reward[b, g] - statistics.fmean(mine)
            if name == "rloo":
                result[b, g] = reward[b, g] - statistics.fmean(others)
            if name == "reinforce_plus_plus" and not options:
                everywhere.append((b, g, reward[b, g] - statistics.fmean(mine)))
    for (b, g, _), value in zip(everywhere, in_units([x for *_, x in everywhere], False, 1e-4), strict=True):
        result[b, g] = value
    return result


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in BASELINES), ("reinforce_plus_plus", {"baseline": "batch"})]
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_advantages_are_those_of_the_paper(name, options, seed):
    config = replace(baseline(name).estimator, **options)
    batch = groups(seed)
    found, _ = plugins.load("rl.estimators", config.name).advantages(batch, (), config=config, step=1)
    # Where the spread of a group is rounding, so is its advantage.
    np.testing.assert_allclose(found.advantage, by_the_paper(name, batch, options), rtol=1e-4, atol=1e-5)


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def objective_by_the_paper(
    name: str, advantage: np.ndarray, log_prob: np.ndarray, old: np.ndarray, reference: np.ndarray, mask: np.ndarray
) -> float:
    """What each paper maximises for the rollouts [G, L] of one question, token by token."""
    answers = [np.flatnonzero(row).tolist() for row in mask]
    rho = np.exp(log_prob - old)
    if name == "gspo":  # eq. (5)
        total = 0.0
        for i, tokens in enumerate(answers):
            s = math.exp(sum(log_prob[i, t] - old[i, t] for t in tokens) / len(tokens))
            total += clipped(s, advantage[i], 3e-4, 4e-4)
        return total / G
    high = 0.28 if name == "dapo" else 0.2
    terms = [[clipped(rho[i, t], advantage[i], 0.2, high) for t in tokens] for i, tokens in enumerate(answers)]
    if name == "dr_grpo":  # with the budget of tokens, 3 turns of 32, in place of each answer's length
        return sum(sum(row) / 96 for row in terms) / G
    if name == "reinforce_plus_plus":
        terms = [
            [term - 0.25 * (reference[i, t] - log_prob[i, t]) ** 2 / 2 for t, term in zip(tokens, row, strict=True)]
            for i, (tokens, row) in enumerate(zip(answers, terms, strict=True))
        ]
    return sum(map(sum, terms)) / sum(map(len, answers))


@pytest.mark.parametrize("name", ["dr_grpo", "dapo", "gspo", "reinforce_plus_plus", "deepeyes"])
@pytest.mark.parametrize("spread", [1e-3, 0.5])
def test_the_loss_is_minus_the_objective_of_the_paper(name, spread):
    config = baseline(name)
    estimator, batch = plugins.load("rl.estimators", config.estimator.name), groups(5, queries=1, all_valid=True)
    random = np.random.default_rng(1)
    mask = random.random((G, L)) < 0.6
    mask[:, 0] = True
    old = -random.gamma(1.0, 1.0, (G, L))
    log_prob, reference = old + random.normal(0, spread, (G, L)), old + random.normal(0, 1, (G, L))
    result, _ = estimator.advantages(batch, (), config=config.estimator, step=1)
    credits_NxL = estimator.token_advantages(result, batch, mask, config=config.estimator)
    loss, metrics = policy_loss(
        *(jnp.asarray(x, jnp.float32) for x in (log_prob, old)),
        credits_NxL,
        mask,
        totals(mask),
        config=config.loss,
        reference_log_prob_BxL=jnp.asarray(reference, jnp.float32) if config.loss.kl else None,
    )
    advantage = np.asarray(result.advantage, np.float64)[0]
    expected = -objective_by_the_paper(name, advantage, log_prob, old, reference, mask)
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if spread > 0.1:
        assert metrics["policy/clip_low"] + metrics["policy/clip_high"] > 0


@pytest.mark.parametrize("name", ["rloo", "hdpo"])
def test_on_policy_the_gradient_is_that_of_the_paper(name):
    """RLOO does not clip, and HDPO clips two losses: with one update a batch both are the gradient of these."""
    config = baseline(name)
    estimator, batch = plugins.load("rl.estimators", config.estimator.name), groups(6, queries=1, all_valid=True)
    random = np.random.default_rng(2)
    mask = random.random((G, L)) < 0.6
    mask[:, 0] = True
    old = jnp.asarray(-random.gamma(1.0, 1.0, (G, L)), jnp.float32)
    result, _ = estimator.advantages(batch, (), config=config.estimator, step=1)
    credits_NxL = estimator.token_advantages(result, batch, mask, config=config.estimator)
    without_kl = replace(config.loss, kl=0.0)
    gradient = jax.grad(lambda x: policy_loss(x, old, credits_NxL, mask, totals(mask), config=without_kl)[0])(old)
    advantage = by_the_paper(name, batch, {})[0]
    divisor = G * 96 if name == "rloo" else mask.sum()
    expected = [[-advantage[i] / divisor if mask[i, t] else 0.0 for t in range(L)] for i in range(G)]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_plays_the_episodes_of_ucgrpo(name):
    """At 4B's sizes too: so what `rehearse` says of one config holds for all."""
    for variant in ("", "demo"):
        raw = importlib.import_module(f"configs.baselines.{name}").get_config(variant)
        other = ucgrpo.get_config(variant)
        assert raw.batch.updates == (4 if name == "gspo" else 1)
        raw.batch.updates = 1
        for section in other:
            if section not in ("reward", "estimator", "loss"):
                assert raw[section] == other[section], section
        config = baseline(name, variant)
        if config.loss.aggregation == "sequence_norm":
            assert config.loss.norm_length == (768 if variant == "" else 96)  # what a rollout may write


def test_a_loss_with_which_it_would_be_another_method_is_refused():
    raw = importlib.import_module("configs.baselines.gspo").get_config("demo")
    raw.loss.ratio = "token"
    with pytest.raises(ConfigError, match=r"^config\.loss\.ratio is 'token'; it must be sequence or sequence_token"):
        read_train_config(raw)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_baseline_says_where_it_is_from_and_how_to_run_it(name):
    module = importlib.import_module(f"configs.baselines.{name}")
    for words in ("arXiv", f"--config=configs/baselines/{name}.py", "Published", "What differs"):
        assert words in " ".join(module.__doc__.split())
