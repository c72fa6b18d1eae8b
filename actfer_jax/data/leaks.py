"""Finds the pictures of one data set that are in another, or in more than one split: by bytes, and as near copies."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from actfer_jax import plugins
from actfer_jax.data.duplicates import Catalogue, Signature, signature
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import ALL, NamedSet
from actfer_jax.faces.images import ImageError, decode_image
from actfer_jax.files import reason
from actfer_jax.progress import ProgressLine

Progress = Callable[[int, int], None]
Counts = dict[str, int]
"""How many copies: "same", byte by byte, and "similar"."""

_AHEAD = 256


class Picture(Protocol):
    """A file, or a part of one."""

    def read_bytes(self) -> bytes: ...


class HasPictures(Protocol):
    """`data.inventory.Record`, as far as it counts here."""

    @property
    def name(self) -> str: ...

    @property
    def pictures(self) -> Sequence[Picture]: ...

    @property
    def split(self) -> str: ...


Item = TypeVar("Item", bound=HasPictures)


def read_signatures(records: Sequence[Item], progress: Progress) -> Iterator[tuple[Item, Signature | str]]:
    """Opens the pictures of records, in their order: the signature of each one's last, or why one cannot be read."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), _AHEAD):
            part = records[start : start + _AHEAD]
            for done, opened in enumerate(zip(part, pool.map(_open, part), strict=True), start + 1):
                progress(done, len(records))
                yield opened


def _open(record: HasPictures) -> Signature | str:
    *before, last = record.pictures
    for picture in before:
        if isinstance(looks := _signature(picture), str):
            return f"{picture}, which is shown with it: {looks}"
    return _signature(last)


def _signature(picture: Picture) -> Signature | str:
    try:
        data = picture.read_bytes()
        return signature(data, decode_image(data, ""))
    except OSError as error:
        return f"cannot be read ({reason(error)})"
    except ImageError as error:
        return str(error).removeprefix(": ")


class OtherSet:
    """The pictures of a named data set, to look up others in.

    Attributes:
      text: how the data set was named.
      records: of its pictures, without those that cannot be read.
      unreadable: what is wrong with these.
    """

    def __init__(self, named: NamedSet):
        self.text = named.text
        records = plugins.load(named.config.FOLDER, named.config.name).inventory(named.config).records
        wanted = [record for record in records if named.split in (None, ALL, record.split)]
        self.records, self.unreadable, signatures = list[Any](), list[str](), list[Signature]()
        for record, looks in read_signatures(wanted, ProgressLine(f"pictures of {named.text}")):
            if isinstance(looks, str):
                self.unreadable.append(f"{record.name}: {looks}")
            else:
                self.records.append(record)
                signatures.append(looks)
        self._catalogue = Catalogue(signatures)

    def find(self, looks: Signature) -> tuple[Any, str] | None:
        """The record of a copy, and "same" or "similar"; None where there is none."""
        found = self._catalogue.find(looks)
        return None if found is None else (self.records[found[0]], "same" if found[1] else "similar")


def without(
    records: Sequence[Item], exclude: Iterable[NamedSet], size: int | None
) -> tuple[list[Item], dict[str, Counts]]:
    """The records whose pictures are in none of the named data sets, and how many were left out, by data set.

    A picture that cannot be read is kept: what it is shows when a sample is made of it.

    Args:
      size: how many records are enough; None for all.

    Raises:
      DataError: a named data set has no pictures, or one that cannot be read.
    """
    others = [OtherSet(named) for named in exclude]
    for other in others:
        if other.unreadable or not other.records:
            what = f"{len(other.unreadable)} of its pictures cannot be read, the first {other.unreadable[0]}"
            raise DataError(
                f"data.exclude names {other.text}, and {what if other.unreadable else 'there is no picture in it'}; "
                "what is not known cannot be left out"
            )
    kept, counts = list[Item](), {other.text: Counter(same=0, similar=0) for other in others}
    for record, looks in read_signatures(records, ProgressLine("pictures compared")):
        copies = () if isinstance(looks, str) else ((other.text, other.find(looks)) for other in others)
        where = next(((text, found[1]) for text, found in copies if found is not None), None)
        if where is None:
            kept.append(record)
        else:
            counts[where[0]][where[1]] += 1
        if len(kept) == size:
            break
    return kept, {text: dict(count) for text, count in counts.items()}


def between_splits(pictures: Sequence[tuple[Item, Signature]]) -> Iterator[tuple[Item, Item, str]]:
    """Each picture of which a copy is in a split that occurs before its own, with that one, and "same" or "similar"."""
    splits = list(dict.fromkeys(record.split for record, _ in pictures))
    for number, split in enumerate(splits[1:], 1):
        before = [picture for picture in pictures if picture[0].split in splits[:number]]
        catalogue = Catalogue([looks for _, looks in before])
        for record, looks in pictures:
            if record.split == split and (found := catalogue.find(looks)) is not None:
                yield record, before[found[0]][0], "same" if found[1] else "similar"
