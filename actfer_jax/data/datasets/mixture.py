"""Several data sets as one.

    config.data.name = "mixture"
    config.data.parts.raf_db.name = "raf_db"                 # a section `data` for each, under a name of one's own
    config.data.parts.raf_db.directory = "/data/RAF-DB"
    config.data.parts.faces.name = "synth_faces"
    config.data.weights = {"faces": 0.5}                     # half the chance of a sample of raf_db
    config.data.class_weights = {"disgust": 3.0}
    config.data.limits = {"faces": 5000}

A sample's chance is in proportion to the weight of its part times that of its emotion. In one pass the samples of the
least weight come once, and one of `n` times that weight comes `n` times. Of a fraction, that share of the samples, by a
hash of part, index and `weight_seed`, comes once more. So an index is always the same sample, and `data.sources.order`
shuffles and resumes the mixture like any other data set. A sample's first stratum is the name of its part.
"""

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from actfer_jax import facs
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.config import Count, FieldError, Seed, between, nearest, one_of
from actfer_jax.data import sources
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import ALL, DataConfig, Source

Weight = Annotated[float, between(1e-3, 1e3)]

_MOST_COPIES = 1000


@dataclass(frozen=True)
class Config(DataConfig):
    """The choice of samples. `exclude` is left out of every part.

    Attributes:
      split: what the mixture is called in results; which split of a part is taken says the part.
      parts: the data sets, each under a name of its own, with letters, digits, "_" and "-".
      limits: by part, most of its samples, the first of its order; all where there is none.
      class_limit: most samples of each emotion of a part; None for all.
      weights: by part, and by emotion: the weight of a sample, 1 where there is none.
      class_weights: see `weights`.
      weight_seed: of the choice that a fraction of a weight makes.
      labels: "own", each sample with the labels of its data set; or "shared", all with those of all parts together,
        where the words of one emotion, such as "sad" and "sadness", are one.
    """

    split: Annotated[str, one_of("train", "validation", "test", ALL)] = "train"
    parts: dict[str, DataConfig] = field(default_factory=dict)
    limits: dict[str, Count] = field(default_factory=dict)
    class_limit: Count | None = None
    weights: dict[str, Weight] = field(default_factory=dict)
    class_weights: dict[str, Weight] = field(default_factory=dict)
    weight_seed: Seed = 0
    labels: Annotated[str, one_of("own", "shared")] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directory:
            raise FieldError("directory", f"is {self.directory!r}; it must be empty: each of the parts has its own")
        if not self.parts:
            raise FieldError("parts", "is empty; give a section of data for each data set: data.parts.NAME.name=...")
        for name in self.parts:
            try:
                Reference((), strata=(name,))
            except ValueError as error:
                raise FieldError("parts", f"has {name!r}: {error}") from error
        # A config file has no order of its keys: the samples must not depend on one.
        object.__setattr__(self, "parts", dict(sorted(self.parts.items())))
        for key, given in (("limits", self.limits), ("weights", self.weights)):
            for name in given.keys() - self.parts.keys():
                near = nearest(name, self.parts)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(self.parts)}"
                raise FieldError(f"{key}.{name}", f"names no part; {hint}")

    @property
    def lineage(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one for part in self.parts.values() for one in part.lineage))

    @property
    def sections(self) -> dict[str, DataConfig]:
        """The parts, with what holds for all of them."""
        return {
            name: dataclasses.replace(part, exclude=tuple(dict.fromkeys((*self.exclude, *part.exclude))))
            for name, part in self.parts.items()
        }


def labels(config: Config) -> tuple[str, ...]:
    """The emotions of all parts, in the order and the spelling in which they first occur, by the parts' names."""
    return tuple(_words(config).values())


def label_sets(config: Config) -> tuple[tuple[str, ...], ...]:
    """The labels that a sample may have."""
    own = dict.fromkeys(labels for part in config.parts.values() for labels in sources.label_sets(part))
    return tuple(own) if config.labels == "own" else (labels(config), *(one for one in own if not one))


def open_source(config: Config) -> "Mixture":
    return Mixture(config)


def _words(config: Config) -> dict[str, str]:
    """The word for each emotion."""
    words: dict[str, str] = {}
    for part in config.parts.values():
        for label in sources.emotion_labels(part):
            words.setdefault(facs.normalise_emotion(label), label)
    return words


class Mixture:
    """The samples of all parts (`data.sources.Source`), each as often as its weight says.

    Raises:
      DataError: a part cannot say what its samples are, a weight is for an emotion that no part has, or there are fewer
        samples than `config.size`.
    """

    def __init__(self, config: Config):
        self.parts: dict[str, Source] = {name: sources.open_source(part) for name, part in config.sections.items()}
        self.words = _words(config) if config.labels == "shared" else None
        known = _words(config)
        weights = {facs.normalise_emotion(emotion): weight for emotion, weight in config.class_weights.items()}
        if others := sorted(weights.keys() - known.keys()):
            raise DataError(
                f"data.class_weights names {others[0]}, which is no label of any part; there are {', '.join(known)}"
            )
        chosen = [
            (name, index, config.weights.get(name, 1.0) * weights.get(emotion, 1.0))
            for name, source in self.parts.items()
            for index, emotion in _chosen(name, source, config)
        ]
        self.indices = [(name, index) for name, index in expanded(chosen, config.weight_seed)]
        # So that the first few are of every part and class.
        random.Random(0).shuffle(self.indices)
        if len(self.indices) < (config.size or 1):
            raise DataError(
                f"data.size is {config.size}, but the parts have {len(self.indices)} samples by their weights"
            )
        self.indices = self.indices[: config.size]

    @property
    def excluded(self) -> dict[str, dict[str, int]]:
        """How many pictures are left out (`data.sources.excluded`)."""
        total: dict[str, Counter[str]] = {}
        for source in self.parts.values():
            for text, counts in (sources.excluded(source) or {}).items():
                total.setdefault(text, Counter(dict.fromkeys(counts, 0))).update(counts)
        return {text: dict(counts) for text, counts in total.items()}

    def __len__(self) -> int:
        return len(self.indices)

    def strata(self, index: int) -> tuple[str, ...]:
        name, place = self.indices[index]
        return _strata(name, self.parts[name].strata(place))

    def __getitem__(self, index: int) -> Sample:
        name, place = self.indices[index]
        sample = self.parts[name][place]
        reference = dataclasses.replace(sample.reference, strata=_strata(name, sample.reference.strata))
        if self.words is not None and reference.labels:
            emotion = reference.emotion and self.words[facs.normalise_emotion(reference.emotion)]
            reference = dataclasses.replace(reference, labels=tuple(self.words.values()), emotion=emotion)
        return dataclasses.replace(sample, dataset=name, reference=reference)


def _strata(name: str, strata: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, *strata)))


def _chosen(name: str, source: Source, config: Config) -> Iterator[tuple[int, str]]:
    """The indices of a part within its limits, with their emotions, as far as these count."""
    by_class = config.class_limit is not None or bool(config.class_weights)
    reference = getattr(source, "reference", None)
    if by_class and reference is None:
        raise DataError(
            f"data.class_limit and data.class_weights need the emotion of each sample before its picture is read, and "
            f"{name} has no `reference(index)`: leave them out, or leave {name} out"
        )
    counts, limit = Counter[str](), config.limits.get(name, len(source))
    for index in range(len(source)):
        emotion = facs.normalise_emotion(reference(index).emotion or "") if by_class and reference is not None else ""
        if config.class_limit is not None and counts[emotion] >= config.class_limit:
            continue
        if counts.total() == limit:
            return
        counts[emotion] += 1
        yield index, emotion


def expanded(weighted: Iterable[tuple[str, int, float]], seed: int) -> Iterator[tuple[str, int]]:
    """Names and indices with their weights -> each as often as its weight is a multiple of the least.

    Of a fraction that is left, such as 0.3 of 2.3, that share comes once more; the seed, the name and the index decide.

    Raises:
      DataError: a weight is more than 1000 times another.
    """
    weighted = list(weighted)
    least = min((weight for *_, weight in weighted), default=1.0)
    for name, index, weight in weighted:
        # Quotients of floats may be a little off a whole number.
        times = round(weight / least, 6)
        if times > _MOST_COPIES:
            raise DataError(
                f"a sample of {name} has {times:.0f} times the weight of another; at most {_MOST_COPIES} will do"
            )
        digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
        more = int.from_bytes(digest[:8], "big") / 2**64 < times % 1
        for _ in range(int(times) + more):
            yield name, index
