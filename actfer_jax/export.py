"""Writes a checkpoint of a training run as a Hugging Face directory, whether the run goes on or not.

    python -m actfer_jax.export --workdir=runs/ucgrpo --out=runs/ucgrpo-policy [--step=100]

Needs no accelerator, and of the memory twice what the parameters take. The run is not changed. The directory of `--out`
is new, empty, or one of a policy that this package wrote (docs/files.md).
"""

import jax
import orbax.checkpoint as ocp
from absl import flags
from etils import epath

from actfer_jax import cli
from actfer_jax.checkpoints import read_checkpoint
from actfer_jax.config import ConfigError
from actfer_jax.files import FILE_ERRORS, reason
from actfer_jax.metrics import MANIFEST, manifest_config
from actfer_jax.models import Qwen3VLConfig
from actfer_jax.run_state import abstract_state
from actfer_jax.settings import read_train_config
from actfer_jax.train import check_policy_directory, save_policy


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
    except (*FILE_ERRORS, ValueError, KeyError) as error:
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
    wanted = unread._replace(train=unread.train._replace(params=state.train.params))
    step, restored, _ = read_checkpoint(workdir / "checkpoints", wanted, step)
    save_policy(config, graphdef, restored.train.params, out)
    return step


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    # The memory of the host holds what one accelerator may not, and these are perhaps in use.
    jax.config.update("jax_platforms", "cpu")
    step = export(given.workdir, given.out, given.step)
    print(f"the policy after step {step} is in {given.out}")


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "workdir", None, "Directory of the run.", required=True)
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; the newest that is not damaged by default.")
    cli.run(main)
