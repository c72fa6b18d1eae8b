"""Tables in Excel workbooks (.xlsx), found by their header."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actfer_jax.config import ConfigError
from actfer_jax.data.errors import DataError
from actfer_jax.faces import formats
from actfer_jax.files import reason

Cells = dict[str, Any]
"""The cells of a row as the workbook has them: texts, numbers, or None."""

_MAGIC = b"PK\x03\x04"
_LAST_HEADER = 30
"""The last row of a sheet that may be the header."""


def read_table(path: Path, columns: Mapping[str, str], optional: tuple[str, ...] = ()) -> Iterator[tuple[int, Cells]]:
    """The rows below the header, with their numbers in the sheet, from 1. Empty rows are left out.

    The header is the first row that has every column, in any case and spacing. It may lie below other lines.

    Args:
      columns: by the name of a cell in the result: the column's heading, or its number from 0.
      optional: names of those that need not be there; their cells are None.

    Raises:
      ConfigError: openpyxl is not installed.
      DataError: the file is no workbook, or no sheet has such a header; the message says what there is.
    """
    firsts = []
    for sheet in _read(path):
        for number, row in enumerate(sheet[:_LAST_HEADER]):
            there = {_heading(cell): place for place, cell in reversed(list(enumerate(row)))}
            places = {name: _place(column, there, len(row)) for name, column in columns.items()}
            if all(place is not None for name, place in places.items() if name not in optional):
                yield from _rows(sheet, number + 1, places)
                return
            firsts += [f"{cell!r}" for cell in row if cell is not None] if number == 0 else []
    wanted = ", ".join(repr(column) for name, column in columns.items() if name not in optional)
    raise DataError(f"{path}: no sheet has a row with the columns {wanted}; it begins with {', '.join(firsts[:12])}")


def _read(path: Path) -> list[list[tuple[Any, ...]]]:
    """The rows of each sheet."""
    try:
        import openpyxl
    except ImportError as error:
        raise ConfigError(f"{path} is an Excel workbook, which openpyxl reads: pip install openpyxl") from error
    try:
        start = path.read_bytes()[: 2**16]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)})") from error
    if not start.startswith(_MAGIC):
        raise DataError(f"{path}: {formats.describe_text(start) or 'a text'}, and no Excel workbook (.xlsx)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of extensions of Excel that say nothing about cells.
            book = openpyxl.load_workbook(path, data_only=True)
        return [list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets]
    except Exception as error:  # openpyxl raises whatever its parts do on a damaged file.
        raise DataError(f"{path} cannot be read as an Excel workbook ({error}); get the file anew") from error


def _rows(sheet: list[tuple[Any, ...]], start: int, places: Mapping[str, int | None]) -> Iterator[tuple[int, Cells]]:
    for number, row in enumerate(sheet[start:], start + 1):
        cells = {name: None if place is None else row[place] for name, place in places.items()}
        if any(cell is not None and str(cell).strip() for cell in cells.values()):
            yield number, cells


def _place(column: str, there: Mapping[str, int], count: int) -> int | None:
    if column.isdecimal():
        return int(column) if int(column) < count else None
    return there.get(_heading(column)) if column else None


def _heading(cell: Any) -> str:
    return "" if cell is None else re.sub(r"\W", "", str(cell)).lower()
