"""The pictures that a command line names: files, folders, lists of names, standard input."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from actfer_jax.data.datasets.folders import SUFFIXES
from actfer_jax.errors import UserError
from actfer_jax.files import as_path, reason
from actfer_jax.outputs import MARKER


def find_pictures(arguments: Sequence[str], stdin: BinaryIO) -> list[str]:
    """The names of all pictures, in the order of the arguments; those of a folder are sorted.

    Args:
      arguments: each a file, a folder (with all folders in it, but neither hidden ones nor results of this program),
        `@FILE` for the names in a file, or `-` for those on standard input. Such names stand one a line or, as
        `find -print0` writes them, with a NUL after each; they may be folders, and relative ones start at the current
        directory.
      stdin: standard input.

    Raises:
      UserError: a list cannot be read, a name is none, or a folder or all arguments have no picture.
    """
    found = [path for argument in arguments for name, where in _names(argument, stdin) for path in _files(name, where)]
    if not found:
        raise UserError(f"no picture is named by {' '.join(arguments)}; give pictures, folders, @LIST, or - and names")
    return found


def _names(argument: str, stdin: BinaryIO) -> Iterator[tuple[str, str]]:
    """Names, each with where it stands."""
    if argument == "-":
        yield from _lines(stdin.read(), "standard input")
    elif argument.startswith("@"):
        try:
            data = Path(as_path(argument[1:])).read_bytes()
        except ValueError as error:
            raise UserError(f"the list after @ {error}") from error
        except OSError as error:
            hint = f"; for a picture of that name give ./{argument}"
            raise UserError(f"the list {argument[1:]} cannot be read ({reason(error)}){hint}") from error
        yield from _lines(data, argument[1:])
    else:
        yield argument, "the name of a picture"


def _lines(data: bytes, where: str) -> Iterator[tuple[str, str]]:
    lines = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield os.fsdecode(line), f"{where}, line {number}: the name"


def _files(name: str, where: str) -> Iterator[str]:
    try:
        path = os.fspath(as_path(name))
    except ValueError as error:
        raise UserError(f"{where} {error}") from error
    if not os.path.isdir(path):
        yield path
        return
    pictures = list(_walk(path))
    if not pictures:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(f"{path} and the folders in it have no picture ({kinds})")
    yield from pictures


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        if MARKER in files and place != folder:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(place, name)
