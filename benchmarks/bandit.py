"""Does UC-GRPO learn when to look? A contextual bandit with the advantages of the package, in a minute or two.

    python benchmarks/bandit.py          # the tables in docs/algorithm.md
    python benchmarks/bandit.py --fast

Each sample has one of 7 classes and a utility of looking: that of its class plus a part of its own. The policy sees
both, sets the log-odds of looking by a linear function for each class, and is trained by the policy gradient on B
groups of G rollouts a step. It starts by looking at every other sample, or at one in twenty. A rollout succeeds or
fails by chance, so that a group says little about its sample. Regret is what the policy loses against looking exactly
where it pays, on average over a step's samples and summed over steps. Every method runs at three learning rates: an
eighth of GRPO's best (a rate that suits the rest of a model, so that the decision is learnt slowly), GRPO's best, and
its own best. Rates are chosen on other seeds than those reported.

The last table is about failures, in a world where looking brings nothing: what the calibration takes for the contrast
of a class, if 30% of the rollouts fail before they decide, or 30% of the answers cannot be read, whether or not the
rollout has looked. It should be 0.
"""

import argparse
import time
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from actfer_jax.rl import ucgrpo

CLASSES, GROUPS, ROLLOUTS, STEPS = 7, 16, 8, 300
FAILURE_STEPS, AVERAGED_STEPS, FAILURE_RATE = 120, 50, 0.3
PRICE = 0.03
REWARD = 0.85  # of a success
CLASS_SPREAD = 0.2  # standard deviation of the utility between classes, in units of reward
FORCED_ROLLOUTS = 4  # two of each arm, in the groups that have any
LEARNING_RATES = (8.0, 16.0, 32.0, 64.0, 128.0)


class Method(NamedTuple):
    """The settings of UC-GRPO that differ between methods; the others have their defaults."""

    beta: float
    gain: float
    forced_arm_rate: float = 0.0


METHODS: dict[str, Method] = {
    "GRPO": Method(beta=0.0, gain=1.0),
    "GRPO with gain": Method(beta=0.0, gain=2.0),
    "GRPO with calibration": Method(beta=0.5, gain=1.0),
    "UC-GRPO (gain, calibration)": Method(beta=0.5, gain=2.0),
    "UC-GRPO with forced arms": Method(beta=0.5, gain=2.0, forced_arm_rate=0.25),
}


class World(NamedTuple):
    """What a policy meets: the spread of utility within a class and between classes, how often it looks at first, and
    how often a rollout fails before it decides, or answers so that nobody can read it."""

    own_spread: float
    first_look_rate: float
    class_spread: float = CLASS_SPREAD
    mean_utility: float = PRICE
    undecided_rate: float = 0.0
    unreadable_rate: float = 0.0


def step(
    carry: tuple[jax.Array, ucgrpo.Calibration],
    inputs: tuple[jax.Array, jax.Array],
    *,
    class_utility_C: jax.Array,
    world: World,
    learning_rate: float,
    method: Method,
    told: jax.Array,
) -> tuple[tuple[jax.Array, ucgrpo.Calibration], tuple[jax.Array, jax.Array]]:
    """One training step; returns the mean regret of its samples before the update, and the calibration after it.

    Args:
      told: whether the estimator hears which rollouts decided, and which answers could be read.
    """
    (weights_Cx2, state), (key, number) = carry, inputs
    keys = jax.random.split(key, 7)
    emotion = jax.random.randint(keys[0], (GROUPS,), 0, CLASSES)
    own = jax.random.normal(keys[1], (GROUPS,))
    utility = jnp.clip(class_utility_C[emotion] + world.own_spread * own, -REWARD / 2, REWARD / 2)
    features_Bx2 = jnp.stack([jnp.ones(GROUPS), own], axis=1)
    look_probability = jax.nn.sigmoid((weights_Cx2[emotion] * features_Bx2).sum(axis=1))
    regret = jnp.maximum(utility - PRICE, 0) - look_probability * (utility - PRICE)

    slot = jnp.arange(ROLLOUTS)[None]
    forced_group = jax.random.uniform(keys[2], (GROUPS, 1)) < method.forced_arm_rate
    forced = forced_group & (slot < FORCED_ROLLOUTS)
    chosen = jax.random.uniform(keys[3], (GROUPS, ROLLOUTS)) < look_probability[:, None]
    decided = jax.random.uniform(keys[5], (GROUPS, ROLLOUTS)) >= world.undecided_rate
    readable = decided & (jax.random.uniform(keys[6], (GROUPS, ROLLOUTS)) >= world.unreadable_rate)
    inspected = decided & jnp.where(forced, slot % 2 == 0, chosen)
    success_probability = 0.5 + jnp.where(inspected, 0.5, -0.5) * (utility / REWARD)[:, None]
    task = REWARD * (readable & (jax.random.uniform(keys[4], (GROUPS, ROLLOUTS)) < success_probability))
    # A namespace, since the methods are traced: all of them share one compiled program.
    config = SimpleNamespace(**vars(ucgrpo.UCGRPOConfig(cost=PRICE)) | method._asdict())
    result, state = ucgrpo.advantages(
        task - PRICE * inspected,
        task,
        inspected,
        emotion,
        state,
        config=config,
        step=number,
        forced=forced,
        decided=decided | ~told,
        formatted=readable | ~told,
    )

    # The log-odds of a choice that an instruction made, or nobody, have no gradient.
    pull = jnp.where(forced | ~decided, 0, result.advantage * (inspected - look_probability[:, None])).mean(axis=1)
    gradient_Cx2 = jnp.zeros((CLASSES, 2)).at[emotion].add(pull[:, None] * features_Bx2 / GROUPS)
    return (weights_Cx2 + learning_rate * gradient_Cx2, state), (regret.mean(), state.utility_E)


@partial(jax.jit, static_argnames="steps")
@partial(jax.vmap, in_axes=(0, None, None, None, None, None))
def _run(
    seed: jax.Array, learning_rate: float, world: World, method: Method, steps: int, told: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Regret and calibration of every step of a run for each seed."""
    world_key, step_key = jax.random.split(jax.random.key(seed))
    body = partial(
        step,
        class_utility_C=world.mean_utility + world.class_spread * jax.random.normal(world_key, (CLASSES,)),
        world=world,
        learning_rate=learning_rate,
        method=method,
        told=told,
    )
    weights_Cx2 = jnp.zeros((CLASSES, 2)).at[:, 0].set(jax.scipy.special.logit(world.first_look_rate))
    start = (weights_Cx2, ucgrpo.init_calibration(CLASSES))
    return jax.lax.scan(body, start, (jax.random.split(step_key, steps), 1 + jnp.arange(steps)))[1]


def cumulative_regret(seeds: np.ndarray, learning_rate: float, world: World, method: Method) -> np.ndarray:
    """Regret summed over the steps of one run for each seed, [runs]."""
    return np.asarray(_run(seeds, learning_rate, world, method, STEPS, jnp.array(True))[0].sum(axis=1), np.float64)


def contrast_from_failures(
    seeds: np.ndarray, *, undecided_rate: float = 0.0, unreadable_rate: float = 0.0, told: bool = True
) -> np.ndarray:
    """What the calibration takes for the contrast of each class where looking brings nothing, the average over the last
    steps of a run, [runs, classes]."""
    world = World(0.0, 0.5, 0.0, 0.0, undecided_rate, unreadable_rate)
    method = METHODS["UC-GRPO (gain, calibration)"]
    _, calibration = _run(seeds, LEARNING_RATES[0], world, method, FAILURE_STEPS, jnp.array(told))
    return np.asarray(calibration[:, -AVERAGED_STEPS:].mean(axis=1), np.float64)


def best_rate(seeds: np.ndarray, world: World, method: Method) -> float:
    return min(LEARNING_RATES, key=lambda rate: cumulative_regret(seeds, rate, world, method).mean())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95% confidence interval."""
    return values.mean(), 1.96 * values.std(ddof=1) / len(values) ** 0.5


def print_table(world: World, runs: int) -> None:
    """Prints one world: regret of each method at three learning rates, and its change against GRPO there."""
    seeds, other_seeds = np.arange(runs), 10_000 + np.arange(runs)
    best = {name: best_rate(other_seeds, world, method) for name, method in METHODS.items()}
    slow, tuned = best["GRPO"] / 8, best["GRPO"]
    grpo = {rate: cumulative_regret(seeds, rate, world, METHODS["GRPO"]) for rate in (slow, tuned)}
    print(f"\nfirst look rate {world.first_look_rate:g}, spread of utility within a class {world.own_spread:g}\n")
    print(f"| method | at rate {slow:g} | change | at GRPO's best, {tuned:g} | change | at its own best | change |")
    print("|---|---|---|---|---|---|---|")
    for name, method in METHODS.items():
        cells = [name]
        for rate, baseline in ((slow, grpo[slow]), (tuned, grpo[tuned]), (best[name], grpo[tuned])):
            regret = cumulative_regret(seeds, rate, world, method)
            (mean, half), (change, change_half) = interval(regret), interval(regret - baseline)
            cells.append(f"{mean:.2f} ± {half:.2f}")
            cells.append(f"{100 * change / baseline.mean():+.0f}% ± {100 * change_half / baseline.mean():.0f}")
        cells[5] += f" ({best[name]:g})"
        print("| " + " | ".join(cells) + " |", flush=True)


def print_failures(runs: int) -> None:
    """Prints the contrasts that failures leave, with and without what the estimator is told of them."""
    print(f"\ncontrast of a class where looking brings nothing, steps {FAILURE_STEPS - AVERAGED_STEPS + 1} to", end=" ")
    print(f"{FAILURE_STEPS}, lowest to highest of the classes' means over {runs} seeds\n")
    print("| failures | all rollouts are in an arm | those that decided, by answers that can be read |")
    print("|---|---|---|")
    for name, rates in {
        f"{FAILURE_RATE:.0%} of the rollouts, before they decide": {"undecided_rate": FAILURE_RATE},
        f"{FAILURE_RATE:.0%} of the answers cannot be read": {"unreadable_rate": FAILURE_RATE},
        "both": {"undecided_rate": FAILURE_RATE, "unreadable_rate": FAILURE_RATE},
    }.items():
        means = [contrast_from_failures(np.arange(runs), told=told, **rates).mean(axis=0) for told in (False, True)]
        print(
            f"| {name} | " + " | ".join(f"{mean.min():+.3f} to {mean.max():+.3f}" for mean in means) + " |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="fewer seeds and worlds")
    fast = parser.parse_args().fast
    runs = 48 if fast else 192
    print(f"cumulative regret over {STEPS} steps of {GROUPS} groups of {ROLLOUTS} rollouts, {runs} seeds;")
    print(f"spread of utility between classes {CLASS_SPREAD:g}, zoom price {PRICE:g}")
    start = time.perf_counter()
    for first_look_rate in (0.5, 0.05):
        for own_spread in (0.1,) if fast else (0.05, 0.2):
            print_table(World(own_spread, first_look_rate), runs)
    print("\n± is a 95% confidence interval over seeds; changes against GRPO are paired by seed.")
    print_failures(runs)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
