"""Plays the episodes of a config by script, without a model: what fits, what the tools find, what a zoom shows.

The script is that of the trace writer with `max_turns - 1` tool calls: align the face, zoom into regions, answer.
"""

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from actfer_jax import facs
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import (
    Environment,
    check_turn_start,
    instruction_tokens,
    largest_prompt,
    largest_reply,
)
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.sources import (
    DataConfig,
    Unreadable,
    emotion_labels,
    label_sets,
    open_face_store,
    open_source,
    read_sample,
)
from actfer_jax.episodes.disk import EpisodeSize, episode_size, records_bytes
from actfer_jax.evaluation.command import read_card
from actfer_jax.evaluation.run import EvaluateConfig
from actfer_jax.evaluation.tables import align
from actfer_jax.faces.images import load_image
from actfer_jax.faces.views import pitch
from actfer_jax.files import write_atomically
from actfer_jax.models import words_directory
from actfer_jax.progress import ProgressLine
from actfer_jax.rollout.agent import ModelConfig, load_toolbox
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.rollout.engine import RolloutConfig
from actfer_jax.training.config import TrainConfig, read_train_config
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker

_STAND_IN = facs.PROTOTYPES["fear"][0]
"""Action units for the words of a script about a picture of which none are known."""
_NO_LIMIT = 10**8


class Played(NamedTuple):
    """One scripted episode.

    Attributes:
      turns: how many turns were played before the policy was told to answer, with the answer; 0 where the prompt or a
        reply has no room.
      found_by: the step of the search (`faces.detector`) that found the face that the script looks at; "" without one.
      needed: tokens of the prompt, the longest turn, the longest reply, and positions for the row, by config key.
      row: positions of the script's row after its prompt, if every zoom is as large as it may be.
      reading: positions of the longest reading of a view (`TraceMaker.readings`).
      longest_row: positions of a row in which every turn is as long as it may be.
      scene_pitch: original pixels that a pixel of the scene spans.
      zoom_pitches: the same of each zoom.
      size: what its record and pictures take on disk with the longest turns.
    """

    turns: int
    found_by: str
    needed: dict[str, int]
    row: int
    reading: int
    longest_row: int
    scene_pitch: float
    zoom_pitches: list[float]
    size: EpisodeSize


class Rehearsal:
    """Plays samples by script.

    Args:
      config: the limits.
      chat: of the model directory.
      encoder: of the model directory.
      toolbox: the face tools.
    """

    def __init__(self, config: RolloutConfig, chat: Chat, encoder: ViewEncoder, toolbox: Toolbox):
        check_turn_start(config, chat)
        self.config, self.chat, self.encoder, self.toolbox = config, chat, encoder, toolbox
        roomy = dataclasses.replace(config, prompt_tokens=_NO_LIMIT, reply_tokens=_NO_LIMIT, max_length=4 * _NO_LIMIT)
        self.limited, self.unlimited = (
            Environment(limits, chat, toolbox, encoder.tokens) for limits in (config, roomy)
        )
        self.maker = TraceMaker(TraceConfig(), chat, encoder, toolbox, config)

    def play(self, sample: Sample) -> Played:
        """Plays the script about a sample twice: within the limits, and without them to see what is needed."""
        sample = dataclasses.replace(sample, reference=_with_answer(sample.reference))
        zooms = max(self.config.max_turns - 2, 0)
        regions = tuple(facs.REGIONS[index % len(facs.REGIONS)] for index in range(zooms))
        turns = self.maker.turns(sample, Plan(align=self.config.max_turns > 1, regions=regions))
        last = len(sample.images) - 1
        faces = self.toolbox.faces(sample.key, sample.images[last], last)
        try:
            self._play(self.limited, sample, turns)
            fitting = len(self.limited.episode.turns)
        except ConfigError:
            # What has no room is measured without limits.
            fitting = 0
        lengths = self._play(self.unlimited, sample, turns)
        prompt, spoken, replies = lengths[0], lengths[1::2], lengths[2::2]
        limits, largest = self.config, self.toolbox.view_config.view_max_tokens
        longest_row = prompt + sum(replies) + len(replies) * (limits.turn_tokens + 1) + limits.turn_tokens
        # The scene that is looked at, the aligned view, and the zooms.
        scene, *views = self.unlimited.views[last:]
        return Played(
            turns=fitting,
            found_by=faces[0].step if faces else "",
            needed={
                "prompt_tokens": prompt,
                "turn_tokens": max(spoken),
                "reply_tokens": max(replies, default=0),
                # Before the last call there must be room for the longest turns and the largest reply.
                "max_length": sum(lengths[:-3]) + limits.one_more_call if replies else prompt + limits.turn_tokens,
            },
            row=sum(lengths[1:]) + sum(largest - self.encoder.tokens(view) for view in views[1:]),
            reading=max((len(reading.tokens) for reading in self.maker.readings(sample)), default=0),
            longest_row=longest_row,
            scene_pitch=float(pitch(scene.to_original).mean()),
            zoom_pitches=[float(pitch(view.to_original).mean()) for view in views[1:]],
            size=episode_size(
                sample,
                self.unlimited.episode,
                self.unlimited.views,
                length=longest_row,
                written=limits.max_turns * limits.turn_tokens,
            ),
        )

    def _play(self, environment: Environment, sample: Sample, turns: Sequence[str]) -> list[int]:
        """Plays until the policy is told to answer; returns the tokens of prompt, turn, reply, turn, ..."""
        observation = environment.reset(sample)
        lengths = [len(observation.token_ids)]
        for number, text in enumerate(turns, start=1):
            if environment.final and number < len(turns):
                text = turns[-1]
            tokens = len(self.chat.tokenizer.encode(text, add_special_tokens=False)) + 1
            reply = environment.step(text, tokens)
            lengths.append(tokens)
            if reply is None:
                break
            lengths.append(len(reply.token_ids))
        return lengths


def rehearse(
    raw_config: ml_collections.ConfigDict, checkpoint: str, samples: int, images: Sequence[str], out: epath.Path | None
) -> None:
    """Plays `samples` pictures of a config's data set and `images`, prints what was found, and writes it as JSON.

    Args:
      raw_config: a config of training, or of evaluation with the `checkpoint` that it evaluates.

    Raises:
      ConfigError: the config cannot be read, or a limit is too small; the message names each such key.
      DataError: no answer to a sample can be right (`check_reference`), or a trace about it cannot be written.
      ImageError: one of `images` cannot be read.
    """
    stage = _stage(raw_config, checkpoint)
    pictures, unreadable = _samples(stage.data, samples)
    labelled = len(pictures)
    unknown = Reference(labels=emotion_labels(stage.data))
    pictures += [Sample("pictures", path, (load_image(path),), unknown) for path in images]
    if not pictures:
        raise ConfigError(
            f"no picture can be read, such as {unreadable[0]}"
            if unreadable
            else "there is nothing to play; give --samples above 0, or --images"
        )
    rehearsal, progress = Rehearsal(stage.rollout, stage.chat, stage.encoder, stage.toolbox), ProgressLine("episodes")
    if stage.training is not None and stage.training.algorithm == "sft" and not stage.training.traces.file:
        for sample in pictures[:labelled]:
            rehearsal.maker.check(sample)
    played = []
    for number, sample in enumerate(pictures, start=1):
        played.append(rehearsal.play(sample))
        progress(number, len(pictures))
    report = summarise(played, stage, unreadable)
    print(in_words(report, stage.rollout.max_turns), flush=True)
    if out is not None:
        write_atomically(out, json.dumps(report, indent=1) + "\n")
    if too_small := [name for name, limit in report["capacity"].items() if limit["needed"] > limit["given"]]:
        raise ConfigError(
            "; ".join(
                f"config.{name} is {report['capacity'][name]['given']}, and {report['capacity'][name]['needed']} are "
                "needed: raise it"
                for name in too_small
            )
        )


@dataclass(frozen=True)
class Stage:
    """What a rehearsal takes of a config.

    Attributes:
      data: the data set's section.
      rollout: the limits.
      chat, encoder: of the model directory.
      toolbox: the face tools.
      training: the config of training; None for one of evaluation.
      episodes: how many episodes an evaluation plays, as far as its config says.
    """

    data: DataConfig
    rollout: RolloutConfig
    chat: Chat
    encoder: ViewEncoder
    toolbox: Toolbox
    training: TrainConfig | None
    episodes: int = 0


def _stage(raw_config: ml_collections.ConfigDict, checkpoint: str) -> Stage:
    training, episodes, images = None, 0, 1
    if "algorithm" in raw_config:
        if checkpoint:
            raise ConfigError("--checkpoint goes with a config of evaluation; give --config.model.path")
        training = read_train_config(raw_config)
        data, views, rollout, faces = training.data, training.views, training.rollout, training.faces
        path, landmarks = training.model.path, training.model.landmarks
    else:
        evaluation = read_config(raw_config, EvaluateConfig, "config")
        data, episodes = evaluation.data, (evaluation.data.size or 0) * (1 + len(evaluation.controls))
        faces, images = evaluation.faces, evaluation.images
        if not checkpoint:
            raise ConfigError("give --checkpoint, the model directory that is evaluated")
        path, landmarks = checkpoint, ""
    try:
        model = ModelConfig(path)
        directory = words_directory(model.base)
        if training is None:
            adapter = model.stored_adapter
            _, views, rollout = read_card(directory if adapter is None else adapter.directory, images)
        chat, encoder = Chat.from_pretrained(directory), ViewEncoder(directory, views)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"model {path!r} cannot be used: {error}") from error
    toolbox = load_toolbox(landmarks, views, faces, open_face_store(data))
    return Stage(data, rollout, chat, encoder, toolbox, training, episodes)


def _samples(data: DataConfig, count: int) -> tuple[list[Sample], list[str]]:
    """The first samples of a data set, and of those whose picture cannot be read, why."""
    if not count:
        return [], []
    size = count if data.size is None else min(count, data.size)
    source = open_source(dataclasses.replace(data, size=size))
    read = [read_sample(source, index) for index in range(min(size, len(source)))]
    return (
        [sample for sample in read if isinstance(sample, Sample)],
        [sample.problem for sample in read if isinstance(sample, Unreadable)],
    )


def summarise(played: Sequence[Played], stage: Stage, unreadable: Sequence[str]) -> dict[str, Any]:
    """The report of a rehearsal as JSON values.

    Returns:
      samples; playable (the share in which all turns fit); turns_played (of each); prompt_tokens (most); longest_row
      (most positions that a row takes if every turn is as long as it may be); faces_found (share); faces_found_by (how
      many by each step of the search); scene_pitch and zoom_pitch (medians, original pixels that a pixel of the view
      spans; None without zooms); disk_gib (most that the records of the run take); capacity (needed and given, by
      config key); unreadable (of the pictures that cannot be read, why).
    """
    limits, views = stage.rollout, stage.toolbox.view_config
    needed = {
        name: max(one.needed[name] for one in played)
        for name in ("prompt_tokens", "turn_tokens", "reply_tokens", "max_length")
    }
    asked = [stage.data]
    if stage.training is not None and stage.training.evaluation is not None:
        asked.append(stage.training.evaluation.data)
    largest = [
        largest_prompt(limits, stage.chat, labels, views.scene_max_tokens)
        for data in asked
        for labels in label_sets(data)
    ]
    needed["prompt_tokens"] = max(needed["prompt_tokens"], *largest)
    # Other pictures may have larger views than these.
    needed["reply_tokens"] = max(needed["reply_tokens"], largest_reply(limits, stage.chat, views.view_max_tokens))
    capacity = {
        f"rollout.{name}": {"needed": tokens, "given": getattr(limits, name)} for name, tokens in needed.items()
    }
    longest_row = max(one.longest_row for one in played)
    found = Counter(one.found_by for one in played if one.found_by)
    if stage.training is not None:
        # A trace may have the largest prompt, and be told to zoom.
        trace = needed["prompt_tokens"] + max(one.row for one in played) + instruction_tokens(stage.chat)
        capacity["batch.length"] = {
            "needed": limits.max_length if stage.training.algorithm == "rl" else trace,
            "given": stage.training.batch.length,
        }
        if stage.training.traces.readings_steps:
            capacity["traces.readings_length"] = {
                "needed": max(one.reading for one in played),
                "given": stage.training.traces.readings_length,
            }
    zooms = [pitch for one in played for pitch in one.zoom_pitches]
    return {
        "samples": len(played),
        "playable": sum(one.turns == limits.max_turns for one in played) / len(played),
        "turns_played": [one.turns for one in played],
        "prompt_tokens": needed["prompt_tokens"],
        "longest_row": longest_row,
        "faces_found": sum(found.values()) / len(played),
        "faces_found_by": dict(found),
        "scene_pitch": statistics.median(one.scene_pitch for one in played),
        "zoom_pitch": statistics.median(zooms) if zooms else None,
        "disk_gib": _records_bytes(played, stage) / 2**30,
        "capacity": capacity,
        "unreadable": list(unreadable),
    }


def _records_bytes(played: Sequence[Played], stage: Stage) -> float:
    size = EpisodeSize(*(statistics.fmean(parts) for parts in zip(*(one.size for one in played), strict=True)))
    training = stage.training
    if training is None:
        return records_bytes(size, queries=stage.episodes, rollouts=1, steps=1, records_every=1)
    if training.algorithm == "sft":
        return 0.0
    return records_bytes(
        size,
        queries=training.batch.queries,
        rollouts=training.batch.rollouts,
        steps=training.steps,
        records_every=training.logging.records_every,
    )


def in_words(report: dict[str, Any], max_turns: int) -> str:
    """The report for a terminal."""
    rows = [["key", "needed", "given", ""]]
    for name, limit in report["capacity"].items():
        verdict = "too small" if limit["needed"] > limit["given"] else ""
        rows.append([f"config.{name}", str(limit["needed"]), str(limit["given"]), verdict])
    steps = ", ".join(f"{count} by {step}" for step, count in report["faces_found_by"].items())
    lines = [
        align(rows, left=1),
        "",
        f"{report['playable']:.0%} of {report['samples']} pictures play all {max_turns} turns. With turns as long as "
        f"they may be, a row takes up to {report['longest_row']} positions.",
        f"A face was found in {report['faces_found']:.0%}{f' ({steps})' if steps else ''}.",
    ]
    if report["zoom_pitch"] is not None:
        finer = report["scene_pitch"] / report["zoom_pitch"]
        lines.append(
            f"A zoom is {finer:.1f} times as fine as the scene, with {report['zoom_pitch']:.2f} original pixels to a "
            f"pixel (the scene {report['scene_pitch']:.2f})."
        )
        if report["scene_pitch"] <= 1:
            lines.append(
                "The scene already has every pixel of the original: a zoom enlarges it, and shows no more detail."
            )
    if unreadable := report["unreadable"]:
        lines.append(f"{len(unreadable)} more cannot be read, such as {unreadable[0]}.")
    lines.append(f"The records of the run take at most {report['disk_gib']:.1f} GiB.")
    return "\n".join(lines)


def _with_answer(reference: Reference) -> Reference:
    """The reference, with an answer to write where none is known: the longest label and the action units of fear."""
    emotion = reference.emotion or max(reference.labels, key=len, default=None)
    aus = reference.aus if reference.has_aus else _STAND_IN
    return dataclasses.replace(reference, emotion=emotion, aus=aus, known_aus=None)
