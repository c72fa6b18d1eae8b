"""Files of labels as people have them: texts, tables, and what is odd in them."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from actfer_jax.data.errors import DataError
from actfer_jax.faces import formats
from actfer_jax.files import reason


class Problem(NamedTuple):
    """Something odd in a data set, and what was done about it.

    Attributes:
      file: where it is.
      line: from 1, or None for the whole file.
      what: in words.
    """

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


def read_text(path: Path) -> str:
    """The content of a file of labels.

    Raises:
      DataError: it does not exist or is not a text; the message says what it is instead.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})") from error
    if what := formats.describe_text(data):
        raise DataError(f"{path}: {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def table_rows(text: str, file: str, delimiter: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """The cells of a table's rows, the header first, with their lines from 1 and without empty rows.

    Args:
      file: its name in `problems`, where a row is named that has other cells than the header and is left out.
    """
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    columns = 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            columns = columns or len(cells)
            if len(cells) == columns:
                yield reader.line_num, cells
                continue
            what = f"has {len(cells)} cells, and the header {columns}; the row is left out"
            if len(cells) < columns and reader.line_num == text.count("\n") + (not text.endswith("\n")):
                what += ": the file is cut short here"
            problems.append(Problem(file, reader.line_num, what))
    except csv.Error as error:
        problems.append(Problem(file, reader.line_num, f"{error}; what follows is left out"))


def json_rows(text: str, file: str, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, with their lines from 1.

    Args:
      file: its name in `problems`, where a line is named that is none and is left out.
    """
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except ValueError as error:
            problems.append(Problem(file, line, f"is no JSON ({error}); the row is left out"))
            continue
        if isinstance(value, dict):
            yield line, value
        else:
            problems.append(Problem(file, line, "is no JSON object; the row is left out"))


def json_list(path: Path, of: str) -> list[Any]:
    """The items of a file that is one JSON list.

    Args:
      of: what the items are, for messages.

    Raises:
      DataError: it is none.
    """
    try:
        items = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: this is no JSON ({error.msg}); get the file anew") from error
    if not isinstance(items, list):
        raise DataError(f"{path} is no JSON list of {of}; get the file anew")
    return items


def relative(path: Path, folder: Path) -> str:
    """A file's name in a report: below the data set's folder, with "/"."""
    return Path(os.path.relpath(path, folder)).as_posix()
