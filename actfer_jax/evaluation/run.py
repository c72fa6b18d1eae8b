"""Evaluates a checkpoint on a data set, and writes results, plots and records."""

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from etils import epath

from actfer_jax import plugins
from actfer_jax.config import Count, FloatType, Seed, check_fields, one_of
from actfer_jax.data.sources import DataConfig, Source, emotion_labels, open_face_store, open_source
from actfer_jax.episodes.background import BackgroundWriter
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import RECORD_FILES, EpisodeWriter
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import Benchmark, BenchmarkConfig
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.controls import CONTROLS, evaluate_policy
from actfer_jax.evaluation.metrics import Outcome
from actfer_jax.faces.detector import FaceConfig
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.progress import ProgressLine
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.engine import Rollout
from actfer_jax.runs.provenance import heading, provenance

RESULTS = "results.json"


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
      data: the samples.
      controls: controls to play in addition to the normal episodes: "no_tools", "blank_crop", "low_res_crop".
      queries: samples at a time, at least 1.
      seed: of the bootstrap resamples and of the sampling, from 0 to 2^32 - 1.
      greedy: whether to take the likeliest tokens; else to sample as in training, for the policy's average behaviour.
      dtype: of the model's weights and activations, "float32" or "bfloat16".
      benchmark: the choice of what is measured.
      faces: how faces are searched.
    """

    data: DataConfig
    controls: tuple[Annotated[str, one_of(*CONTROLS)], ...]
    queries: Count
    seed: Seed
    greedy: bool
    dtype: FloatType
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)

    def __post_init__(self) -> None:
        check_fields(self)


def evaluate(config: EvaluateConfig, checkpoint: str, out: epath.Path, landmarks: str = "") -> dict[str, Any]:
    """Plays every episode and writes the results.

    Args:
      config: what to play.
      checkpoint, landmarks: as for `load_policy`.
      out: the directory to write.

    Returns:
      The content of `results.json`: the provenance, and the summaries of the normal episodes and of each control.
      Records have the reward with its default constants, not those of the policy's training.

    Raises:
      ConfigError, OutputError, OSError: the checkpoint does not load, or the output cannot be written.
    """
    benchmark: Benchmark = plugins.load(config.benchmark.FOLDER, config.benchmark.name)
    output = evaluation_output(benchmark.FIGURES)
    check_directory(out, output)
    agent, card = load_policy(checkpoint, config.dtype, landmarks, config.faces, open_face_store(config.data))
    agent.check_prompt(emotion_labels(config.data))
    source = open_source(config.data)
    with staged(out, output) as staging:
        with BackgroundWriter(EpisodeWriter(staging)) as writer:
            outcomes = _play(config, agent, source, writer, card.trained_on)
        summaries = {
            control: benchmark.measure(played, config=config.benchmark, seed=config.seed)
            for control, played in outcomes.items()
        }
        made = provenance(config.data.name, config.data.split, len(source), checkpoint)
        results = {
            "provenance": made,
            "checkpoint": checkpoint,
            "trained_on": card.trained_on,
            "config": asdict(config),
            "results": summaries,
        }
        for name, figure in zip(benchmark.FIGURES, benchmark.figures(summaries), strict=True):
            write_atomically(staging / f"{name}.png", plots.png(figure, heading(made)))
        write_atomically(staging / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
        publish(staging, out, output)
    return results


def evaluation_output(figures: Iterable[str]) -> Output:
    """An evaluation as an output, with one plot for each name."""
    plotted = "|".join(map(re.escape, figures))
    return Output(
        "an evaluation",
        re.compile(rf"results\.json|({plotted})\.png|{RECORD_FILES}"),
        last=RESULTS,
        signs=(RESULTS, "zoom.png"),
        folders=("episodes", "images"),
    )


def _play(
    config: EvaluateConfig, agent: Agent, source: Source, writer: BackgroundWriter, trained_on: tuple[str, ...]
) -> dict[str, list[Outcome]]:
    """Plays every episode and writes its record; returns the outcomes by control."""
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

    return evaluate_policy(
        agent.engine(queries=config.queries, group_size=1, greedy=config.greedy),
        agent.params,
        source,
        controls=config.controls,
        seed=config.seed,
        progress=ProgressLine("episodes"),
        record=record,
    )
