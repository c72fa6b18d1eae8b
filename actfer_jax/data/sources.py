"""Data sets behind one interface: samples by index, in an order that is a pure function of (seed, step, row)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import grain

from actfer_jax import cli, facs, plugins
from actfer_jax.agent.episode import Sample
from actfer_jax.config import ConfigError, Count, FieldError, check_fields, named_config, read_config
from actfer_jax.data.cache import open_cache
from actfer_jax.data.errors import DataError
from actfer_jax.faces.images import ImageError
from actfer_jax.faces.store import FaceStore
from actfer_jax.files import as_path, is_remote

Element = TypeVar("Element")

ALL = "all"
"""As `data.split`: the records of every split, and those of none."""


class Samples(Protocol):
    """Random access to samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample of an index.

        Raises:
          ImageError, OSError: its picture cannot be read. Training from rollouts goes on without it.
        """


class Source(Samples, Protocol):
    """A data set.

    One that can leave pictures of others out (`DataConfig.exclude`) also has `excluded`: how many, by data set. One
    that knows the `reference(index)` of a sample without reading its images can be mixed by class (`mixture`).
    """

    def strata(self, index: int) -> tuple[str, ...]:
        """The strata of a sample (`Reference.strata`), without reading its images."""


@dataclass(frozen=True)
class DataConfig:
    """The choice of samples. The `Config` of each module in `data.datasets` extends this and adds its own checks.

    Attributes:
      name: the data set: a module of `data.datasets`, or the dotted name of a user's module.
      split: one of the data set's splits.
      size: how many samples of the split, at least 1; None for all.
      directory: the directory of the data set's own files; "" if it has none.
      exclude: data sets whose pictures are left out before `size` counts, each as `read_named_set` reads it.
      cache_directory: a separate directory that keeps rendered faces, and the faces found in images, between runs. It
        may be deleted at any time.
    """

    FOLDER: ClassVar[str] = "data.datasets"

    name: str = "synth_faces"
    split: str = "train"
    size: Count | None = None
    directory: str = ""
    exclude: tuple[str, ...] = ()
    cache_directory: str = "~/.cache/actfer_jax/data"

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            remote = is_remote(as_path(self.cache_directory))
        except ValueError as error:
            raise FieldError("cache_directory", f"{error}") from error
        if remote:
            raise FieldError(
                "cache_directory", f"is {self.cache_directory!r}; data is prepared on a disk of each host: give a path"
            )
        for index, text in enumerate(self.exclude):
            try:
                read_named_set(text)
            except ConfigError as error:
                raise FieldError(f"exclude[{index}]", f"is {text!r}: {error}") from error

    @property
    def lineage(self) -> tuple[str, ...]:
        """What a policy that learns from these samples is said to be trained on."""
        return (self.name,)


class NamedSet(NamedTuple):
    """A data set that is named in a text.

    Attributes:
      text: as it was given.
      config: its section.
      split: the split that is meant; None for every one.
    """

    text: str
    config: DataConfig
    split: str | None


def read_named_set(text: str) -> NamedSet:
    """Reads "NAME:DIR", which is every split of a data set, or "NAME:DIR,KEY=VALUE,..." with more keys of its config,
    such as "raf_db:DIR,split=test".

    Raises:
      ConfigError: it is no such text, or the data set has no files of pictures.
    """
    name, colon, rest = text.partition(":")
    directory, *settings = re.split(r",(?=\w+=)", rest)
    if not colon or not directory:
        raise ConfigError("give NAME:DIR, or with more keys NAME:DIR,split=test")
    keys = read_settings(name, settings)
    if not hasattr(plugins.load(DataConfig.FOLDER, name), "inventory"):
        raise ConfigError(f"{name} has no files of pictures (no `inventory`, docs/extending.md)")
    config = read_config({"name": name, "directory": directory} | keys, DataConfig, "")
    return NamedSet(text, config, keys.get("split"))


def read_settings(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Texts KEY=VALUE as keys of a data set's config.

    Raises:
      ConfigError: a text has no "=".
    """
    kinds = {field.name: field.type for field in fields(named_config(DataConfig, name, "NAME"))}
    keys = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"{setting} is not KEY=VALUE")
        keys[key] = cli.literal(value, kinds.get(key))
    return keys


def open_face_store(config: DataConfig) -> FaceStore:
    """The store of the faces found in a data set's images.

    Raises:
      DataError, OSError: the cache, or the file in it, cannot be used.
    """
    return FaceStore(open_cache(config.cache_directory) / "faces.sqlite")


@dataclass(frozen=True)
class Unreadable:
    """In place of a sample whose picture cannot be read: why, with the name of its file."""

    problem: str


def check_reference(sample: Sample) -> Sample:
    """Returns the sample if an answer to it can be right.

    Raises:
      DataError: neither its action units nor its emotion are known, or its emotion is no label of its data set.
    """
    reference, name = sample.reference, f"{sample.dataset}/{sample.name}"
    if reference.emotion is None and not reference.has_aus:
        raise DataError(
            f"{name} has neither action units nor an emotion, so that nothing can be learnt from it: leave the sample "
            "out, or annotate it"
        )
    labels = {facs.normalise_emotion(label) for label in reference.labels}
    if reference.emotion is not None and facs.normalise_emotion(reference.emotion) not in labels:
        there = (
            f"the labels of the data set are {', '.join(reference.labels)}" if labels else "the data set has no labels"
        )
        raise DataError(
            f"{name} has the emotion {reference.emotion!r}, and {there}: add it to the labels, or leave the sample out"
        )
    return sample


def order(source: Samples, seed: int) -> grain.MapDataset[Sample]:
    """An endless sequence of samples. The seed alone decides element i, with any number of hosts or workers.

    Every pass over the source is shuffled anew. Element `step * batch + row` belongs to that row of that step, so one
    integer resumes the sequence.
    """
    return shuffled(source, seed).map(check_reference)


def order_with_unreadable(source: Samples, seed: int) -> grain.MapDataset[Sample | Unreadable]:
    """The sequence of `order`, in which a sample whose picture cannot be read is marked, where `order` raises."""
    return shuffled(_Marked(source), seed)


class _Marked:
    def __init__(self, source: Samples):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        return read_sample(self.source, index)


def read_sample(source: Samples, index: int) -> Sample | Unreadable:
    """The sample of an index, or why its picture cannot be read.

    Raises:
      DataError: no answer to it can be right (`check_reference`).
    """
    try:
        return check_reference(source[index])
    except (ImageError, OSError) as error:
        return Unreadable(str(error) or repr(error))


def shuffled(source: Any, seed: int) -> grain.MapDataset[Any]:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)


class Chosen:
    """The samples of a source that have some of its indices."""

    def __init__(self, source: Samples, indices: Sequence[int]):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]


class Stratum(Chosen):
    """The samples of a source that belong to one stratum.

    Raises:
      DataError: no sample does.
    """

    def __init__(self, source: Source, name: str):
        by_index = [source.strata(index) for index in range(len(source))]
        super().__init__(source, [index for index, strata in enumerate(by_index) if name in strata])
        if not self.indices:
            there = ", ".join(sorted(set().union(*by_index))) or "none"
            raise DataError(
                f"none of the {len(source)} samples is of the stratum {name!r}; their strata are: {there}. Give one of "
                "these, or more samples (config.data.size)"
            )


def batches(dataset: grain.MapDataset[Element], batch: int, start: int) -> Iterator[list[Element]]:
    """Consecutive batches from batch number `start` on, two of them read ahead in threads."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch)
    rows = iter(dataset[start * batch :].to_iter_dataset(options))
    while True:
        yield [next(rows) for _ in range(batch)]


def open_source(config: DataConfig) -> Source:
    """The samples that a config names. Missing data is prepared now, with progress."""
    source: Source = plugins.load(config.FOLDER, config.name).open_source(config)
    if config.exclude and excluded(source) is None:
        raise DataError(f"data.exclude: {config.name} cannot leave pictures out, so that none may be named")
    return source


def excluded(source: Source) -> Mapping[str, Mapping[str, int]] | None:
    """How many pictures a source leaves out that are the "same" as one of a data set of `DataConfig.exclude`, or
    "similar" to one, by data set; None where it cannot leave pictures out."""
    return getattr(source, "excluded", None)


def emotion_labels(config: DataConfig) -> tuple[str, ...]:
    """The emotion labels of the data set that a config names."""
    labels: tuple[str, ...] = plugins.load(config.FOLDER, config.name).labels(config)
    return labels


def label_sets(config: DataConfig) -> tuple[tuple[str, ...], ...]:
    """The labels that a sample of the data set may have: those of the data set, unless its samples differ in them."""
    module = plugins.load(config.FOLDER, config.name)
    if not hasattr(module, "label_sets"):
        return (emotion_labels(config),)
    sets: tuple[tuple[str, ...], ...] = module.label_sets(config)
    return sets
