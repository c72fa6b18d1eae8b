"""Trains a policy, from traces or from rollouts.

    python -m actfer_jax.train --config=configs/ucgrpo.py:demo --workdir=runs/ucgrpo

With several processes the same command is started on every host, with a workdir that all of them see: on a shared file
system or in a bucket (`--workdir=gs://bucket/run`, which needs the package's extra `tpu`). On a TPU they
find each other; elsewhere `--coordinator`, `--processes` and `--process` say who is who.

The run goes on by itself if the workdir holds a checkpoint. Settings of speed and size may then have changed; others
need `--allow_changes=KEY` (docs/architecture.md). The workdir gets `metrics.jsonl` and TensorBoard files,
`manifest.json`, `episodes/`, `checkpoints/`, `evaluation.json`, and at the end `policy/`: a Hugging Face directory.
"""

import logging

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli


def main(argv: list[str]) -> None:
    from actfer_jax.parallel import hosts
    from actfer_jax.parallel.hosts import Interrupted, exit_as_told, termination
    from actfer_jax.training.config import read_train_config
    from actfer_jax.training.loop import train

    del argv
    given = flags.FLAGS
    hosts.connect(given.coordinator, given.processes, given.process)
    if not hosts.is_first():
        # What all have to say is said once; warnings and errors come from every host.
        for name in (__name__, "actfer_jax"):
            logging.getLogger(name).setLevel(logging.WARNING)
    config = read_train_config(given.config)
    with termination() as stop:
        hosts.watch_machine(stop)
        try:
            train(config, given.workdir, given.config, stop, given.allow_changes, cli.changed())
        except Interrupted as stopped:
            told_by = stopped.signal
        else:
            return
    exit_as_told(told_by)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config file, perhaps with a variant: file.py:demo.")
    flags.DEFINE(
        cli.PathFlag(), "workdir", None, "Directory of the run; a run that is there is continued.", required=True
    )
    flags.DEFINE_list("allow_changes", [], "Config keys that a run may go on with other values of: KEY[,KEY].")
    flags.DEFINE_string("coordinator", None, "Address and port of process 0; on a TPU it is found.")
    flags.DEFINE_integer("processes", None, "How many processes train together; on a TPU they are counted.")
    flags.DEFINE_integer("process", None, "Which of them this is, from 0; on a TPU it is found.")
    flags.mark_flag_as_required("config")
    cli.run(main, config="training.config.TrainConfig")
