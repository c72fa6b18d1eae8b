"""Writes a checkpoint of a training run as a Hugging Face directory."""

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from actfer_jax.config import ConfigError
from actfer_jax.files import file_errors, reason
from actfer_jax.models import Qwen3VLConfig, load_pretrained
from actfer_jax.models.frozen import fingerprint, split_frozen
from actfer_jax.runs.checkpoints import read_checkpoint
from actfer_jax.runs.manifest import MANIFEST, manifest_config
from actfer_jax.training.config import read_train_config
from actfer_jax.training.loop import check_policy_directory, save_policy
from actfer_jax.training.state import abstract_state, check_base


def export(workdir: epath.Path, out: epath.Path, step: int | None = None, *, merged: bool = False) -> int:
    """Writes the policy of a checkpoint of `workdir` to `out`; returns its step.

    Args:
      step: which one; None for the newest that is not damaged.
      merged: write the whole model, in float32, where the run trained adapters.

    Raises:
      ConfigError, CheckpointError: there is no run, or no such checkpoint; or the base is not the one of the run.
      OutputError: `out` holds something else than a policy, is one that the run needs, or cannot be written.
    """
    try:
        raw_config = manifest_config(workdir)
    except file_errors(ValueError, KeyError) as error:
        raise ConfigError(
            f"{workdir} is not the workdir of a training run ({MANIFEST}: {reason(error)}); give the --workdir of one"
        ) from error
    config = read_train_config(raw_config)
    if merged and config.lora is None:
        raise ConfigError(f"--merged: the run in {workdir} trained no adapters; without it the whole model is written")
    check_policy_directory(config, workdir, out, merged=merged)
    try:
        model_config = Qwen3VLConfig.from_json(config.model.directory / "config.json")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"model {config.model.path!r}, which the run began with, cannot be used: {error}") from error
    graphdef, state = abstract_state(config, model_config, mesh=None)
    unread = jax.tree.map(lambda _: ocp.PLACEHOLDER, state.without_frozen)
    wanted = unread._replace(train=unread.train._replace(params=state.train.params))
    step, restored, extra = read_checkpoint(workdir / "checkpoints", wanted, step)
    # Adapters are written without their base, of which the shapes will do.
    frozen = state.train.frozen
    if jax.tree.leaves(frozen) and (merged or config.lora is None):
        loaded = nnx.state(load_pretrained(config.model.base, **config.model.options(None, config.lora)), nnx.Param)
        frozen = loaded if config.lora else split_frozen(loaded, config.model.frozen, config.model.dtype)[1]
        check_base(workdir / "checkpoints" / str(step), extra, fingerprint(frozen), config.model.path)
    save_policy(config, graphdef, nnx.merge_state(restored.train.params, frozen), out, workdir, step, merged=merged)
    return step
