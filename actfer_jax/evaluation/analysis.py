"""Runs the agent on images, and writes a page of its episodes."""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

from etils import epath

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.cli import printable
from actfer_jax.episodes.page import call_text, page, section, why_no_answer
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import PICTURES, EpisodeWriter, shards
from actfer_jax.evaluation.command import load_policy
from actfer_jax.faces.images import ImageError, load_image
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.rollout.engine import Query

RENDERED_ONLY = (
    "This model was trained on rendered faces only. Its readings of photographs show how the agent works; "
    "they are not to be relied upon."
)

PAGE, RECORDS = "index.html", "episodes.jsonl"
ANALYSIS = Output(
    "an analysis",
    re.compile(rf"index\.html|episodes\.jsonl|{PICTURES}"),
    last=PAGE,
    signs=(PAGE, RECORDS),
    folders=("images",),
)


def caveat(trained_on: Sequence[str]) -> str:
    """A caution about a policy that was trained on these data sets, or ""."""
    return RENDERED_ONLY if set(trained_on) == {"synth_faces"} else ""


def analyze(paths: Sequence[str], checkpoint: str, out: epath.Path, dtype: str, landmarks: str = "") -> int:
    """Analyses images one after the other. Images that cannot be read are reported and skipped.

    If no image can be read, nothing is written. If the call ends early, the images analysed by then are written to
    `out`, or to `out/interrupted` if `out` has an earlier analysis.

    Args:
      paths: the image files.
      checkpoint, dtype, landmarks: as for `load_policy`.
      out: the directory to write.

    Returns:
      How many images could not be read.

    Raises:
      ConfigError, OutputError, OSError: the checkpoint does not load, or the output cannot be written.
    """
    check_directory(out, ANALYSIS)
    # An interrupted call keeps what it has analysed, and overwrites no earlier analysis.
    kept = out / "interrupted" if (out / PAGE).exists() else out
    check_directory(kept, ANALYSIS)
    agent, card = load_policy(checkpoint, dtype, landmarks)
    # One image at a time, so that each result is shown as early as possible.
    engine = replace(agent, rollout=replace(agent.rollout, fill_rows=1)).engine(queries=1, group_size=1, greedy=True)
    note = caveat(card.trained_on)
    if note:
        print(note)
    sections, unread = list[str](), list[str]()
    with staged(out, ANALYSIS) as staging:
        writer = EpisodeWriter(staging)

        def finish(directory: epath.Path) -> None:
            write_atomically(staging / RECORDS, "".join(shard.read_text() for shard in shards(staging)))
            shutil.rmtree(staging / "episodes")
            write_atomically(staging / PAGE, page(sections, checkpoint=checkpoint, note=note, unread=unread))
            publish(staging, directory, ANALYSIS)
            print(f"\n{len(sections)} of {len(paths)} pictures analysed: {directory / PAGE}")

        try:
            for index, path in enumerate(paths):
                try:
                    image = load_image(path)
                except ImageError as error:
                    unread.append(str(error))
                    print(f"error: {printable(str(error))}", file=sys.stderr)
                    continue
                query = Query("pictures", path, (image,), Reference(labels=card.labels), index=index)
                rollout = engine.run(agent.params, [query], seed=0, step=0).rollouts[0][0]
                faces = agent.toolbox.faces(query.key, image)
                print(f"\n{printable(path)}\n{transcript(rollout.episode, len(faces))}", flush=True)
                name = f"picture-{index}"
                record = to_record(rollout, id=name, reward=None, advantage=None, trained_on=card.trained_on)
                writer.write(index, [record])
                sections.append(section(path, image, rollout, faces))
        except BaseException:
            if sections:
                finish(kept)
            raise
        if sections:
            finish(out)
    return len(unread)


def transcript(episode: Episode, faces: int) -> str:
    """An episode as lines for a terminal.

    Args:
      episode: a finished one.
      faces: how many faces were found in the image.
    """
    lines = [] if faces else ["  no face was found in this picture"]
    for number, turn in enumerate(episode.turns, start=1):
        parsed = turn.parsed
        lines += _indented(f"  {number}  ", parsed.think if parsed.well_formed else turn.text)
        if parsed.calls:
            lines += _indented("     ", call_text(parsed.call) if parsed.call else "unreadable call")
        if turn.reply is not None:
            lines += _indented("     -> ", turn.reply.text)
    answer = episode.answer
    if answer is None:
        return "\n".join([*lines, f"  no answer: {why_no_answer(episode)}"])
    parts = [] if answer.answer is None else [printable(answer.answer)]
    if answer.aus is not None:
        parts.append(", ".join(f"AU{au} {facs.AU_NAMES[au]}" for au in sorted(answer.aus)) or "no action units")
    return "\n".join([*lines, f"  {': '.join(parts)}"])


def _indented(start: str, text: str) -> list[str]:
    first, *rest = [line for line in printable(text).split("\n") if line.strip()] or [""]
    return [(start + first).rstrip(), *(" " * len(start) + line for line in rest)]
