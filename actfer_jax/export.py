"""Writes the newest checkpoint of a training run as a Hugging Face directory, while the run is stopped.

python -m actfer_jax.export --workdir=runs/ucgrpo --out=runs/ucgrpo-policy
"""

import json

from absl import flags
from etils import epath

from actfer_jax import cli
from actfer_jax.agent_loader import load_agent
from actfer_jax.checkpoints import Checkpoints
from actfer_jax.config import ConfigError, read_config
from actfer_jax.files import FILE_ERRORS
from actfer_jax.metrics import MANIFEST
from actfer_jax.optimizer import make_optimizer
from actfer_jax.settings import TrainConfig
from actfer_jax.train import initial_state, save_policy


def export(workdir: epath.Path, out: epath.Path) -> int:
    """Writes the policy of the newest sound checkpoint of `workdir` to `out`; returns its step.

    Raises:
      ConfigError: there is no run, or it has no checkpoint.
    """
    try:
        raw_config = json.loads((workdir / MANIFEST).read_text())["config"]
    except (*FILE_ERRORS, ValueError, KeyError) as error:
        raise ConfigError(f"{workdir} is not the workdir of a training run ({error})") from error
    config = read_config(raw_config, TrainConfig, "config")
    agent = load_agent(config.model, config.views, config.rollout, seed=config.seed)
    optimizer = make_optimizer(config.optimizer, config.steps * config.batch.updates)
    with Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep) as checkpoints:
        restored = checkpoints.restore_latest(initial_state(agent, optimizer))
    if restored is None:
        raise ConfigError(f"{workdir} has no checkpoint yet")
    step, state, _ = restored
    save_policy(config, agent, state.train.params, out)
    return step


def main(argv: list[str]) -> None:
    del argv
    step = export(epath.Path(flags.FLAGS.workdir), epath.Path(flags.FLAGS.out))
    print(f"the policy after step {step} is in {flags.FLAGS.out}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    flags.DEFINE_string("out", None, "Directory to write.", required=True)
    cli.run(main)
