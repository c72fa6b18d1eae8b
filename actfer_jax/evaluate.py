"""Measures a checkpoint on a data set: as it is, and under controls that take away what zooming brings.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation

Prints a table and writes to the output directory `results.json` (every figure, with 95% bootstrap intervals),
`confusion.png`, `aus.png`, `zoom.png`, and the records of all episodes (`episodes/`, `images/`). What an earlier call
wrote there is replaced when all is done, and nothing else (docs/files.md).
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.agent_loader import Agent
from actfer_jax.config import ConfigError, Count, FloatType, Seed, check_fields, one_of, read_config
from actfer_jax.data.sources import DataConfig, Source, open_source
from actfer_jax.episode_records import to_record
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.controls import CONTROLS, NORMAL, evaluate_policy
from actfer_jax.evaluation.metrics import Summary, summarise
from actfer_jax.evaluation.progress import ProgressLine
from actfer_jax.evaluation.tables import classes_table, controls_table
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.provenance import heading, provenance
from actfer_jax.records import RECORD_FILES, EpisodeWriter
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.engine import Rollout

RESULTS, PLOTS = "results.json", ("confusion.png", "aus.png", "zoom.png")
EVALUATION = Output(
    "an evaluation",
    re.compile(rf"results\.json|(confusion|aus|zoom)\.png|{RECORD_FILES}"),
    last=RESULTS,
    signs=(RESULTS, "zoom.png"),
    folders=("episodes", "images"),
)


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
      data: the samples.
      controls: what is played beside the policy as it is: "no_tools", "blank_crop", "low_res_crop".
      queries: pictures at a time, at least 1.
      seed: of the bootstrap resamples, and of the sampling; from 0 to 2^32 - 1.
      greedy: take the likeliest tokens; or sample, as in training, for what the policy does on average.
      dtype: of the model's weights and activations, "float32" or "bfloat16".
    """

    data: DataConfig
    controls: tuple[Annotated[str, one_of(*CONTROLS)], ...]
    queries: Count
    seed: Seed
    greedy: bool
    dtype: FloatType

    def __post_init__(self) -> None:
        check_fields(self)


def evaluate(config: EvaluateConfig, checkpoint: str, out: epath.Path, landmarks: str = "") -> dict[str, Any]:
    """Plays every episode and writes the results.

    Args:
      config: what to play.
      checkpoint, landmarks: as `load_policy` takes them.
      out: the directory to write.

    Returns:
      What `results.json` holds: where the results come from, and of the normal episodes and of each control the
      summary. Records have the reward with its default constants, whatever the policy was trained with.

    Raises:
      ConfigError, OutputError, OSError: the checkpoint does not load, or the output cannot be written.
    """
    check_directory(out, EVALUATION)
    agent, card = load_policy(checkpoint, config.dtype, landmarks)
    source = open_source(config.data)
    with staged(out, EVALUATION) as staging:
        summaries = _play(config, agent, source, EpisodeWriter(staging), card.trained_on)
        results = {
            "provenance": provenance(config.data.name, config.data.split, config.data.size, checkpoint),
            "checkpoint": checkpoint,
            "trained_on": card.trained_on,
            "config": asdict(config),
            "results": summaries,
        }
        _write_results(staging, results, summaries)
        publish(staging, out, EVALUATION)
    return results


def _play(
    config: EvaluateConfig, agent: Agent, source: Source, writer: EpisodeWriter, trained_on: tuple[str, ...]
) -> dict[str, Summary]:
    """Plays every episode, with its record."""
    shards = itertools.count()

    def record(control: str, rollouts: Iterable[Rollout]) -> None:
        episodes = (
            to_record(
                rollout,
                id=f"{control}/{rollout.query.dataset}/{rollout.query.name}",
                reward=score(rollout.episode, rollout.query.reference, RewardConfig()),
                advantage=None,
                trained_on=trained_on,
            )
            for rollout in rollouts
        )
        writer.write(next(shards), episodes)

    outcomes = evaluate_policy(
        agent.engine(queries=config.queries, group=1, greedy=config.greedy),
        agent.params,
        source,
        controls=config.controls,
        seed=config.seed,
        progress=ProgressLine("episodes"),
        record=record,
    )
    return {control: summarise(played, seed=config.seed) for control, played in outcomes.items()}


def _write_results(directory: Path, results: Mapping[str, Any], summaries: dict[str, Summary]) -> None:
    figures = (
        plots.confusion_figure(summaries[NORMAL]),
        plots.aus_figure(summaries),
        plots.zoom_figure(summaries[NORMAL]),
    )
    for name, figure in zip(PLOTS, figures, strict=True):
        write_atomically(directory / name, plots.png(figure, heading(results["provenance"])))
    write_atomically(directory / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if "algorithm" in given.config:
        raise ConfigError(
            "this is a config for `python -m actfer_jax.train`; evaluate takes one such as configs/eval/synth_faces.py"
        )
    config = read_config(given.config, EvaluateConfig, "config")
    results = evaluate(config, given.checkpoint, given.out, str(given.landmarks or ""))
    summaries = results["results"]
    print(heading(results["provenance"]))
    print(controls_table({"": summaries}))
    print()
    print(classes_table(summaries[NORMAL]))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What to evaluate on.")
    flags.DEFINE_string(
        "checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.", required=True
    )
    flags.DEFINE(cli.PathFlag(), "out", "evaluation", "Directory to write; it may exist.")
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    flags.mark_flag_as_required("config")
    cli.run(main)
