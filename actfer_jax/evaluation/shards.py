"""An evaluation in shards, on as many machines as there are, and their results as one.

Shard I of N plays every N-th batch of the samples and keeps what it has below the directory of the evaluation:

    OUT/shards/1-of-4/plan.json                what is evaluated
    OUT/shards/1-of-4/outcomes/00000008.json   of batch 8, written when its records are on the disk
    OUT/shards/1-of-4/episodes/, images/       the records, named as those of an evaluation in one piece

A shard that was killed goes on with the batches without outcomes. The batches are those of an evaluation in one piece,
so that the merged results are its results.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etils import epath

from actfer_jax import plugins
from actfer_jax.episodes.background import BackgroundWriter
from actfer_jax.episodes.store import RECORD_FILES, EpisodeWriter
from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import Benchmark
from actfer_jax.evaluation.controls import Outcomes, batch_count
from actfer_jax.evaluation.metrics import Outcome
from actfer_jax.evaluation.run import EvaluateConfig, evaluation_output, open_evaluation, play_batches, write_results
from actfer_jax.files import is_remote, write_atomically
from actfer_jax.outputs import MARKER, Output, OutputError, check_directory, claim, staged
from actfer_jax.runs.provenance import provenance

SHARDS, PLAN = "shards", "plan.json"
_PART = Output(
    "a shard of an evaluation",
    re.compile(rf"plan\.json|outcomes/\d+\.json|{RECORD_FILES}"),
    last=PLAN,
    signs=(MARKER,),
    folders=("outcomes", "episodes", "images"),
)


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of an evaluation; `index` is from 1."""

    index: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """Reads "2/4".

        Raises:
          UserError: it is no such text.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard={text} must be I/N, with I from 1 to N: --shard=1/4 to --shard=4/4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def directory(self, out: epath.Path) -> epath.Path:
        return out / SHARDS / f"{self.index}-of-{self.count}"

    def batches(self, total: int) -> range:
        return range(self.index - 1, total, self.count)


def evaluate_shard(config: EvaluateConfig, checkpoint: str, out: epath.Path, landmarks: str, shard: Shard) -> str:
    """Plays the batches of a shard that are not done.

    Args:
      config, checkpoint, landmarks: as for `run.evaluate`, and the same for all shards.
      out: the directory of the evaluation.
      shard: which part.

    Returns:
      The text to print.

    Raises:
      OutputError: the shard was begun with something else, or cannot be written.
      ConfigError, OSError: as `run.evaluate`.
    """
    output, directory = _output(config), shard.directory(out)
    if not out.exists():  # All shards may start at once; the check would make the directory, and remove it again.
        out.mkdir(parents=True, exist_ok=True)
    check_directory(out, output)
    agent, card, source = open_evaluation(config, checkpoint, landmarks)
    plan = _plan(config, checkpoint, landmarks, len(source), card.trained_on)
    claim(out, output)
    directory.mkdir(parents=True, exist_ok=True)
    check_directory(directory, _PART)
    claim(directory, _PART)
    if (directory / PLAN).exists():
        _check_same(plan, directory)
    else:
        write_atomically(directory / PLAN, json.dumps(plan, indent=1) + "\n")
    (directory / "outcomes").mkdir(exist_ok=True)
    batches = shard.batches(batch_count(source, config.queries))
    left = [batch for batch in batches if not _file(directory, batch).exists()]
    with BackgroundWriter(EpisodeWriter(directory)) as writer:
        played = play_batches(config, agent, source, left, writer, card.trained_on)
        for batch, outcomes in zip(left, played, strict=True):
            writer.wait()
            write_atomically(_file(directory, batch), json.dumps(_plain(outcomes)) + "\n")
    return (
        f"shard {shard} is done: {len(batches)} batches, {len(left)} of them now. When all {shard.count} are, give the "
        "same command with --merge in place of --shard"
    )


def merge(config: EvaluateConfig, checkpoint: str, out: epath.Path, landmarks: str) -> dict[str, Any]:
    """Makes the results of an evaluation of all of its shards. These stay as they are.

    Args:
      config, checkpoint, landmarks: as the shards had them.
      out: the directory of the evaluation.

    Returns:
      As `run.evaluate`.

    Raises:
      UserError: a shard is missing or not done, or was begun with something else.
      ImageError: more than half of the pictures cannot be read.
    """
    output = _output(config)
    check_directory(out, output)
    directories = _all_shards(out)
    plans = [_read(directory / PLAN) for directory in directories]
    samples, trained_on = plans[0]["samples"], plans[0]["trained_on"]
    for directory in directories:
        _check_same(_plan(config, checkpoint, landmarks, samples, trained_on), directory)
    total = math.ceil(samples / config.queries)
    files = [_file(directories[batch % len(directories)], batch) for batch in range(total)]
    if missing := [file for file in files if not file.exists()]:
        shard = missing[0].parent.parent.name.replace("-of-", "/")
        raise UserError(f"{len(missing)} of {total} batches are not played; give --shard={shard} again")
    outcomes = Outcomes.joined(_outcomes(_read(file)) for file in files)
    with staged(out, output) as staging:
        EpisodeWriter(staging)
        for directory in directories:
            for file in _records(directory):
                _link(file, staging / os.path.relpath(file, directory))
        return write_results(config, outcomes, staging, out, policy=checkpoint, samples=samples, trained_on=trained_on)


def _output(config: EvaluateConfig) -> Output:
    benchmark: Benchmark = plugins.load(config.benchmark.FOLDER, config.benchmark.name)
    return evaluation_output(benchmark.FIGURES)


def _plan(
    config: EvaluateConfig, checkpoint: str, landmarks: str, samples: int, trained_on: tuple[str, ...]
) -> dict[str, Any]:
    """What all shards of an evaluation have in common, in JSON's types."""
    made = provenance(config.data.name, config.data.split, samples, checkpoint)
    code = {key: made[key] for key in ("version", "git_commit", "git_modified")}
    plan = {"checkpoint": checkpoint, "landmarks": landmarks, "samples": samples, "trained_on": trained_on}
    plain: dict[str, Any] = json.loads(json.dumps({**plan, "config": asdict(config), **code}))
    return plain


# Where the same files may lie elsewhere on another machine.
_PLACES = ("config.data.directory", "config.data.cache_directory", "landmarks")


def _check_same(plan: Mapping[str, Any], directory: epath.Path) -> None:
    """
    Raises:
      OutputError: a shard was begun by another plan; the message names a key that differs.
    """
    here, there = _flat(plan), _flat(_read(directory / PLAN))
    for key in {**here, **there}:
        if key not in _PLACES and here.get(key) != there.get(key):
            raise OutputError(
                f"{directory} was begun with {key} {there.get(key)!r}, which is now {here.get(key)!r}: shards are of "
                "one evaluation; give what it was begun with, another --out, or delete that directory"
            )


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _all_shards(out: epath.Path) -> list[epath.Path]:
    """The directories of all shards in order.

    Raises:
      UserError: there are none, one is missing, or they are of several divisions.
    """
    found = {path.name for path in (out / SHARDS).iterdir()} if (out / SHARDS).is_dir() else set()
    counts = {int(match[1]) for name in found if (match := re.fullmatch(r"\d+-of-(\d+)", name))}
    if len(counts) != 1:
        there = f"shards of {' and of '.join(map(str, sorted(counts)))} parts" if counts else "no shards"
        raise UserError(f"{out} has {there}; play all parts of one division with --shard=I/N")
    (count,) = counts
    shards = [Shard(index, count) for index in range(1, count + 1)]
    for shard in shards:
        if not (shard.directory(out) / PLAN).exists():
            raise UserError(f"shard {shard} is not there; give --shard={shard}")
    return [shard.directory(out) for shard in shards]


def _file(directory: epath.Path, batch: int) -> epath.Path:
    return directory / "outcomes" / f"{batch:08d}.json"


def _read(file: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); delete it and give --shard again") from error


def _plain(outcomes: Outcomes) -> dict[str, Any]:
    def plain(one: Outcome) -> dict[str, Any]:
        return {key: sorted(value) if isinstance(value, frozenset) else value for key, value in vars(one).items()}

    return {
        "by_control": {control: list(map(plain, played)) for control, played in outcomes.by_control.items()},
        "unreadable": outcomes.unreadable,
    }


def _outcomes(plain: Mapping[str, Any]) -> Outcomes:
    """The outcomes of `_plain`, with tuples and sets where JSON has lists."""

    def outcome(values: Mapping[str, Any]) -> Outcome:
        sets = {key: frozenset(values[key]) for key in ("aus", "predicted_aus") if values[key] is not None}
        return Outcome(**{key: _tuples(value) for key, value in values.items()} | sets)

    by_control = {control: list(map(outcome, played)) for control, played in plain["by_control"].items()}
    return Outcomes(by_control, plain["unreadable"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _records(directory: epath.Path) -> Iterator[epath.Path]:
    """The files of a shard's records."""
    images = directory / "images"
    for folder in (directory / "episodes", *(images.iterdir() if images.exists() else ())):
        for file in folder.iterdir() if folder.is_dir() else ():
            if re.fullmatch(RECORD_FILES, os.path.relpath(file, directory)):
                yield file


def _link(source: epath.Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(source):
        with suppress(OSError):
            target.unlink(missing_ok=True)
            os.link(source, target)
            return
    source.copy(target, overwrite=True)
