"""Traces by rejection sampling: a policy plays the samples of a training, and the episodes that it got right are kept.

What is done is kept by batches in `parts/` of the output, so that the same command goes on where it was stopped.
"""

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from etils import epath

from actfer_jax.agent.environment import load_format
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.config import Count, Share, check_fields, one_of
from actfer_jax.data.sources import Source, Unreadable, emotion_labels, open_face_store, open_source, read_sample
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, OutputError, check_directory, claim, publish, staged
from actfer_jax.parallel import hosts
from actfer_jax.parallel.sharding import make_meshes
from actfer_jax.progress import ProgressLine
from actfer_jax.rl.levels import score_levels
from actfer_jax.rollout.agent import Agent, ModelConfig, load_agent
from actfer_jax.rollout.engine import Query, Rollout
from actfer_jax.runs.provenance import provenance
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.recorded import Trace, parse_traces, to_line

log = logging.getLogger(__name__)

TRACES, REPORT, PARTS = "traces.jsonl", "report.json", "parts"
OUTPUT = Output("traces", re.compile(r"traces\.jsonl|report\.json"), last=TRACES, signs=(TRACES,), folders=(PARTS,))


@dataclass(frozen=True)
class SamplingConfig:
    """How episodes are sampled and kept.

    Attributes:
      policy: a model directory as in `ModelConfig.path`.
      keep: "correct", or "formatted" for whatever answers in the right form.
      tries: episodes of each sample.
      most: traces that are kept of a sample; the first that differ.
      au_f1: the least F1 of the answered action units, where they are known and asked for.
    """

    policy: str
    keep: Annotated[str, one_of("correct", "formatted")] = "correct"
    tries: Count = 4
    most: Count = 1
    au_f1: Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)


def sample_traces(config: TrainConfig, sampling: SamplingConfig, out: epath.Path) -> dict[str, Any]:
    """Plays the samples of `config.data` and writes `traces.jsonl` (`training.recorded`) and `report.json`.

    The limits, views and temperature are those of the config, so that the traces fit a training with it.

    Returns:
      The report: `provenance`, `sampling`, `traces`, `samples` (how many have one), `classes` (traces by answer) and
      `zooms` (traces by how many they take).

    Raises:
      ConfigError, OutputError, OSError: the policy does not load, or the output cannot be written.
    """
    check_directory(out, OUTPUT)
    hosts.start_devices()
    dtype = config.model.dtype
    model = ModelConfig(sampling.policy, dtype=dtype, param_dtype=dtype, remat="none", landmarks=config.model.landmarks)
    store, meshes = open_face_store(config.data), make_meshes(config.mesh)
    agent = load_agent(model, config.views, config.rollout, faces=config.faces, store=store, meshes=meshes)
    agent.check_prompt(emotion_labels(config.data))
    source = open_source(config.data)
    claim(out, OUTPUT)
    traces = list(_sampled(config, sampling, agent, model.trained_on, source, out / PARTS))
    report = {
        "provenance": provenance(config.data.name, config.data.split, len(source), sampling.policy),
        "sampling": dataclasses.asdict(sampling),
        "traces": len(traces),
        "samples": len({trace.index for trace in traces}),
        **_mix(traces, agent),
    }
    with staged(out, OUTPUT) as staging:
        write_atomically(staging / TRACES, "".join(map(to_line, traces)))
        write_atomically(staging / REPORT, json.dumps(report, indent=1) + "\n")
        publish(staging, out, OUTPUT)
    (out / PARTS).rmtree(missing_ok=True)
    return report


def _sampled(
    config: TrainConfig,
    sampling: SamplingConfig,
    agent: Agent,
    trained_on: tuple[str, ...],
    source: Source,
    parts: epath.Path,
) -> Iterator[Trace]:
    """The kept traces of all batches: those in `parts`, and those that are sampled now and put there."""
    _open_parts(parts, config, sampling)
    size, progress = config.batch.queries, ProgressLine("samples")
    engine = agent.engine(queries=size, group_size=sampling.tries)
    for number, start in enumerate(range(0, len(source), size)):
        part = parts / f"{number:06d}.jsonl"
        if not part.exists():
            queries = list(_queries(source, range(start, min(start + size, len(source)))))
            groups: list[list[Rollout]] = []
            if queries:
                groups = engine.run(agent.params, queries, seed=config.seed, step=0, keep_failed=True).rollouts
            kept = [_trace(rollout, trained_on) for group in groups for rollout in _kept(group, sampling)]
            write_atomically(part, "".join(map(to_line, kept)))
        yield from parse_traces(part.read_text(), str(part))
        progress(min(start + size, len(source)), len(source))


def _open_parts(parts: epath.Path, config: TrainConfig, sampling: SamplingConfig) -> None:
    """Makes the directory of parts.

    Raises:
      OutputError: it has parts that were sampled with other settings.
    """
    sections = {name: vars(getattr(config, name)) for name in ("data", "views", "rollout", "faces")}
    settings = sections | {"sampling": vars(sampling), "seed": config.seed, "queries": config.batch.queries}
    text, path = json.dumps(settings, default=str, indent=1), parts / "settings.json"
    if path.exists() and path.read_text() != text:
        raise OutputError(
            f"{parts} has traces that were sampled with other settings, those in {path}; give that command again, "
            f"choose another --out, or delete {parts}"
        )
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _queries(source: Source, indices: Iterable[int]) -> Iterator[Query]:
    for index in indices:
        sample = read_sample(source, index)
        if isinstance(sample, Unreadable):
            log.warning("sample %d is left out: %s", index, sample.problem)
        else:
            yield Query(**vars(sample), index=index)


def _kept(group: list[Rollout], sampling: SamplingConfig) -> list[Rollout]:
    """The rollouts of a sample that are kept: of several with the same words, the first."""
    different = {
        tuple(turn.text for turn in rollout.episode.turns): rollout
        for rollout in reversed(group)
        if not rollout.failure and is_kept(rollout.episode, rollout.query.reference, sampling)
    }
    return list(reversed(different.values()))[: sampling.most]


def is_kept(episode: Episode, reference: Reference, sampling: SamplingConfig) -> bool:
    """Whether an episode may be learnt from: every call executed, no turn was cut, the answer has the right form, and
    with `keep` "correct" it is right, as far as it is known what is."""
    levels = score_levels(episode, reference)
    if levels["format"] < 1 or levels["tool"] < 1 or any(turn.truncated for turn in episode.turns):
        return False
    if sampling.keep == "formatted":
        return True
    aus_right = not (episode.ask_aus and reference.has_aus) or levels["au"] >= sampling.au_f1
    return aus_right and (reference.emotion is None or levels["emotion"] == 1)


def _trace(rollout: Rollout, trained_on: tuple[str, ...]) -> Trace:
    query = rollout.query
    turns = tuple(turn.text for turn in rollout.episode.turns)
    return Trace(query.dataset, query.name, query.index, turns, trained_on)


def _mix(traces: Iterable[Trace], agent: Agent) -> dict[str, dict[str, int]]:
    """How many traces there are of each answer, and with each number of zooms."""
    grammar, classes, zooms = load_format(agent.rollout), Counter[str](), Counter[str]()
    for trace in traces:
        *calls, answer = (grammar.parse_turn(agent.chat.turn_start + text) for text in trace.turns)
        classes[answer.answer or "none"] += 1
        zooms[str(sum(turn.call is not None and turn.call.name == "zoom" for turn in calls))] += 1
    return {"classes": dict(sorted(classes.items())), "zooms": dict(sorted(zooms.items()))}
