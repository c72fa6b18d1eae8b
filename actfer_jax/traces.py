"""Samples traces for supervised training from a policy: it plays the data, and what it got right is kept.

    python -m actfer_jax.traces --from=runs/sft/policy --config=configs/sft.py --keep=correct --out=traces
    python -m actfer_jax.train --config=configs/sft.py --config.traces.file=traces/traces.jsonl ...

Data, limits, views, temperature and `batch.queries` are those of the config, which is one of training. Writes to the
output directory `traces.jsonl`, a line for each trace, and `report.json`. The same command goes on where it was
stopped (docs/cold_start.md).
"""

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli


def main(argv: list[str]) -> None:
    from actfer_jax.training.config import read_train_config
    from actfer_jax.training.rejection import SamplingConfig, sample_traces

    del argv
    given = flags.FLAGS
    policy = str(given["from"].value)
    if "model" in given.config:
        # The model of the training is not loaded.
        given.config.model.path, given.config.model.initialise = policy, "pretrained"
    sampling = SamplingConfig(policy, given.keep, given.tries, given.most, given.au_f1)
    report = sample_traces(read_train_config(given.config), sampling, given.out)
    kept = ", ".join(f"{label} {count}" for label, count in report["classes"].items())
    zooms = ", ".join(f"{count} with {number}" for number, count in report["zooms"].items())
    size = report["provenance"]["size"]
    print(f"{report['traces']} traces of {report['samples']} of {size} samples are in {given.out}")
    print(f"answers     {kept}\nzooms       {zooms}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A config of training.")
    flags.DEFINE_string("from", None, "The policy: Hugging Face directory, a name on the hub, gs://..., or demo.")
    flags.DEFINE_enum("keep", "correct", ["correct", "formatted"], "What is kept; formatted: answers of any kind.")
    flags.DEFINE_integer("tries", 4, "Episodes of each sample.", lower_bound=1)
    flags.DEFINE_integer("most", 1, "Traces that are kept of a sample.", lower_bound=1)
    flags.DEFINE_float("au_f1", 0.5, "Least F1 of the action units, where they are known.")
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write.", required=True)
    flags.mark_flags_as_required(["config", "from"])
    cli.run(main, config="training.config.TrainConfig")
