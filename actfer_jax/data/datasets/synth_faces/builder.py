"""Rendered faces on disk: a TensorFlow Datasets builder, and a random-access source over its files.

A data set is a range of seeds of one split, rendered in parts of up to `PART` faces. A part is written under a
temporary name and renamed when it is complete. So a stopped build continues with the part it was in.
"""

import fcntl
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from actfer_jax.data.datasets.synth_faces import second_world
from actfer_jax.data.datasets.synth_faces.renderer import Rendered, render
from actfer_jax.data.datasets.synth_faces.world import STREAMS, FaceSpec, face_of, level
from actfer_jax.data.errors import DataError
from actfer_jax.facs import EMOTIONS, REGIONS
from actfer_jax.files import reason

VERSION = "1.5.0"
"""Changes with every change of the images. Parts of another version stay, and the new ones are built next to them."""

SECOND_VERSION = "2.0.0"
"""The same for the second edition."""

PART = 1000

RenderAll = Callable[..., Iterator[dict[str, Any]]]
"""`map` or the like: takes a function and its arguments, and gives the results in order."""


@dataclass(kw_only=True)
class FacesConfig(tfds.core.BuilderConfig):  # type: ignore[misc]  # their library has no types
    """Faces `start` to `stop` of `split` (a key of `world.STREAMS`), rendered at `size` x `size` pixels. `subtle` is
    the share of subtle faces of the second edition, and None for the first."""

    split: str = "train"
    start: int = 0
    stop: int = PART
    size: int = 512
    subtle: float | None = None


def faces_config(split: str, start: int, stop: int, size: int, subtle: float | None = None) -> FacesConfig:
    """A config whose name has all its values."""
    share = "" if subtle is None else f"_{subtle:g}"
    name = f"{split}_{size}px{share}_{start:06d}_{stop:06d}"
    return FacesConfig(name=name, split=split, start=start, stop=stop, size=size, subtle=subtle)


def encode_face(task: tuple[str, int, int]) -> dict[str, Any]:
    """Renders face (split, index, size) as an example of `SynthFaces`, with the image as PNG bytes."""
    split, index, size = task
    spec = face_of(split, index)
    return _encode(spec, render(spec, size), split, index)


def encode_second_face(subtle: float, task: tuple[str, int, int]) -> dict[str, Any]:
    """Renders face (split, index, size) as an example of `SecondFaces`."""
    split, index, size = task
    spec = second_world.face_of(split, index, subtle)
    rendered = render(spec, size)
    return _encode(spec, rendered, split, index) | {
        "strata": list(second_world.strata(spec)),
        "which": second_world.which(spec),
        "box": np.array(rendered.face_box, np.float32),
    }


def _encode(spec: FaceSpec, rendered: Rendered, split: str, index: int) -> dict[str, Any]:
    png = io.BytesIO()
    Image.fromarray(rendered.image).save(png, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return {
        "image": png.getvalue(),
        "emotion": spec.emotion,
        "aus": [{"au": au, "intensity": level(strength), "fine": au in spec.fine} for au, strength in spec.aus.items()],
        "landmarks": rendered.landmarks.astype(np.float32),
        "subtle": spec.subtle,
        "deciding_region": spec.deciding_region or "none",
        "seed": np.array([STREAMS[split], index], dtype=np.int64),
    }


class SynthFaces(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # their library has no types
    """Rendered faces with action units, emotion and landmarks, in the order of their seeds."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [faces_config(split, 0, 700, 512) for split in STREAMS]
    FEATURES: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, render_all: RenderAll = map, **kwargs: Any) -> None:
        """`render_all` is `map` or the like, for example of a process pool."""
        self._render_all = render_all
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "emotion": tfds.features.ClassLabel(names=EMOTIONS),
                    "aus": tfds.features.Sequence({"au": np.int32, "intensity": np.int32, "fine": np.bool_}),
                    "landmarks": tfds.features.Tensor(shape=(68, 2), dtype=np.float32),
                    "subtle": np.bool_,
                    "deciding_region": tfds.features.ClassLabel(names=("none", *REGIONS)),
                    "seed": tfds.features.Tensor(shape=(2,), dtype=np.int64),
                }
                | self.FEATURES
            ),
        )

    def _log_download_bytes(self) -> None:
        """Logs nothing: nothing is downloaded, and `load` shows the progress."""

    _log_download_done = _log_download_bytes

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        tasks = [(config.split, index, config.size) for index in range(config.start, config.stop)]
        encode = encode_face if config.subtle is None else partial(encode_second_face, config.subtle)
        for (_, index, _), example in zip(tasks, self._render_all(encode, tasks), strict=True):
            yield index, example | {"image": io.BytesIO(example["image"])}


class SecondFaces(SynthFaces):
    """Rendered faces of the second edition, with their strata; where two are in a picture, which one is meant."""

    name = "synth_faces_2"
    VERSION = tfds.core.Version(SECOND_VERSION)
    BUILDER_CONFIGS = [faces_config(split, 0, 800, 512, 0.5) for split in STREAMS]
    FEATURES: ClassVar[dict[str, Any]] = {
        "strata": tfds.features.Sequence(tfds.features.Text()),
        "which": tfds.features.Text(),
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
    }


class Part(NamedTuple):
    """Built faces: the records of one directory, by index."""

    directory: Path
    records: Any


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Turns any error in this context into a DataError: the libraries raise anything over damaged files."""
    try:
        yield
    except Exception as error:
        file = next(directory.glob("*.array_record*"), directory)
        raise DataError(
            f"{file}: these rendered faces are damaged, cut short or gone ({str(error).partition(chr(10))[0]}); delete "
            f"the directory {directory}, and the same command renders them anew"
        ) from error


class FaceSource:
    """Random access to built faces: `len(source)`, `source[i]`.

    An item is a dict: image uint8 [size, size, 3]; emotion str; aus dict of AU to intensity 1..5 (A..E); fine, the
    frozenset of AUs that show only as fine lines; landmarks float32 [68, 2] in pixels; subtle bool;
    deciding_region str ("" if plain); seed tuple (stream, index). Of the second edition, it has in addition which str,
    the face that is meant; box float32 [4], left, top, right, bottom of its landmarks in pixels; strata tuple of str.

    Raises:
      DataError: when an item is read, a file is damaged, cut short or gone.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part.records) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def is_subtle(self, index: int) -> bool:
        """Whether a face is subtle, without decoding its image."""
        part, row = self._place(index)
        with _reading(part.directory):
            return bool(part.records[row]["subtle"])

    def strata(self, index: int) -> tuple[str, ...]:
        """The strata of a face of the second edition, without decoding its image."""
        part, row = self._place(index)
        with _reading(part.directory):
            return tuple(name.decode() for name in part.records[row]["strata"])

    def _place(self, index: int) -> tuple[Part, int]:
        """The part that holds a face, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"face {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], int(index - (self._ends[number - 1] if number else 0))

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, row = self._place(index)
        with _reading(part.directory):
            raw = part.records[row]
            aus = raw["aus"]
            return {
                "image": np.asarray(Image.open(io.BytesIO(raw["image"]))),
                "emotion": EMOTIONS[int(raw["emotion"])],
                "aus": {int(au): int(intensity) for au, intensity in zip(aus["au"], aus["intensity"], strict=True)},
                "fine": frozenset(int(au) for au, fine in zip(aus["au"], aus["fine"], strict=True) if fine),
                "landmarks": raw["landmarks"],
                "subtle": bool(raw["subtle"]),
                "deciding_region": ("", *REGIONS)[int(raw["deciding_region"])],
                "seed": (int(raw["seed"][0]), int(raw["seed"][1])),
                **({"which": raw["which"].decode(), "box": raw["box"]} if "which" in raw else {}),
            }


class _Progress:
    """Counts rendered faces on stderr, with the rate and the time left."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.start = self.shown = time.monotonic()

    def count(self, examples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for example in examples:
            self.done += 1
            now = time.monotonic()
            if now - self.shown > 5 or self.done == self.total:
                self.shown = now
                rate = self.done / max(now - self.start, 1e-9)
                left = (self.total - self.done) / rate
                print(
                    f"{self.name}: {self.done}/{self.total} faces rendered, {rate:.0f}/s, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
            yield example


def _end_with_parent() -> None:
    """Makes this worker end as soon as its parent process ends, and not only when its queue is empty. A terminal sends
    its signals to both; only the parent handles them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _renderers(stack: ExitStack, workers: int) -> RenderAll:
    """`map`, or the `map` of a process pool that ends with `stack`."""
    if workers == 1:
        return map
    # Forking a process in which JAX or TensorFlow runs threads can hang.
    spawn = multiprocessing.get_context("spawn")
    pool = stack.enter_context(ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent))
    return lambda function, tasks: pool.map(function, tasks, chunksize=8)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Waits until no other process builds in a directory, so that no face is rendered twice.

    Raises:
      DataError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "synth_faces.lock").open("w")
    except OSError as error:
        raise DataError(
            f"{directory} does not hold all the faces that are wanted, and cannot be written ({reason(error)}): render "
            "them where it can be, or give another directory with config.data.cache_directory"
        ) from error
    # The system releases the lock of a process that ends in any way.
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process renders faces into {directory}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load(
    split: str,
    num: int,
    data_dir: str | os.PathLike[str],
    *,
    size: int = 512,
    jobs: int | None = None,
    subtle: float | None = None,
) -> FaceSource:
    """The first `num` faces of a split. Faces missing from `data_dir` are rendered into it.

    Args:
      split: "train", "validation" or "test". Their seeds are disjoint, and 7 k faces (8 k of the second edition) are k
        of each emotion.
      num: how many faces, at least 1.
      data_dir: the folder that holds `synth_faces/<split>_<size>px_<start>_<stop>/<version>`.
      size: side of the square scenes in pixels, 64 to 1024.
      jobs: the number of rendering processes; by default one for each core.
      subtle: the share of subtle faces of the second edition; None for the first.

    Raises:
      ValueError: an argument is out of range.
      DataError: built faces are damaged or gone, or missing faces cannot be written.
    """
    if split not in STREAMS:
        raise ValueError(f"split {split!r} is not one of {', '.join(STREAMS)}")
    if num < 1:
        raise ValueError(f"num is {num}; ask for at least one face")
    if not 64 <= size <= 1024:
        raise ValueError(f"size is {size}; scenes have 64 to 1024 pixels a side")
    bounds = [(start, min(start + PART, num)) for start in range(0, num, PART)]
    builder = SynthFaces if subtle is None else SecondFaces

    def directory(start: int, stop: int) -> Path:
        config = faces_config(split, start, stop, size, subtle)
        return Path(data_dir) / builder.name / config.name / str(builder.VERSION)

    def part(start: int, stop: int, render_all: RenderAll = map) -> SynthFaces:
        config = faces_config(split, start, stop, size, subtle)
        config = builder.builder_configs.get(config.name, config)  # A listed name needs the listed config.
        return builder(config=config, data_dir=os.fspath(data_dir), file_format="array_record", render_all=render_all)

    def missing() -> list[tuple[int, int]]:
        return [(start, stop) for start, stop in bounds if not directory(start, stop).exists()]

    def opened(start: int, stop: int) -> Part:
        with _reading(directory(start, stop)):
            skip = {"image": tfds.decode.SkipDecoding()}
            records = part(start, stop).as_data_source(split, decoders=skip)
            if len(records) != stop - start:
                raise ValueError(f"{len(records)} faces instead of {stop - start}")
            records[0]  # Finds a file that is gone or cut short now, and not in the middle of a run.
        return Part(directory(start, stop), records)

    # The library warns of every config that it does not list.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        if missing():
            with ExitStack() as stack:
                stack.enter_context(_alone(Path(data_dir)))
                build = missing()  # Another process may have built some in the meantime.
                total = sum(stop - start for start, stop in build)
                render_all = _renderers(stack, min(jobs or os.cpu_count() or 1, max(total // 32, 1)))
                progress = _Progress(f"{builder.name} {split}", total)
                tfds.disable_progress_bar()
                for start, stop in build:
                    part(start, stop, lambda *tasks: progress.count(render_all(*tasks))).download_and_prepare()
        return FaceSource([opened(start, stop) for start, stop in bounds])
    finally:
        logging.set_verbosity(verbosity)
