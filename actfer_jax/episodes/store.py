"""Episode records: everything that happened in an episode, for people and for other programs.

`workdir/episodes/step-00000010-host0.jsonl` holds one JSON object a line. The views are PNG files in `workdir/images`,
named by their content, so that equal views of several rollouts share a file. Training, evaluation and analysis write
the same format.
"""

import hashlib
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

from actfer_jax.errors import UserError
from actfer_jax.files import is_remote, write_atomically

# The keys of every record; a value that does not apply is None. The writer adds `images`.
KEYS = (
    "id",  # str, unique in the run
    "dataset",  # str
    "image",  # str: the sample's name
    "turns",  # a list of {text, call, reply: {text, ok}, view: {name, size, to_original [2][3], ...}, seconds}
    "token_ids",  # of the whole episode with prompt and replies, as the next three lists
    "loss_mask",  # 1 where the policy wrote
    "logprobs",  # of the distribution that was sampled
    "raw_logprobs",  # at temperature 1, nothing banned
    "prediction",  # {aus, emotion}
    "reference",
    "reward",  # its parts by name
    "advantage",
)
RECORD_FILES = r"episodes/step-\d+-host\d+\.jsonl|images/[0-9a-f]+\.png"
"""A pattern of the files that `EpisodeWriter` writes."""
_THREADS = 16  # Compressing keeps a few of them busy; with an object store they mostly wait.
_SHARD = re.compile(r"step-(\d+)-host(\d+)\.jsonl")


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

    def write(self, step: int, episodes: Iterable[tuple[Mapping[str, Any], Sequence[np.ndarray]]]) -> epath.Path:
        """Writes the shard of a step, all of it or nothing; a shard of the same step is replaced.

        Args:
          step: the training step, or the number of the evaluation batch.
          episodes: pairs of a record with `KEYS` (numpy values, tuples and sets allowed) and its views, uint8
            [H, W, 3], in the order of their placeholders. The record's `images` become their file names.

        Returns:
          The shard's path.

        Raises:
          RecordError: a key is missing, a value has no JSON form (NaN included), or a view is not uint8 [H, W, 3].
          OSError: the disk is full; names the file.
        """
        lines, unsaved = [], dict[str, np.ndarray]()
        for record, pictures in episodes:
            missing = [key for key in KEYS if key not in record]
            if missing:
                raise RecordError(f"episode {record.get('id', '?')!r} has no {', '.join(missing)}")
            images = [picture_name(picture) for picture in pictures]
            unsaved.update(zip(images, pictures, strict=True))
            plain = _plain({**record, "images": images}, f"episode {record['id']!r}")
            lines.append(json.dumps(plain, allow_nan=False) + "\n")
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._save_picture, unsaved.keys(), unsaved.values()):
                pass  # An error is raised here.
        path = self._workdir / "episodes" / f"step-{step:08d}-host{self._host}.jsonl"
        write_atomically(path, "".join(lines))
        return path

    def drop_after(self, step: int) -> None:
        """Deletes the shards of all hosts after a restored step (-1: all shards)."""
        for path in shards(self._workdir, after=step):
            path.unlink(missing_ok=True)

    def _save_picture(self, name: str, pixels: np.ndarray) -> None:
        path = self._workdir / name
        # Asking an object store takes as long as writing.
        if is_remote(path) or not path.exists():
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "png", compress_level=1)
            write_atomically(path, data.getvalue(), sync=False)


def picture_name(pixels: np.ndarray) -> str:
    """The file of a view, relative to the workdir: `images/<hash of its size and pixels>.png`.

    Args:
      pixels: uint8 [H, W, 3].

    Raises:
      RecordError: the pixels have another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise RecordError(f"a picture is uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}")
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return f"images/{digest[:24]}.png"


def shards(workdir: epath.PathLike, after: int = -1) -> list[epath.Path]:
    """The shards in a workdir of steps greater than `after`, by step and host."""
    directory = epath.Path(workdir) / "episodes"
    paths = [path for path in directory.iterdir() if _SHARD.fullmatch(path.name)] if directory.exists() else []
    return sorted((path for path in paths if step_of(path) > after), key=_number)


def step_of(shard: epath.Path) -> int:
    """The step of a shard."""
    return _number(shard)[0]


def read_episodes(workdir: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The episode records in a workdir, by step, host and order of writing.

    Raises:
      RecordError: a line is not a record; the message gives its file and number.
    """
    for path in shards(workdir):
        with path.open() as lines:
            for number, line in enumerate(lines, start=1):
                yield _read_record(line, f"{path}, line {number}")


def _read_record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        missing = [key for key in (*KEYS, "images") if key not in record]
    except (ValueError, TypeError) as error:
        raise RecordError(f"{where} is not an episode record: {error}") from error
    if missing:
        raise RecordError(f"{where} is not an episode record: it has no {', '.join(missing)}")
    return record


def _number(path: epath.Path) -> tuple[int, int]:
    match = _SHARD.fullmatch(path.name)
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
