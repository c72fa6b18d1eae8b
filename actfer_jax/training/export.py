"""Writes a checkpoint of a training run as a Hugging Face directory."""

import jax
import orbax.checkpoint as ocp
from etils import epath

from actfer_jax.config import ConfigError
from actfer_jax.files import file_errors, reason
from actfer_jax.models import Qwen3VLConfig
from actfer_jax.runs.checkpoints import read_checkpoint
from actfer_jax.runs.manifest import MANIFEST, manifest_config
from actfer_jax.training.config import read_train_config
from actfer_jax.training.loop import check_policy_directory, save_policy
from actfer_jax.training.state import abstract_state


def export(workdir: epath.Path, out: epath.Path, step: int | None = None) -> int:
    """Writes the policy of a checkpoint of `workdir` to `out`; returns its step.

    Args:
      step: which one; None for the newest that is not damaged.

    Raises:
      ConfigError, CheckpointError: there is no run, or no such checkpoint.
      OutputError: `out` holds something else than a policy, is one that the run needs, or cannot be written.
    """
    try:
        raw_config = manifest_config(workdir)
    except file_errors(ValueError, KeyError) as error:
        raise ConfigError(
            f"{workdir} is not the workdir of a training run ({MANIFEST}: {reason(error)}); give the --workdir of one"
        ) from error
    config = read_train_config(raw_config)
    check_policy_directory(config, workdir, out)
    try:
        model_config = Qwen3VLConfig.from_json(config.model.directory / "config.json")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"model {config.model.path!r}, which the run began with, cannot be used: {error}") from error
    graphdef, state = abstract_state(config, model_config, mesh=None)
    unread = jax.tree.map(lambda _: ocp.PLACEHOLDER, state)
    wanted = unread._replace(train=unread.train._replace(params=state.train.params, frozen=state.train.frozen))
    step, restored, _ = read_checkpoint(workdir / "checkpoints", wanted, step)
    save_policy(config, graphdef, restored.train.weights, out)
    return step
