"""Evaluates a model on a server. What it has answered is kept if the evaluation stops, and not asked again."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from actfer_jax import plugins
from actfer_jax.agent.environment import load_format
from actfer_jax.agent.episode import Episode, Reference, Reply, Sample, Turn
from actfer_jax.agent.formats import Format
from actfer_jax.config import ConfigError
from actfer_jax.data.sources import Source, Unreadable, open_face_store, open_source, read_sample
from actfer_jax.episodes.record import episode_record
from actfer_jax.episodes.store import EpisodeWriter, Made, read_episodes, read_index, remove, shards, step_of
from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import Benchmark
from actfer_jax.evaluation.chat_client import ChatClient, Usage, key_from, total
from actfer_jax.evaluation.controls import CONTROLS, Control, Outcomes
from actfer_jax.evaluation.endpoint import EndpointPlayer, Played, in_threads
from actfer_jax.evaluation.items import NORMAL
from actfer_jax.evaluation.metrics import Outcome, outcome
from actfer_jax.evaluation.run import EvaluateConfig, evaluation_output, write_results
from actfer_jax.faces.views import View
from actfer_jax.files import is_remote, write_atomically
from actfer_jax.outputs import PARTIAL, OutputError, check_directory, staged
from actfer_jax.progress import ProgressLine
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.agent import load_toolbox

PLAN = ".actfer_plan.json"
"""In the directory of an evaluation that is not finished: what it plays."""

_WRITTEN_TOGETHER = 8  # Episodes; a kill loses fewer than that.
_FAILURES_IN_A_ROW = 20
# The parts of a config that decide about episodes, and keys of the section `endpoint` that do not.
_PLANNED = ("data", "controls", "seed", "greedy", "faces", "endpoint")
_FREE = ("parallel", "timeout", "attempts", "api_key_variable", "prompt_price", "completion_price")


class Job(NamedTuple):
    """An episode to play: a sample, under a control."""

    sample: int
    control: str


class Finished(NamedTuple):
    """An episode whose record is made.

    Attributes:
      failure: as in the record.
    """

    outcome: Outcome
    usage: Usage
    failure: str


def evaluate_endpoint(
    config: EvaluateConfig, url: str, model: str, out: epath.Path, landmarks: str = ""
) -> dict[str, Any]:
    """Plays every episode with a model on a server, and writes the results as `run.evaluate` does.

    If it ends early, the finished episodes stay, and the same call goes on with the others and with those that failed.
    Of results that go to an object store, none stay.

    Args:
      config: what to play, and how to ask (`config.endpoint`).
      url: the server's base, such as "http://localhost:8000/v1".
      model: the model's name there.
      out: the directory to write.
      landmarks: a file with a landmark model, instead of the installed one.

    Returns:
      The content of `results.json`, in which `endpoint` has the `url`, the sum of `usage` over all records, its `cost`
      (None without prices), and `failed`: the number of failed episodes by what failed.

    Raises:
      UserError, OSError: no episode can be played, too many fail, or the output cannot be written.
      ImageError: more than half of the pictures cannot be read.
    """
    asked = config.endpoint
    if asked.passive and config.controls:
        raise ConfigError(
            "config.controls change what tools bring, and config.endpoint.passive is without: make them ()"
        )
    client = ChatClient(url, key_from(asked.api_key_variable), asked.timeout, asked.attempts)
    benchmark: Benchmark = plugins.load(config.benchmark.FOLDER, config.benchmark.name)
    output = evaluation_output(benchmark.FIGURES)
    check_directory(out, output)
    source = open_source(config.data)
    toolbox = load_toolbox(landmarks, asked.views, config.faces, open_face_store(config.data))
    sampling = {"temperature": 0.0} if config.greedy else {"temperature": 1.0, "seed": config.seed}
    player = EndpointPlayer(asked, client, model, toolbox, sampling)
    controls = {NORMAL: Control()} | {name: CONTROLS[name] for name in config.controls}
    jobs = [Job(index, name) for index in range(len(source)) for name in controls]
    resume = _check_plan(out, _plan(config, model, len(source)))
    with staged(out, output, keep=True, resume=resume) as staging:
        finished = _kept(staging, load_format(asked.rules))
        try:
            unreadable = _play(jobs, controls, player, source, staging, finished)
        except BaseException:
            kept = sum(not one.failure for one in finished.values())
            if kept and not is_remote(out):
                print(f"{kept} of {len(jobs)} episodes are kept; the same command goes on", file=sys.stderr)
            raise
        outcomes = {
            name: [finished[job].outcome for job in jobs if job.control == name and job in finished]
            for name in controls
        }
        for name, played in outcomes.items():
            if played and all(one.failed for one in played):
                why = next(one.failure for job, one in finished.items() if job.control == name)
                raise UserError(f"all {len(played)} episodes ({name}) failed: {why}")
        joined = Outcomes.joined([Outcomes(outcomes, unreadable)])
        usage = total(one.usage for one in finished.values())
        failed = Counter(one.failure for one in finished.values() if one.failure)
        spent = {"url": url, **usage._asdict(), "cost": asked.cost(usage), "failed": dict(failed)}
        results = write_results(
            config, joined, staging, out, policy=model, samples=len(source), trained_on=(model,), endpoint=spent
        )
    (out / PLAN).unlink(missing_ok=True)
    return results


def _plan(config: EvaluateConfig, model: str, samples: int) -> dict[str, Any]:
    """All that decides about the episodes, in JSON's types."""
    parts = {name: value for name, value in asdict(config).items() if name in _PLANNED}
    parts["endpoint"] = {name: value for name, value in parts["endpoint"].items() if name not in _FREE}
    del parts["data"]["cache_directory"]
    plan: dict[str, Any] = json.loads(json.dumps({"model": model, "samples": samples, **parts}))
    return plan


def _check_plan(out: epath.Path, plan: dict[str, Any]) -> bool:
    """Whether an earlier call kept episodes of this plan. The plan is written if not.

    Raises:
      OutputError: it kept episodes of another.
    """
    if is_remote(out):
        return False
    file, partial = out / PLAN, out / PARTIAL
    if file.exists() and any(shards(partial)):
        if json.loads(file.read_text()) == plan:
            return True
        raise OutputError(
            f"{out} has episodes of an evaluation that is not finished, and it was another ({file} has its settings); "
            f"give that command again, choose another directory, or delete {partial}"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(plan, indent=1) + "\n")
    return False


def _kept(staging: Path, grammar: Format) -> dict[Job, Finished]:
    """The episodes that an earlier call finished. Those that failed are removed."""
    for shard in {line["shard"] for line in read_index(staging) if line["outcome"] == "failed"}:
        remove(epath.Path(staging) / shard)
    finished = {}
    for record in read_episodes(staging):
        job = Job(record["index"], record["id"].partition("/")[0])
        finished[job] = Finished(outcome(*_episode(record, grammar)), Usage(**record["usage"]), "")
    return finished


def _play(
    jobs: Sequence[Job],
    controls: Mapping[str, Control],
    player: EndpointPlayer,
    source: Source,
    staging: Path,
    finished: dict[Job, Finished],
) -> list[str]:
    """Plays the jobs that are not finished, and writes their records; those that failed come last, in other shards.

    Returns:
      Why pictures could not be read, in the order of the samples.

    Raises:
      UserError: no episode can be played, or too many fail.
    """
    writer, progress = EpisodeWriter(staging), ProgressLine("episodes")
    numbers = itertools.count(max(map(step_of, shards(staging)), default=-1) + 1)
    made, failed = dict[Job, tuple[Made, Finished]](), dict[Job, tuple[Made, Finished]]()

    def write(episodes: dict[Job, tuple[Made, Finished]]) -> None:
        for control in controls:
            if records := [record for job, (record, _) in episodes.items() if job.control == control]:
                writer.write(next(numbers), records, control)
        finished.update({job: one for job, (_, one) in episodes.items()})
        episodes.clear()

    def play(job: Job) -> tuple[Made, Finished] | Unreadable:
        sample = read_sample(source, job.sample)
        if isinstance(sample, Unreadable):
            return sample
        return _finish(job, sample, player.play(sample, controls[job.control]), player.model)

    left = [job for job in jobs if job not in finished]
    unreadable, failures, done = dict[int, str](), 0, len(finished)
    try:
        for job, result in in_threads(left, play, player.config.parallel):
            progress(done := done + 1, len(jobs))
            if isinstance(result, Unreadable):
                unreadable[job.sample] = result.problem
                continue
            _, one = result
            (failed if one.failure else made)[job] = result
            failures = failures + 1 if one.failure else 0
            if failures == _FAILURES_IN_A_ROW:
                raise UserError(f"{failures} episodes have failed in a row, the last by: {one.failure}")
            if len(made) == _WRITTEN_TOGETHER:
                write(made)
    finally:
        write(made)
    write(failed)
    return [unreadable[sample] for sample in sorted(unreadable)]


def _finish(job: Job, sample: Sample, played: Played, model: str) -> tuple[Made, Finished]:
    record, views = episode_record(
        sample,
        played.episode,
        played.views,
        id=f"{job.control}/{sample.dataset}/{sample.name}",
        reward=None if played.failure else score(played.episode, sample.reference, RewardConfig()),
        trained_on=(model,),
        usage=played.usage._asdict(),
        failure=played.failure,
    )
    result = replace(outcome(played.episode, sample.reference), failed=bool(played.failure))
    return (record | {"index": job.sample}, views), Finished(result, played.usage, played.failure)


def _without_pixels(view: Mapping[str, Any] | None) -> View | None:
    """The view of a record, of which only the geometry is read."""
    if view is None:
        return None
    width, height = view["size"]
    return View(np.zeros((height, width, 0), np.uint8), np.array(view["to_original"]), view["name"])


def _episode(record: Mapping[str, Any], grammar: Format) -> tuple[Episode, Reference]:
    """What a record says about how an episode came out."""
    turns = [
        Turn(
            turn["text"],
            grammar.parse_turn(turn["text"]),
            None if turn["reply"] is None else Reply(**turn["reply"], view=_without_pixels(turn["view"])),
            truncated=turn["truncated"],
        )
        for turn in record["turns"]
    ]
    known = record["reference"]
    aus, known_aus = (None if known[key] is None else frozenset(known[key]) for key in ("aus", "known_aus"))
    reference = Reference(
        tuple(known["labels"]), known["emotion"], aus, known_aus, strata=tuple(known["strata"]), extra=known["extra"]
    )
    return Episode(turns, ask_aus=record["ask_aus"]), reference
