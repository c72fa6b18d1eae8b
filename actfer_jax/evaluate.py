"""Measures a checkpoint on a data set: as it is, and under controls that take away what zooming brings.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation

Prints a table and writes to the output directory `results.json` (every figure, with 95% bootstrap intervals),
`confusion.png`, `aus.png`, `zoom.png`, and the records of all episodes (`episodes/`, `images/`). What an earlier call
wrote there is replaced when all is done, and nothing else (docs/files.md).
"""

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli, plugins
from actfer_jax.config import ConfigError, read_config
from actfer_jax.evaluation.benchmarks import Benchmark
from actfer_jax.evaluation.run import EvaluateConfig, evaluate
from actfer_jax.runs.provenance import heading


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if "algorithm" in given.config:
        raise ConfigError(
            "this is a config for `python -m actfer_jax.train`; evaluate takes one such as configs/eval/synth_faces.py"
        )
    config = read_config(given.config, EvaluateConfig, "config")
    results = evaluate(config, given.checkpoint, given.out, str(given.landmarks or ""))
    benchmark: Benchmark = plugins.load(config.benchmark.FOLDER, config.benchmark.name)
    print(heading(results["provenance"]))
    print(benchmark.report(results["results"]))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What to evaluate on.")
    flags.DEFINE_string(
        "checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.", required=True
    )
    flags.DEFINE(cli.PathFlag(), "out", "evaluation", "Directory to write; it may exist.")
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    flags.mark_flag_as_required("config")
    cli.run(main, config=EvaluateConfig)
