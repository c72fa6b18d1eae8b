"""Episode records: everything that happened in an episode, for people and for other programs.

`workdir/episodes/step-00000010-host0.jsonl`, a shard, holds one JSON object a line, and `step-00000010-host0.index`
beside it a short line for each (`index`), from which `read_record` finds one record among many. The views are PNG files
in `workdir/images/ab/`, named by their content: equal views of several rollouts share a file, and no folder becomes
long. Training, evaluation and analysis write the same format; the files of an evaluation are named by control, as
`no_tools-00000010-host0.jsonl`.
"""

import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from actfer_jax.episodes.index import entry
from actfer_jax.errors import UserError
from actfer_jax.faces.views import View
from actfer_jax.files import is_remote, write_atomically

SCHEMA = 2
"""Of the records that are written. Those of 1, which have neither `schema` nor `arm` and no index, are read too."""
# The keys of every record; a value that does not apply is None. The writer adds `schema` and `images`.
KEYS = (
    "id",  # str, unique in the run
    "dataset",  # str
    "image",  # str: the sample's name
    "turns",  # a list of {text, call, reply: {text, ok, tool, region, inspects}, view: {name, size, ...}, seconds}
    "token_ids",  # of the whole episode with prompt and replies, as the next three lists; None of a server's model
    "loss_mask",  # 1 where the policy wrote
    "logprobs",  # of the distribution that was sampled
    "raw_logprobs",  # at temperature 1, nothing banned
    "prediction",  # {aus, emotion}
    "reference",
    "reward",  # its parts by name
    "advantage",
)
PICTURES = r"images/(?:[0-9a-f]{2}/)?[0-9a-f]+\.png"
"""A pattern of the files of views. Those of schema 1 lie in `images/` itself."""
SHARD = r"[a-z][a-z_]*-(\d+)-host(\d+)"
"""A pattern of the names of shards, without their ending: what they are of, its number, and the host."""
RECORD_FILES = rf"episodes/{SHARD}\.(?:jsonl|index)|{PICTURES}"
"""A pattern of the files that `EpisodeWriter` writes."""
Made = tuple[Mapping[str, Any], Sequence[View]]
"""A record as it is made, and its views in the order of their placeholders."""
_THREADS = 16  # Compressing keeps a few of them busy; with an object store they mostly wait.


class RecordError(UserError, ValueError):
    """A record that cannot be written or read."""


class EpisodeWriter:
    """Writes the episodes of one host of a run.

    Args:
      workdir: an existing directory.
      host: the index of this process.
    """

    def __init__(self, workdir: epath.PathLike, host: int = 0):
        self._workdir = epath.Path(workdir)
        self._host = host
        (self._workdir / "episodes").mkdir(exist_ok=True)
        (self._workdir / "images").mkdir(exist_ok=True)

    def write(self, step: int, episodes: Iterable[Made], of: str = "step") -> epath.Path:
        """Writes the shard of a step, all of it or nothing; a shard of the same step is replaced.

        The pictures come first and the index last. So no record that is there lacks a picture, and an index that is
        there is that of its shard.

        Args:
          step: the training step, or a number that no other shard of an evaluation has.
          episodes: records with `KEYS` (numpy values, tuples and sets allowed). Their `images` become the file names of
            their views.
          of: what the shard's name begins with: "step", or in an evaluation the control.

        Returns:
          The shard's path.

        Raises:
          RecordError: a key is missing, a value has no JSON form (NaN included), or a view is not uint8 [H, W, 3].
          OSError: the disk is full; names the file.
        """
        path = self._workdir / "episodes" / f"{of}-{step:08d}-host{self._host}.jsonl"
        views = dict[str, View]()
        lines, index, offset = [], [], 0
        for made, its_views in episodes:
            record = finished(made, its_views)
            views.update(zip(record["images"], its_views, strict=True))
            lines.append(as_line(record))
            index.append(as_line(_place(path, offset, lines[-1]) | entry(record)))
            offset += len(lines[-1])
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._save_picture, views.keys(), views.values()):
                pass  # An error is raised here.
        index_of(path).unlink(missing_ok=True)
        write_atomically(path, b"".join(lines))
        write_atomically(index_of(path), b"".join(index))
        return path

    def drop_after(self, step: int) -> None:
        """Deletes the shards of all hosts after a restored step (-1: all shards)."""
        for shard in shards(self._workdir, after=step):
            remove(shard)

    def _save_picture(self, name: str, view: View) -> None:
        path = self._workdir / name
        # Asking an object store takes as long as writing, and it has no directories.
        if is_remote(path):
            write_atomically(path, png(view))
        elif not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, png(view), sync=False)


def finished(record: Mapping[str, Any], views: Sequence[View]) -> dict[str, Any]:
    """A record as it is written: in JSON's types, with `schema` and the file names of its views as `images`.

    Raises:
      RecordError: a key is missing, a value has no JSON form, or a view is not uint8 [H, W, 3].
    """
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise RecordError(f"episode {record.get('id', '?')!r} has no {', '.join(missing)}")
    images = [picture_name(view) for view in views]
    plain: dict[str, Any] = _plain({"schema": SCHEMA, **record, "images": images}, f"episode {record['id']!r}")
    return plain


def as_line(value: Mapping[str, Any]) -> bytes:
    """A line of a shard or of an index."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def picture_name(view: View) -> str:
    """The file of a view, relative to the workdir: `images/ab/<hash of its size and pixels, which begins with ab>.png`.

    Raises:
      RecordError: the pixels are not uint8 [H, W, 3].
    """
    pixels = view.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise RecordError(f"a picture is uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}")
    return f"images/{view.digest[:2]}/{view.digest[:24]}.png"


def png(view: View) -> bytes:
    """The content of a view's file."""
    data = io.BytesIO()
    # Level 6 takes 10% less room and four to six times as long.
    Image.fromarray(view.pixels).save(data, "png", compress_level=1)
    return data.getvalue()


def shards(workdir: epath.PathLike, after: int = -1) -> list[epath.Path]:
    """The shards in a workdir of steps greater than `after`, by step and host."""
    directory = epath.Path(workdir) / "episodes"
    paths = (
        [path for path in directory.iterdir() if re.fullmatch(rf"{SHARD}\.jsonl", path.name)]
        if directory.exists()
        else []
    )
    return sorted((path for path in paths if step_of(path) > after), key=_number)


def step_of(shard: epath.Path) -> int:
    """The step of a shard."""
    return _number(shard)[0]


def index_of(shard: epath.Path) -> epath.Path:
    """The index of a shard."""
    return shard.with_suffix(".index")


def remove(shard: epath.Path, aside: epath.Path | None = None) -> None:
    """Moves a shard and its index into a directory, which is made; without one, deletes them."""
    for path in (index_of(shard), shard):  # The shard last: it is what is found after a kill in between.
        if aside is None:
            path.unlink(missing_ok=True)
        elif path.exists():
            aside.mkdir(parents=True, exist_ok=True)
            path.rename(aside / path.name)


def read_episodes(workdir: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The episode records in a workdir, by step, host and order of writing.

    Raises:
      RecordError: a line is not a record, or one of a newer version; the message gives its file and number.
    """
    for shard in shards(workdir):
        for _, record in _read_shard(shard):
            yield record


def read_step(workdir: epath.PathLike, step: int) -> list[dict[str, Any]]:
    """The episode records of a step, by host and order of writing. Raises as `read_episodes`."""
    of_step = [shard for shard in shards(workdir, after=step - 1) if step_of(shard) == step]
    return [record for shard in of_step for _, record in _read_shard(shard)]


def read_index(workdir: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The lines (`index`) of the episodes in a workdir, in the order of `read_episodes`.

    Of a shard without an index, from an older version or after a kill, they are made from its records.

    Raises:
      RecordError: a line is not what it should be; the message gives its file and number.
    """
    for shard in shards(workdir):
        if index_of(shard).exists():
            for number, line in enumerate(index_of(shard).read_text().splitlines(), start=1):
                try:
                    yield dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise RecordError(f"{index_of(shard)}, line {number}: {error}; delete the file") from error
        else:
            for place, record in _read_shard(shard):
                try:
                    yield place | entry(record)
                except (KeyError, TypeError) as error:
                    where = f"{shard}, episode {record['id']!r}"
                    raise RecordError(f"{where} is of an older version, which has no {error}") from error


def read_record(workdir: epath.PathLike, line: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a line of `read_index`, without reading others.

    Raises:
      RecordError: there is no record.
    """
    shard = epath.Path(workdir) / line["shard"]
    with shard.open("rb") as file:
        file.seek(line["offset"])
        return _read_record(file.read(line["bytes"]), f"{shard}, byte {line['offset']}")


def _read_shard(shard: epath.Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The records of a shard, each with the place where it lies."""
    offset = 0
    with shard.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield _place(shard, offset, line), _read_record(line, f"{shard}, line {number}")
            offset += len(line)


def _place(shard: epath.Path, offset: int, line: bytes) -> dict[str, Any]:
    return {"shard": f"episodes/{shard.name}", "offset": offset, "bytes": len(line), "step": step_of(shard)}


def _read_record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        missing = [key for key in (*KEYS, "images") if key not in record]
    except (ValueError, TypeError) as error:
        raise RecordError(f"{where} is not an episode record: {error}") from error
    if missing:
        raise RecordError(f"{where} is not an episode record: it has no {', '.join(missing)}")
    if record.get("schema", 1) not in range(1, SCHEMA + 1):
        raise RecordError(f"{where} has schema {record['schema']}; this version reads 1 to {SCHEMA}, a newer more")
    return record


def _number(path: epath.Path) -> tuple[int, int]:
    match = re.fullmatch(rf"{SHARD}\.jsonl", path.name)
    assert match is not None
    return int(match[1]), int(match[2])


def _plain(value: Any, where: str) -> Any:
    """The value in JSON's types; sets are sorted."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(f"{where} is {value}: records hold finite numbers, or null where there is none")
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}, {key}") for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return _plain(sorted(value), where)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and np.isfinite(value).all():
        return value.tolist()  # Long arrays (token ids, log-probabilities) at once.
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where)
    raise RecordError(f"{where} is {type(value).__name__}, which has no JSON form")
