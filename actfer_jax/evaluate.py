"""Measures a checkpoint on a data set: as it is, and under controls that take away what zooming brings.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation

Prints a table and writes to the output directory `results.json` (every figure, with 95% bootstrap intervals),
`confusion.png`, `aus.png`, `zoom.png`, and the records of all episodes (`episodes/`, `images/`). What an earlier call
wrote there is replaced when all is done, and nothing else (docs/files.md).

With `--endpoint=http://HOST/v1 --model=NAME` in place of `--checkpoint`, the model is on a server (docs/endpoint.md).
With --shard=1/4 to --shard=4/4 it plays one of four parts, on any machine, and goes on where it was killed. Then
--merge makes the results of all parts (docs/benchmarks.md).

Or scores the predictions of any model, in one file or several, without running it (docs/benchmarks.md):

    python -m actfer_jax.evaluate --predictions=FILE --benchmark=ferbench --protocol=reference --out=scores
"""

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.errors import UserError


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    scores, parts = ("predictions", "benchmark", "protocol"), ("shard", "merge")
    plays, asks = ("config", "checkpoint", *parts), ("endpoint", "model", "config")
    wanted = scores if given.predictions else asks if given.endpoint else plays
    if missing := [name for name in wanted if name not in parts and getattr(given, name) is None]:
        raise UserError(f"--{missing[0]} is missing; give it a value (--help lists the flags)")
    if extra := [name for name in (*scores, *asks, *plays) if name not in wanted and getattr(given, name)]:
        raise UserError(f"--{extra[0]} does not go with --{wanted[0]}; leave it out")
    if given.predictions:
        from actfer_jax.evaluation.predictions import score_predictions

        print(score_predictions(given.predictions, given.benchmark, given.protocol, given.out))
    else:
        print(_evaluate(given))


def _evaluate(given: flags.FlagValues) -> str:
    from actfer_jax.evaluation import run, served, shards

    config = run.read_evaluate_config(given.config)
    if given.shard and given.merge:
        raise UserError("--merge does not go with --shard; give it when all shards are done")
    written = given.out, str(given.landmarks or "")
    if given.endpoint:
        return run.in_words(served.evaluate_endpoint(config, given.endpoint, given.model, *written))
    arguments = config, given.checkpoint, *written
    if given.shard:
        return shards.evaluate_shard(*arguments, shards.Shard.read(given.shard))
    return run.in_words(shards.merge(*arguments) if given.merge else run.evaluate(*arguments))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What to evaluate on.")
    flags.DEFINE_string("checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.")
    flags.DEFINE_string("endpoint", None, "The base of a chat-completions server, such as http://localhost:8000/v1.")
    flags.DEFINE_string("model", None, "With --endpoint: the model's name there.")
    flags.DEFINE(cli.PathFlag(), "out", "evaluation", "Directory to write; it may exist.")
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    flags.DEFINE_string("shard", None, "I/N: play the I-th of N parts, from 1, and keep it below --out.")
    flags.DEFINE_bool("merge", False, "Make the results of the N parts below --out, which are all done.")
    files = "Predictions to score; give it once for each file of one model."
    flags.DEFINE_multi(cli.PathFlag(), flags.ArgumentSerializer(), "predictions", None, files)
    flags.DEFINE_string("benchmark", None, "With --predictions: ferbench.")
    flags.DEFINE_string("protocol", None, "With --predictions: reference, reference_sfew_own or strict.")
    cli.run(main, config="evaluation.run.EvaluateConfig")
