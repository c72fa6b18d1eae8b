"""Files of labels as people have them: texts, tables, and what is odd in them."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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


def relative(path: Path, folder: Path) -> str:
    """A file's name in a report: below the data set's folder, with "/"."""
    return Path(os.path.relpath(path, folder)).as_posix()
