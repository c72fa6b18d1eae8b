"""Reads the rows of Parquet files, with pictures in them, as Hugging Face data sets are kept."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actfer_jax.data.errors import DataError
from actfer_jax.faces import formats

_MAGIC = b"PAR1"  # At both ends.


@dataclass(frozen=True)
class Embedded:
    """A picture in a row of a Parquet file (`data.inventory.Part`).

    Attributes:
      file: the Parquet file.
      line: the row, from 1.
      column: of the pictures: bytes, or a struct with `bytes`, and `path` below the file's folder where these are null.
      group, row: the row group and the row in it, from 0.
    """

    file: Path
    line: int
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.line}"

    def read_bytes(self) -> bytes:
        value = _pictures(self.file, self.group, self.column)[self.row].as_py()
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            return (self.file.parent / path).read_bytes() if data is None and path else data or b""
        return value or b""


@lru_cache(maxsize=8)
def _pictures(file: Path, group: int, column: str) -> pa.ChunkedArray:
    # Neighbours are often read one after the other, and a row cannot be read alone.
    return pq.ParquetFile(file).read_row_group(group, columns=[column])[column]


def read_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, from 1, with those of `columns` that it has. Pictures are `Embedded`, and read later.

    Numbers of a column that Hugging Face's metadata describe as classes become the names of these.

    Raises:
      DataError: the file is no Parquet file, or is damaged; the message says what it is instead.
    """
    _check(path)
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        there = [name for name in schema.names if name in columns]
        pictures = {name for name in there if _holds_pictures(schema.field(name).type)}
        classes, line = _class_names(schema), 0
        for group in range(file.num_row_groups):
            values = file.read_row_group(group, columns=[name for name in there if name not in pictures])
            for row, cells in enumerate(values.to_pylist() or [{}] * file.metadata.row_group(group).num_rows):
                line += 1
                for name in classes.keys() & cells.keys():
                    cells[name] = _class_name(cells[name], classes[name], f"{path}, row {line}: {name}")
                yield line, cells | {name: Embedded(path, line, name, group, row) for name in pictures}
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); get the file anew"
        ) from error


def column_names(path: Path) -> list[str]:
    """
    Raises:
      DataError: as `read_rows`.
    """
    _check(path)
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); get the file anew"
        ) from error


def _check(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2**16)
        file.seek(max(path.stat().st_size - len(_MAGIC), 0))
        end = file.read()
    if not start.startswith(_MAGIC):
        raise DataError(f"{path}: {formats.describe_text(start) or 'a text, not a Parquet file'}")
    if end != _MAGIC or len(start) <= len(_MAGIC):
        raise DataError(f"{path}: a Parquet file that is cut short; get the file anew")


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """By column: the names of its classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _class_name(value: Any, names: list[str], where: str) -> str | None:
    """The name of a class; None where it is not known, which is -1 too."""
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise DataError(f"{where} is {value!r}, and the file has names for 0 to {len(names) - 1}")
    return names[value]
