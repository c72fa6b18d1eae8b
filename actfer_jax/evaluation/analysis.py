"""Runs the agent on pictures, and writes pages, a table and records of its episodes."""

import csv
import io
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from actfer_jax import facs
from actfer_jax.cli import printable
from actfer_jax.episodes.page import Card, page, page_name
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import PICTURES, EpisodeWriter, Made, shards
from actfer_jax.evaluation.reading import Reading, load_policy
from actfer_jax.faces.choice import most_faces
from actfer_jax.faces.images import ImageError
from actfer_jax.files import write_atomically
from actfer_jax.outputs import Output, check_directory, publish, staged
from actfer_jax.progress import ProgressLine

PAGE, RECORDS, TABLE = page_name(1), "episodes.jsonl", "readings.csv"
PER_PAGE = 100
"""Pictures of a page."""
ANALYSIS = Output(
    "an analysis",
    re.compile(rf"index\.html|page-\d+\.html|{re.escape(RECORDS)}|{re.escape(TABLE)}|{PICTURES}"),
    last=RECORDS,
    signs=(PAGE, RECORDS),
    folders=("images",),
)
_GROWS_EVERY = 10  # Pictures, after the first. It divides those of a page, so that each page grows to its end.
_COLUMNS = ("file", "face", "box", "score", "emotion", "probability")
_AUS = {f"AU{au:02}": au for au in facs.AU_NAMES}


def analyze(
    paths: Sequence[str], checkpoint: str, out: epath.Path, dtype: str, landmarks: str = "", faces: str = "largest"
) -> int:
    """Analyses pictures one after the other. Those that cannot be read are reported and skipped.

    If no picture can be read, nothing is written. The pages and the table grow in `out` while it works, unless `out`
    has an earlier analysis, which is replaced when all is done. So a killed call leaves what it had read on pages that
    can be opened; the same command then starts anew. If the call ends early otherwise, all that was analysed by then
    is written to `out`, or to `out/interrupted` if `out` has an earlier analysis.

    Args:
      paths: the picture files.
      checkpoint, dtype, landmarks: as for `load_policy`.
      out: the directory to write.
      faces: which faces of a picture (`Policy.look_at_faces`).

    Returns:
      How many pictures could not be read.

    Raises:
      ConfigError, OutputError, OSError: the checkpoint does not load, or the output cannot be written.
      UserError: `faces` is no such word.
    """
    most_faces(faces)
    check_directory(out, ANALYSIS)
    # An interrupted call keeps what it has analysed, and overwrites no earlier analysis.
    earlier = (out / RECORDS).exists()
    kept = out / "interrupted" if earlier else out
    check_directory(kept, ANALYSIS)
    policy = load_policy(checkpoint, dtype, landmarks)
    if policy.note:
        print(policy.note)
    progress = ProgressLine("pictures")
    with staged(out, ANALYSIS) as staging:
        results = _Results(staging, policy.name, policy.note, len(paths))

        def finish(directory: epath.Path) -> None:
            results.finish()
            publish(staging, directory, ANALYSIS)
            print(f"\n{results.read} of {len(paths)} pictures analysed: {directory / PAGE}")

        try:
            for index, path in enumerate(paths):
                try:
                    readings = list(_printed(policy.look_at_faces(path, faces)))
                except ImageError as error:
                    print(f"error: {printable(str(error))}", file=sys.stderr)
                    results.add_unread(index, str(error))
                else:
                    results.add(index, readings, policy.card.trained_on)
                if len(paths) > 1:
                    progress(index + 1, len(paths))
                if results.read and not earlier and (results.read == 1 or (index + 1) % _GROWS_EVERY == 0):
                    results.grow(out)
        except BaseException:
            if results.read:
                finish(kept)
            raise
        if results.read:
            finish(out)
    return results.unread


def _printed(readings: Iterator[Reading]) -> Iterator[Reading]:
    for reading in readings:
        print(f"\n{printable(reading.name)}\n{reading.text}", flush=True)
        yield reading


@dataclass
class _Results:
    """What is written, in a directory of its own; only the cards of one page are in memory.

    Attributes:
      read, unread: how many pictures were, and could not be.
    """

    staging: Path
    policy: str
    note: str
    pictures: int
    read: int = 0
    unread: int = 0
    _done: int = 0
    _grown: bool = False
    _cards: list[Card] = field(default_factory=list)
    _messages: list[str] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._writer = EpisodeWriter(self.staging)

    def add(self, index: int, readings: Sequence[Reading], trained_on: Sequence[str]) -> None:
        self._turn_page(index)
        made = []
        for reading in readings:
            suffix = "" if len(readings) == 1 else f"-face-{reading.number}"
            made.append(as_record(reading, f"picture-{index}{suffix}", trained_on))
            self._rows.append(as_row(made[-1][0]))
            self._cards.append(reading.card)
        self._writer.write(index, made)
        self.read += 1

    def add_unread(self, index: int, message: str) -> None:
        self._turn_page(index)
        self._messages.append(message)
        self.unread += 1

    def _turn_page(self, index: int) -> None:
        if index and index % PER_PAGE == 0:
            self._write_page(self.staging)
            self._cards, self._messages = [], []
        self._done = index + 1

    def grow(self, out: epath.Path) -> None:
        """Brings the page of now and the table to where they can be opened."""
        new = self.staging / "growing"
        new.mkdir()
        self._write_page(new)
        self._write_table(new)
        publish(new, out, ANALYSIS, stay=self._grown)
        shutil.rmtree(new)
        self._grown = True

    def finish(self) -> None:
        """Completes what is in the directory, as `ANALYSIS` has it."""
        shutil.rmtree(self.staging / "growing", ignore_errors=True)
        self._write_page(self.staging)
        self._write_table(self.staging)
        with (self.staging / RECORDS).open("wb") as records:
            for shard in shards(self.staging):
                records.write(shard.read_bytes())
        shutil.rmtree(self.staging / "episodes")

    @property
    def _number(self) -> int:
        """Of the page of now."""
        return (self._done - 1) // PER_PAGE + 1

    def _write_page(self, directory: Path) -> None:
        pages, number = -(-self.pictures // PER_PAGE), self._number
        text = page(
            self._cards,
            heading=self._heading(number),
            note=self.note,
            unread=self._messages,
            number=number,
            pages=pages,
        )
        write_atomically(directory / page_name(number), text, sync=False)

    def _heading(self, number: int) -> str:
        if self.pictures <= PER_PAGE:
            count = "1 picture" if self.read == 1 else f"{self.read} pictures"
            of = f" of {self.pictures} so far" if self._done < self.pictures else ""
            return f"{count}{of}, read by {self.policy}."
        first, last = (number - 1) * PER_PAGE + 1, min(number * PER_PAGE, self.pictures)
        of = f", {self._done} of them done" if self._done < last else ""
        return f"Pictures {first} to {last} of {self.pictures}{of}, read by {self.policy}."

    def _write_table(self, directory: Path) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, [*_COLUMNS, *_AUS], lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        write_atomically(directory / TABLE, text.getvalue(), sync=False)


def as_record(reading: Reading, id: str, trained_on: Sequence[str]) -> Made:
    """A reading as a record, and its views. The record also has `face` and `crop` (episodes.record)."""
    record, views = to_record(
        reading.rollout,
        id=id,
        reward=None,
        advantage=None,
        trained_on=trained_on,
        confidence=reading.probability,
    )
    face = reading.face
    found = {
        "number": reading.number,
        "of": len(reading.faces),
        "box": None if face is None else list(map(float, face.box)),
        "score": None if face is None else float(face.score),
    }
    return {**record, "face": found, "crop": reading.crop}, views


def as_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of the table. What is not known is empty."""
    face, prediction = record["face"], record["prediction"]
    aus = prediction["aus"]
    return {
        "file": record["image"],
        "face": face["number"],
        "box": None if face["box"] is None else " ".join(f"{side:.1f}" for side in face["box"]),
        "score": None if face["score"] is None else f"{face['score']:.3f}",
        "emotion": prediction["emotion"],
        "probability": None if record["confidence"] is None else f"{record['confidence']:.4f}",
    } | {column: None if aus is None else int(au in aus) for column, au in _AUS.items()}
