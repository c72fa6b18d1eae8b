"""Runs the agent on pictures.

    python -m actfer_jax.analyze photo.jpg other.png --checkpoint=demo --out=analysis

Prints each episode turn by turn and writes to the output directory `episodes.jsonl` (records), `images/` (what the
model saw) and `index.html`, one page that shows it all and needs nothing else. What an earlier call wrote there is
replaced when all is done, and nothing else (docs/files.md).
"""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

from absl import flags
from etils import epath

from actfer_jax import analysis_page, cli, facs
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.analysis_page import call_text, why_no_answer
from actfer_jax.cli import printable
from actfer_jax.episode_records import to_record
from actfer_jax.errors import UserError
from actfer_jax.evaluation.command import load_policy
from actfer_jax.faces.images import ImageError, load_image
from actfer_jax.files import as_path, write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.records import EpisodeWriter, shards
from actfer_jax.rollout.engine import Query

RENDERED_ONLY = (
    "This model was trained on rendered faces only. Its readings of photographs show how the agent works; "
    "they are not to be relied upon."
)

PAGE, RECORDS = "index.html", "episodes.jsonl"
ANALYSIS = Output(
    "an analysis",
    re.compile(r"index\.html|episodes\.jsonl|images/[0-9a-f]+\.png"),
    last=PAGE,
    signs=(PAGE, RECORDS),
    folders=("images",),
)


def caveat(trained_on: Sequence[str]) -> str:
    """What must be known before believing a policy that was trained on these data sets, or ""."""
    return RENDERED_ONLY if set(trained_on) == {"synth_faces"} else ""


def analyze(paths: Sequence[str], checkpoint: str, out: epath.Path, dtype: str, landmarks: str = "") -> int:
    """Analyses pictures one after the other; those that cannot be read are reported and passed over.

    Where none could be read, nothing is written. Where the call ends early, what was read by then is written to `out`,
    or, with an earlier analysis there, to `out/interrupted`.

    Args:
      paths: the pictures.
      checkpoint, dtype, landmarks: as `load_policy` takes them.
      out: the directory to write.

    Returns:
      How many pictures could not be read.

    Raises:
      ConfigError, OutputError, OSError: the checkpoint does not load, or the output cannot be written.
    """
    check_directory(out, ANALYSIS)
    # Who interrupts a long list keeps what was read, but loses no earlier analysis by it.
    kept = out / "interrupted" if (out / PAGE).exists() else out
    check_directory(kept, ANALYSIS)
    agent, card = load_policy(checkpoint, dtype, landmarks)
    # One picture at a time, so that each reading is there as soon as it can be.
    engine = replace(agent, rollout=replace(agent.rollout, fill_rows=1)).engine(queries=1, group=1, greedy=True)
    note = caveat(card.trained_on)
    if note:
        print(note)
    sections, unread = list[str](), list[str]()
    with staged(out, ANALYSIS) as staging:
        writer = EpisodeWriter(staging)

        def finish(directory: epath.Path) -> None:
            write_atomically(staging / RECORDS, "".join(shard.read_text() for shard in shards(staging)))
            shutil.rmtree(staging / "episodes")
            page = analysis_page.page(sections, checkpoint=checkpoint, note=note, unread=unread)
            write_atomically(staging / PAGE, page)
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
                query = Query(index, "pictures", path, image, Reference(labels=card.labels))
                rollout = engine.run(agent.params, [query], seed=0, step=0).rollouts[0][0]
                faces = agent.toolbox.faces(query.key, image)
                print(f"\n{printable(path)}\n{transcript(rollout.episode, len(faces))}", flush=True)
                name = f"picture-{index}"
                record = to_record(rollout, id=name, reward=None, advantage=None, trained_on=card.trained_on)
                writer.write(index, [record])
                sections.append(analysis_page.section(path, image, rollout, faces))
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
      faces: how many faces there are in the picture.
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
    if answer is None or answer.answer is None:
        return "\n".join([*lines, f"  no answer: {why_no_answer(episode)}"])
    aus = ", ".join(f"AU{au} {facs.AU_NAMES[au]}" for au in sorted(answer.aus or ())) or "no action units"
    return "\n".join([*lines, f"  {printable(answer.answer)}: {aus}"])


def _indented(start: str, text: str) -> list[str]:
    first, *rest = [line for line in printable(text).split("\n") if line.strip()] or [""]
    return [(start + first).rstrip(), *(" " * len(start) + line for line in rest)]


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise UserError("give at least one picture: python -m actfer_jax.analyze photo.jpg --checkpoint=DIR --out=DIR")
    given = flags.FLAGS
    try:
        pictures = [str(as_path(picture)) for picture in argv[1:]]
    except ValueError as error:
        raise UserError(f"the name of a picture {error}") from error
    unread = analyze(pictures, given.checkpoint, given.out, given.dtype, str(given.landmarks or ""))
    if unread:
        sys.exit(f"error: {unread} of {len(argv) - 1} pictures could not be read")


if __name__ == "__main__":
    flags.DEFINE_string(
        "checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.", required=True
    )
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write; it may exist.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model's weights and activations.")
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    cli.run(main, arguments=True)
