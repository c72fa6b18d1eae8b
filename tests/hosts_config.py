"""The demo's configs, cut down to a few steps of a few rows that divide over two processes with two devices each.

Every weight moves from the second step on: runs that were the same because they stand still would show nothing.
"""

from ml_collections import ConfigDict

from configs import sft, ucgrpo


def get_config(algorithm: str) -> ConfigDict:
    """For "rl", "sft", or "lora", the reinforcement learning of adapters."""
    module, variant = {"rl": (ucgrpo, "demo"), "sft": (sft, "demo"), "lora": (ucgrpo, "demo+lora")}[algorithm]
    config = module.get_config(variant)
    config.steps = 3
    config.checkpoint.every = 1
    config.logging.every = 1
    config.data.size = 14
    config.rollout.fill_rows = 2
    config.mesh.update = (1, -1, 1)
    config.mesh.rollout = (-1, 1, 1)
    del config.evaluation
    config.optimizer.warmup_steps = 1
    if algorithm != "sft":
        config.optimizer.eps = 1e-8
        # At its own temperature the demo answers nearly always rightly: no rollout is better than another.
        config.rollout.temperature = 1.4
        config.batch.queries, config.batch.rollouts = 2, 4
        config.estimator.forced_arm_rate, config.estimator.n_min, config.estimator.ramp = 0.5, 0.0, 0
        config.estimator.decision_start = 1
        config.loss.kl, config.loss.importance_cap = 0.05, 2.0
    else:
        config.batch.queries, config.batch.microbatches = 8, 2
        config.traces.readings_steps = 1
    return config
