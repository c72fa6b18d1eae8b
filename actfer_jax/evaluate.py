"""Measures a checkpoint on a data set: as it is, and under controls that take away what zooming brings.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py --checkpoint=demo --out=evaluation

Prints a table and writes to the output directory `results.json` (every figure, with 95% bootstrap intervals),
`confusion.png`, `aus.png`, `zoom.png`, and the records of all episodes (`episodes/`, `images/`).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from absl import flags
from etils import epath
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.sources import DataConfig, open_source
from actfer_jax.episode_records import to_record
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.command import MANIFEST, RESULTS, check_output, load_policy, open_output
from actfer_jax.evaluation.controls import NORMAL, check_controls, evaluate_policy
from actfer_jax.evaluation.metrics import Summary, summarise
from actfer_jax.evaluation.progress import ProgressLine
from actfer_jax.evaluation.tables import classes_table, controls_table
from actfer_jax.files import write_atomically
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.engine import Rollout

PLOTS = ("confusion.png", "aus.png", "zoom.png")


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
      data: the samples.
      controls: what is played beside the policy as it is: "no_tools", "blank_crop", "low_res_crop".
      queries: pictures at a time.
      seed: of the bootstrap resamples, and of the sampling.
      greedy: take the likeliest tokens; or sample, as in training, for what the policy does on average.
      dtype: of the model's weights and activations, "float32" or "bfloat16".
    """

    data: DataConfig
    controls: tuple[str, ...]
    queries: int
    seed: int
    greedy: bool
    dtype: str

    def __post_init__(self) -> None:
        check_controls(self.controls)
        if self.queries < 1:
            raise ValueError(f"queries is {self.queries}; it must be at least 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float32 or bfloat16")


def evaluate(config: EvaluateConfig, checkpoint: str, out: epath.Path, landmarks: str = "") -> dict[str, Summary]:
    """Plays every episode and writes the results.

    Args:
      config: what to play.
      checkpoint, landmarks: as `load_policy` takes them.
      out: the directory to write.

    Returns:
      The summary of the normal episodes and of each control. Records have the reward with its default constants,
      whatever the policy was trained with.

    Raises:
      ConfigError, OSError: the checkpoint does not load, or the output cannot be written.
    """
    check_output(out, without=[MANIFEST])
    agent, card = load_policy(checkpoint, config.dtype, landmarks)
    source = open_source(config.data)
    # What is there must never be half of one evaluation and half of another.
    for name in (RESULTS, *PLOTS):
        (out / name).unlink(missing_ok=True)
    writer = open_output(out)
    shards = 0

    def record(control: str, rollouts: Iterable[Rollout]) -> None:
        nonlocal shards
        episodes = (
            to_record(
                rollout,
                id=f"{control}/{rollout.query.dataset}/{rollout.query.name}",
                reward=score(rollout.episode, rollout.query.reference, RewardConfig()),
                advantage=None,
                trained_on=card.trained_on,
            )
            for rollout in rollouts
        )
        writer.write(shards, episodes)
        shards += 1

    outcomes = evaluate_policy(
        agent.engine(queries=config.queries, group=1, greedy=config.greedy),
        agent.params,
        source,
        controls=config.controls,
        seed=config.seed,
        progress=ProgressLine("episodes"),
        record=record,
    )
    summaries = {control: summarise(played, seed=config.seed) for control, played in outcomes.items()}
    results = {"checkpoint": checkpoint, "trained_on": card.trained_on, "config": asdict(config), "results": summaries}
    figures = (
        plots.confusion_figure(summaries[NORMAL]),
        plots.aus_figure(summaries),
        plots.zoom_figure(summaries[NORMAL]),
    )
    for name, figure in zip(PLOTS, figures, strict=True):
        write_atomically(out / name, plots.png(figure))
    write_atomically(out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return summaries


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if "algorithm" in given.config:
        raise ConfigError(
            "this is a config for `python -m actfer_jax.train`; evaluate takes one such as configs/eval/synth_faces.py"
        )
    config = read_config(given.config, EvaluateConfig, "config")
    summaries = evaluate(config, given.checkpoint, given.out, str(given.landmarks or ""))
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
