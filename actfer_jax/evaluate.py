"""Measures a checkpoint on a data set: as it is, and under controls that take away what zooming brings.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation

Prints a table and writes to the output directory `results.json` (every figure, with 95% bootstrap intervals),
`confusion.png`, `aus.png`, `zoom.png`, and the records of all episodes (`episodes/`, `images/`). What an earlier call
wrote there is replaced when all is done, and nothing else (docs/files.md).

Or scores the predictions of any model, in one file or several, without running it (docs/benchmarks.md):

    python -m actfer_jax.evaluate --predictions=FILE --benchmark=ferbench --protocol=reference --out=scores
"""

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.errors import UserError

# What only one of the two needs is imported where it is used: without a model, the command starts in half the time.


def config_class() -> type:
    from actfer_jax.evaluation.run import EvaluateConfig

    return EvaluateConfig


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    scores = ("predictions", "benchmark", "protocol")
    plays = ("config", "checkpoint")
    wanted, others = (scores, plays) if given.predictions else (plays, scores)
    if missing := [name for name in wanted if getattr(given, name) is None]:
        raise UserError(f"--{missing[0]} is missing; give it a value (--help lists the flags)")
    if extra := [name for name in others if getattr(given, name) is not None]:
        raise UserError(f"--{extra[0]} does not go with --{wanted[0]}; leave it out")
    if given.predictions:
        from actfer_jax.evaluation.predictions import score_predictions

        print(score_predictions(given.predictions, given.benchmark, given.protocol, given.out))
    else:
        _evaluate(given)


def _evaluate(given: flags.FlagValues) -> None:
    from actfer_jax import plugins
    from actfer_jax.config import ConfigError, read_config
    from actfer_jax.evaluation.benchmarks import Benchmark
    from actfer_jax.evaluation.run import EvaluateConfig, evaluate
    from actfer_jax.runs.provenance import heading

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
    flags.DEFINE_string("checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.")
    flags.DEFINE(cli.PathFlag(), "out", "evaluation", "Directory to write; it may exist.")
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    files = "Predictions to score; give it once for each file of one model."
    flags.DEFINE_multi(cli.PathFlag(), flags.ArgumentSerializer(), "predictions", None, files)
    flags.DEFINE_string("benchmark", None, "With --predictions: ferbench.")
    flags.DEFINE_string("protocol", None, "With --predictions: reference, reference_sfew_own or strict.")
    cli.run(main, config=config_class)
