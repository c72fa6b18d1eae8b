"""Writes results where a user asks for them. The place is checked before the work, and other files are not touched.

A directory of results must be new, empty, or an earlier output of this program. Such an output has a `MARKER`, a JSON
file with the command that wrote it and the names of its files. New files are staged elsewhere and moved into place at
the end; files of other names stay. One file, without which the others do not count as results, is removed first and
written last. So after a kill in between the output is incomplete, and the same command completes it.
"""

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from etils import epath

from actfer_jax.errors import UserError
from actfer_jax.files import file_errors, is_remote, reason, write_atomically

MARKER = ".actfer_output.json"
RUN_DIRECTORIES = ("checkpoints", "compilation_cache", "episodes", "images", "profile", "superseded")
"""Directories in the workdir of a training run that do not hold results."""
PARTIAL = ".actfer_partial"
"""The directory, in that of the results, in which they are made (`staged`)."""
_PROBE = ".actfer_writable"
# The names above, with their temporary names, and files that systems create in directories.
_NOT_COUNTED = re.compile(r"\.{1,2}actfer_.*|\.DS_Store|Thumbs\.db|desktop\.ini|lost\+found")
_BEGINNINGS = {"JSON": (b"{", b"["), "PNG": (b"\x89PNG",)}
_MANIFEST = "manifest.json"
_THREADS = 16  # With an object store they mostly wait.


class OutputError(UserError, ValueError):
    """Results cannot be written to a place, or not without a loss; the message names the place."""


@dataclass(frozen=True)
class Output:
    """The content of a directory of results.

    Attributes:
      what: in words, for messages: "a policy".
      names: matches the names of all possible files, relative to the directory.
      last: the file without which the others do not count as results.
      signs: files by which a directory without a marker, from older versions, is recognised.
      folders: subdirectories of some of the files, which may have further ones in them.
      common: matches names among `names` that others give to files too: they are ours only where the marker says so.
    """

    what: str
    names: re.Pattern[str]
    last: str
    signs: tuple[str, ...]
    folders: tuple[str, ...] = ()
    common: re.Pattern[str] = re.compile(r"(?!)")


def check_directory(directory: epath.PathLike, output: Output) -> None:
    """Checks that results can be written to a directory, which need not exist, and changes nothing.

    Raises:
      OutputError: it is a file or a broken link; it holds a training run, results of another kind, or other files; or
        it cannot be written.
    """
    directory = epath.Path(directory)
    try:
        _check_directory(directory, output)
        _check_writable(directory)
    except file_errors() as error:
        raise OutputError(f"{directory} cannot be written ({reason(error)}); choose another directory") from error


def _check_directory(directory: epath.Path, output: Output) -> None:
    if os.path.islink(directory) and not directory.exists():
        raise OutputError(f"{directory} is a link to {os.readlink(directory)}, which is not there; choose another name")
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file, not a directory; choose another name, or move it away")
    names = _listed(directory)
    if _MANIFEST in names:
        raise OutputError(f"{directory} holds a training run; choose another directory")
    if marker := _read_marker(directory):
        if marker["holds"] != output.what:
            raise OutputError(f"{directory} holds {marker['holds']}, not {output.what}; choose another directory")
    elif not names.issuperset(output.signs) and (others := [n for n in sorted(names) if not _NOT_COUNTED.fullmatch(n)]):
        listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise OutputError(
            f"{directory} holds files that are not of {output.what} written by actfer_jax ({listed}): they are left "
            "alone; choose a new or an empty directory"
        )
    if not is_remote(directory):
        _check_entries(Path(directory), output)


def _check_entries(directory: Path, output: Output) -> None:
    """Checks that existing entries with the names of results are files, or directories, as the results are."""
    for path in directory.iterdir() if directory.is_dir() else []:
        if output.names.fullmatch(path.name) and path.is_dir():
            raise OutputError(f"{path} is a directory, but a file of that name is to be written; move it away")
        if path.name in output.folders and (path.is_symlink() or not path.is_dir()):
            raise OutputError(f"{path} is a file or a link, but a directory is to be written there; move it away")


def _check_writable(directory: epath.Path) -> None:
    made = [] if is_remote(directory) else [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        if made:
            directory.mkdir(parents=True)
        write_atomically(directory / _PROBE, b"", sync=False)
        (directory / _PROBE).unlink(missing_ok=True)
    finally:
        for path in made:
            with suppress(OSError):
                os.rmdir(path)


def check_apart(directory: epath.PathLike, workdir: epath.PathLike) -> None:
    """Checks that results in a directory would not overwrite a training run.

    Raises:
      OutputError: it is the run's workdir, contains it, or is inside it. Allowed are names directly in the workdir that
        are not in `RUN_DIRECTORIES`.
    """
    if is_remote(directory) != is_remote(workdir):
        return
    place, run = _resolved(directory), _resolved(workdir)
    advice = f"choose a directory outside of {workdir}, or a new name directly in it"
    if _same(place, run):
        raise OutputError(f"{directory} is the workdir of the run; {advice}")
    if any(_same(place, parent) for parent in run.parents):
        raise OutputError(f"{directory} holds {workdir}, the workdir of the run; {advice}")
    if any(_same(parent, run) for parent in place.parents):
        if not _same(place.parent, run) or place.name in RUN_DIRECTORIES:
            raise OutputError(f"{directory} lies among the files of the run in {workdir}; {advice}")


def same_place(one: epath.PathLike, other: epath.PathLike) -> bool:
    """Whether two paths lead to the same directory, with links followed."""
    return is_remote(one) == is_remote(other) and _same(_resolved(one), _resolved(other))


def _resolved(path: epath.PathLike) -> PurePosixPath | Path:
    return PurePosixPath(os.fspath(path)) if is_remote(path) else Path(path).resolve()


def _same(one: PurePosixPath | Path, other: PurePosixPath | Path) -> bool:
    with suppress(OSError):
        # True also if a file system ignores case or is mounted twice.
        return one == other or os.path.samefile(one, other)
    return False


def check_file(path: epath.PathLike, kind: str) -> None:
    """Checks that a file of results can be written, and changes nothing.

    Args:
      kind: "JSON" or "PNG"; an existing file of another kind is not replaced.

    Raises:
      OutputError: the path is a directory or a file of another kind, or cannot be written.
    """
    path = epath.Path(path)
    try:
        if path.is_dir() or (not is_remote(path) and path.exists() and not os.path.isfile(path)):
            raise OutputError(f"{path} is not a file; give the name of a {kind} file")
        if path.exists():
            with path.open("rb") as file:
                start = file.read(4)
            if start and not start.startswith(_BEGINNINGS[kind]):
                raise OutputError(f"{path} is there and is no {kind} file, so it is not replaced; choose another name")
        _check_writable(path.parent)
    except file_errors() as error:
        raise OutputError(f"{path} cannot be written ({reason(error)}); choose another name") from error


def write_file(path: epath.PathLike, data: bytes | str) -> None:
    """Writes a whole file of results, and makes its directory if it does not exist."""
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


@contextmanager
def staged(directory: epath.PathLike, output: Output, *, keep: bool = False, resume: bool = False) -> Iterator[Path]:
    """A local directory for new results. Fill it and call `publish`; it is removed at the end.

    Args:
      keep: leave it there where the block fails, unless the results go to an object store.
      resume: begin with what an earlier call kept.

    Raises:
      OutputError: as `check_directory`.
    """
    check_directory(directory, output)
    if is_remote(directory):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    claim(directory, output)
    # On the directory's own file system, so that files only need to be renamed.
    partial = Path(directory) / PARTIAL
    if not resume:
        # Removes the remains of a killed call.
        shutil.rmtree(partial, ignore_errors=True)
    for left in Path(directory).glob("..actfer_*.tmp"):
        left.unlink(missing_ok=True)
    partial.mkdir(exist_ok=True)
    try:
        yield partial
    except BaseException:
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(partial, ignore_errors=True)


def publish(staging: Path, directory: epath.PathLike, output: Output, *, stay: bool = False) -> None:
    """Replaces the results in a directory by new ones. Files of other names stay.

    Args:
      staging: holds the new files.
      stay: whether earlier results without a new file of the same name stay too.

    Raises:
      One of `file_errors`: the results could not be written.
    """
    directory = epath.Path(directory)
    new = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
    if others := sorted(name for name in new if not output.names.fullmatch(name)):
        raise ValueError(f"{others[0]} is no name of a file of {output.what}")
    claim(directory, output)
    before = _written(directory, output)
    _write_marker(directory, output, before | new)
    (directory / output.last).unlink(missing_ok=True)
    if not is_remote(directory):
        for folder in {*output.folders, *(os.path.dirname(name) for name in new)}:
            (directory / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        gone = set() if stay else before - new - {output.last}
        list(pool.map(lambda name: (directory / name).unlink(missing_ok=True), gone))
        list(pool.map(lambda name: _move(staging / name, directory / name), new - {output.last}))
    if not is_remote(directory):
        for folder in {os.path.dirname(name) for name in gone} - {"", *output.folders}:
            with suppress(OSError):  # It is not empty.
                os.rmdir(directory / folder)
    if output.last in new:
        _move(staging / output.last, directory / output.last)
    _write_marker(directory, output, before | new if stay else new)


def claim(directory: epath.PathLike, output: Output) -> None:
    """Makes a directory, if it does not exist, and writes the marker into it."""
    directory = epath.Path(directory)
    if not is_remote(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if not _read_marker(directory):
        _write_marker(directory, output, _written(directory, output))


def incomplete(directory: epath.PathLike, output: Output) -> str:
    """What to do about results that a kill left without their last file; "" if there is nothing to do."""
    directory = epath.Path(directory)
    if (directory / output.last).exists() or not (marker := _read_marker(directory)):
        return ""
    return f"{directory} is not complete: it was being written by `{marker['command']}`; give that command again"


def _move(source: Path, target: epath.Path) -> None:
    if is_remote(target):
        epath.Path(source).copy(target, overwrite=True)
    else:
        os.replace(source, target)


def _listed(directory: epath.Path) -> set[str]:
    """Names in a directory; empty if it does not exist."""
    if not directory.is_dir():
        return set()
    return {path.name for path in directory.iterdir()} if is_remote(directory) else set(os.listdir(directory))


def _written(directory: epath.Path, output: Output) -> set[str]:
    """Names of the files in a directory that this program wrote, as far as it can tell."""
    if marker := _read_marker(directory):
        names = set(marker["files"])
    else:
        names = {name for name in _listed(directory) if not output.common.fullmatch(name)}
        names |= {f"{folder}/{name}" for folder in output.folders for name in _listed(directory / folder)}
    return {name for name in names if output.names.fullmatch(name)}


def _read_marker(directory: epath.Path) -> dict[str, Any] | None:
    path = directory / MARKER
    if not path.exists():
        return None
    try:
        marker = json.loads(path.read_text())
        return {"holds": marker["holds"], "command": marker["command"], "files": [*map(str, marker["files"])]}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error!r}); choose another directory") from error


def _write_marker(directory: epath.Path, output: Output, files: set[str]) -> None:
    marker = {"holds": output.what, "command": shlex.join(sys.orig_argv), "files": sorted(files)}
    write_atomically(directory / MARKER, json.dumps(marker, indent=1) + "\n", sync=False)
