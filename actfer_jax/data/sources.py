"""Data sets behind one interface: samples by index, in an order that is a pure function of (seed, step, row)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from actfer_jax.agent.episode import Reference
from actfer_jax.data import synth_faces
from actfer_jax.errors import UserError
from actfer_jax.faces.store import FaceStore
from actfer_jax.files import as_path, is_remote


class DataError(UserError, ValueError):
    """A data set, or one sample of it, that cannot be used; the message names it."""


@dataclass(frozen=True)
class Sample:
    """One picture with what is known about it.

    Attributes:
      dataset, name: where it comes from; the pair is unique.
      image: uint8 [H, W, 3].

    Raises:
      DataError: neither its action units nor its emotion are known: no answer about it can be right or wrong.
    """

    dataset: str
    name: str
    image: np.ndarray
    reference: Reference

    def __post_init__(self) -> None:
        if self.reference.emotion is None and not self.reference.has_aus:
            raise DataError(
                f"{self.dataset}/{self.name} has neither action units nor an emotion, so that nothing can be learnt "
                "from it: leave the sample out, or annotate it"
            )


class Samples(Protocol):
    """Random access to samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Source(Samples, Protocol):
    """A data set."""

    def is_subtle(self, index: int) -> bool:
        """Whether a sample's emotion is known to rest on what only a zoom resolves."""


@dataclass(frozen=True)
class DataConfig:
    """Which samples.

    Attributes:
      name: the data set; "synth_faces" renders its own.
      split: "train", "validation" or "test".
      size: how many samples of the split.
      directory: where prepared data is kept between runs.
    """

    name: str = "synth_faces"
    split: str = "train"
    size: int = 1024
    directory: str = "~/.cache/actfer_jax/data"

    def __post_init__(self) -> None:
        if self.name != "synth_faces":
            raise ValueError(f"name is {self.name!r}; the data sets are: synth_faces")
        if self.split not in ("train", "validation", "test"):
            raise ValueError(f"split is {self.split!r}; choose train, validation or test")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")
        try:
            remote = is_remote(as_path(self.directory))
        except ValueError as error:
            raise ValueError(f"directory {error}") from error
        if remote:
            raise ValueError(f"directory is {self.directory!r}; data is prepared on a disk of each host: give a path")


def open_face_store(config: DataConfig) -> FaceStore:
    """Where the faces found in the pictures of a data set are kept, beside the data."""
    return FaceStore(as_path(config.directory) / "faces.sqlite")


def order(source: Samples, seed: int) -> grain.MapDataset[Sample]:
    """An endless sequence of samples: element i is the same for a given seed, however many hosts or workers read it.

    Every pass over the source is shuffled anew, and element `step * batch + row` belongs to that row of that step, so
    one integer resumes it.
    """
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)


class SubtleSamples:
    """The samples of a source whose emotion is known to rest on what only a zoom resolves."""

    def __init__(self, source: Source):
        self.source = source
        self.indices = [index for index in range(len(source)) if source.is_subtle(index)]
        if not self.indices:
            raise DataError(f"none of the {len(source)} samples is subtle; raise config.data.size")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]


def batches(dataset: grain.MapDataset, batch: int, start: int) -> Iterator[list]:
    """Consecutive batches from batch number `start` on, two of them read ahead in threads."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch)
    rows = iter(dataset[start * batch :].to_iter_dataset(options))
    while True:
        yield [next(rows) for _ in range(batch)]


def open_source(config: DataConfig) -> Source:
    """The samples that a config names; what has to be prepared is prepared now, with progress."""
    return SynthFacesSource(config)


def emotion_labels(config: DataConfig) -> tuple[str, ...]:
    """The emotion labels of the data set that a config names."""
    return {"synth_faces": synth_faces.DEMO_EMOTIONS}[config.name]


class SynthFacesSource:
    """Rendered faces (`data.synth_faces`) as samples."""

    def __init__(self, config: DataConfig):
        self.split, self.labels = config.split, emotion_labels(config)
        self.faces = synth_faces.load(config.split, config.size, Path(as_path(config.directory)))

    def __len__(self) -> int:
        return len(self.faces)

    def is_subtle(self, index: int) -> bool:
        return self.faces.is_subtle(index)

    def __getitem__(self, index: int) -> Sample:
        face = self.faces[index]
        reference = Reference(
            labels=self.labels,
            emotion=face["emotion"],
            aus=frozenset(face["aus"]),
            extra={"subtle": face["subtle"], "deciding_region": face["deciding_region"], "fine": face["fine"]},
        )
        return Sample("synth_faces", f"{self.split}/{index:06d}", face["image"], reference)
