"""Evaluates a checkpoint on a data set, and writes results, plots and records."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from etils import epath
from ml_collections import ConfigDict

from actfer_jax import plugins
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.config import ConfigError, Count, FloatType, Seed, check_fields, one_of, read_config
from actfer_jax.data.sources import DataConfig, Source, label_sets, open_face_store, open_source
from actfer_jax.episodes.background import BackgroundWriter
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import RECORD_FILES, EpisodeWriter
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import Benchmark, BenchmarkConfig
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.confidence import confidence
from actfer_jax.evaluation.controls import CONTROLS, Outcomes, batch_count, play
from actfer_jax.evaluation.endpoint import EndpointConfig, spent_in_words
from actfer_jax.evaluation.items import NORMAL
from actfer_jax.evaluation.metrics import label_notes
from actfer_jax.evaluation.results import RESULTS
from actfer_jax.faces.detector import FaceConfig
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.progress import ProgressLine
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.engine import Rollout
from actfer_jax.runs.provenance import heading, provenance


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
      data: the samples.
      controls: controls to play in addition to the normal episodes: "no_tools", "blank_crop", "low_res_crop",
        "always_zoom", "never_zoom".
      queries: samples at a time, at least 1.
      seed: of the bootstrap resamples and of the sampling, from 0 to 2^32 - 1.
      greedy: whether to take the likeliest tokens; else to sample as in training, for the policy's average behaviour.
      dtype: of the model's weights and activations, "float32" or "bfloat16".
      benchmark: the choice of what is measured.
      faces: how faces are searched.
      endpoint: how a model on a server is asked.
      images: most images of a sample. A policy that was trained on fewer gets the room for them.
    """

    data: DataConfig
    controls: tuple[Annotated[str, one_of(*CONTROLS)], ...]
    queries: Count
    seed: Seed
    greedy: bool
    dtype: FloatType
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    faces: FaceConfig = field(default_factory=FaceConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    images: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)


def read_evaluate_config(raw: ConfigDict) -> EvaluateConfig:
    """
    Raises:
      ConfigError: something in it is wrong, or it is one of training.
    """
    if "algorithm" in raw:
        raise ConfigError(
            "this is a config for `python -m actfer_jax.train`; evaluate takes one such as configs/eval/synth_faces.py"
        )
    return read_config(raw, EvaluateConfig, "config")


def evaluate(config: EvaluateConfig, checkpoint: str, out: epath.Path, landmarks: str = "") -> dict[str, Any]:
    """Plays every episode and writes the results.

    Args:
      config: what to play.
      checkpoint, landmarks: as for `load_policy`.
      out: the directory to write.

    Returns:
      The content of `results.json`: the provenance, why pictures could not be read (`unreadable`), and the summaries of
      the normal episodes and of each control. Records have the reward with its default constants, not those of the
      policy's training.

    Raises:
      ConfigError, OutputError, OSError: the checkpoint does not load, or the output cannot be written.
      ImageError: more than half of the pictures cannot be read.
    """
    benchmark: Benchmark = plugins.load(config.benchmark.FOLDER, config.benchmark.name)
    output = evaluation_output(benchmark.FIGURES)
    check_directory(out, output)
    agent, card, source = open_evaluation(config, checkpoint, landmarks)
    with staged(out, output) as staging:
        with BackgroundWriter(EpisodeWriter(staging)) as writer:
            batches = range(batch_count(source, config.queries))
            outcomes = Outcomes.joined(play_batches(config, agent, source, batches, writer, card.trained_on))
        return write_results(
            config, outcomes, staging, out, policy=checkpoint, samples=len(source), trained_on=card.trained_on
        )


def open_evaluation(config: EvaluateConfig, checkpoint: str, landmarks: str) -> tuple[Agent, PolicyCard, Source]:
    """The policy with its card, and the samples.

    Raises:
      ConfigError, DataError, OSError: one of them cannot be used.
    """
    store = open_face_store(config.data)
    agent, card = load_policy(checkpoint, config.dtype, landmarks, config.faces, store, config.images)
    for labels in label_sets(config.data):
        agent.check_prompt(labels)
    return agent, card, open_source(config.data)


def play_batches(
    config: EvaluateConfig,
    agent: Agent,
    source: Source,
    batches: Sequence[int],
    writer: BackgroundWriter,
    trained_on: tuple[str, ...],
) -> Iterator[Outcomes]:
    """Plays batches (`controls.play`) and hands on the records of their episodes."""

    def record(number: int, control: str, rollouts: Iterable[Rollout]) -> None:
        episodes = (
            to_record(
                rollout,
                id=f"{control}/{rollout.query.dataset}/{rollout.query.name}",
                reward=score(rollout.episode, rollout.query.reference, RewardConfig()),
                advantage=None,
                trained_on=trained_on,
                confidence=confidence(agent.chat, rollout),
            )
            for rollout in rollouts
        )
        writer.write(number, episodes, control)

    return play(
        agent.engine(queries=config.queries, group_size=1, greedy=config.greedy),
        agent.params,
        source,
        batches,
        controls=config.controls,
        seed=config.seed,
        progress=ProgressLine("episodes"),
        record=record,
    )


def write_results(
    config: EvaluateConfig,
    outcomes: Outcomes,
    staging: Path,
    out: epath.Path,
    *,
    policy: str,
    samples: int,
    trained_on: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """Measures the outcomes, writes figures and plots beside the records in `staging`, and publishes all.

    Args:
      policy: its name.
      samples: how many there are, with those that could not be read.
      trained_on: the data sets that the policy was trained on.
      more: further keys of `results.json`.

    Returns:
      The content of `results.json`.
    """
    benchmark: Benchmark = plugins.load(config.benchmark.FOLDER, config.benchmark.name)
    counts_failed = getattr(benchmark, "COUNTS_FAILED", False)
    summaries = {
        control: benchmark.measure(
            [one for one in played if counts_failed or not one.failed], config=config.benchmark, seed=config.seed
        )
        for control, played in outcomes.by_control.items()
    }
    notes = label_notes(outcomes.by_control[NORMAL], trained_on)
    made = provenance(config.data.name, config.data.split, samples, policy, notes)
    results = {
        "provenance": made,
        "checkpoint": policy,
        "trained_on": list(trained_on),
        "config": asdict(config),
        "unreadable": outcomes.unreadable,
        **more,
        "results": summaries,
    }
    for name, figure in zip(benchmark.FIGURES, benchmark.figures(summaries), strict=True):
        write_atomically(staging / f"{name}.png", plots.png(figure, _title(results)))
    write_atomically(staging / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    publish(staging, out, evaluation_output(benchmark.FIGURES))
    return results


def in_words(results: Mapping[str, Any]) -> str:
    """The content of `results.json` for a terminal."""
    benchmark: Benchmark = plugins.load(BenchmarkConfig.FOLDER, results["config"]["benchmark"]["name"])
    lines = [_title(results), benchmark.report(results["results"])]
    if results["unreadable"]:
        lines.append(f"\nThe first picture that cannot be read: {results['unreadable'][0]} (all are in {RESULTS})")
    if "endpoint" in results:
        lines.append(spent_in_words(results["endpoint"]))
    return "\n".join(lines)


def _title(results: Mapping[str, Any]) -> str:
    unreadable = len(results["unreadable"])
    return heading(results["provenance"]) + (f" | {unreadable} unreadable, in no figure" if unreadable else "")


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
