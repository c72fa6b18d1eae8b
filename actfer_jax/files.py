"""Writes files that are complete or absent after any kill, on a file system or in an object store."""

import errno
import itertools
import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from etils import epath

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def file_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The errors of reading or writing a file, and others."""
    return OSError, *_store_errors(), *others


def _store_errors() -> tuple[type[Exception], ...]:
    """Object stores are accessed through TensorFlow, which has its own errors, and which is slow to import."""
    tensorflow = sys.modules.get("tensorflow")
    return () if tensorflow is None else (tensorflow.errors.OpError,)


def as_path(text: epath.PathLike) -> epath.Path:
    """Reads a path as a person writes it. Every flag, argument and config key that is a path is read by this.

    `~` and `~user` are home directories, even if no shell has expanded them. `file:///x` is `/x`. `gs://bucket/name` is
    unchanged.

    Raises:
      ValueError: the text is empty or not a path. The caller puts the name of the flag or key before the message.
    """
    text = os.fspath(text)
    if not text.strip():
        raise ValueError("is empty; give a path")
    scheme, separator, _ = text.partition("://")
    if separator and scheme == "file":
        host, name = urlsplit(text)[1:3]
        if host not in ("", "localhost") or not name:
            raise ValueError(f"is {text!r}; a file on this machine has three slashes, as in file:///home/me/run")
        text = unquote(name)
    elif separator and scheme != "gs":
        raise ValueError(f"is {text!r}; give a path on this machine, or in a bucket of Google Cloud (gs://bucket/name)")
    home = os.path.expanduser(text)
    if home.startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"is {text!r}, but there is no home directory {user}; write ./{user} for a file of that name")
    return epath.Path(home)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store (`gs://bucket/name`)."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root of its file system or object store. Orbax takes no others."""
    return epath.Path(path) if is_remote(path) else epath.Path(os.path.abspath(path))


def write_atomically(path: epath.PathLike, data: bytes | str, *, sync: bool = True) -> None:
    """Writes a whole file, and replaces an existing one.

    A local file is written under a temporary name in the same directory, and renamed. An object store cannot rename,
    but shows an object only when it is complete.

    Args:
      path: the file; its directory must exist.
      data: the whole content; text is written as UTF-8.
      sync: wait until the disk has the data, so that it also survives a crash of the machine (local paths only).

    Raises:
      OSError: the disk is full or the directory cannot be written; nothing is left under either name.
    """
    path = epath.Path(path)
    content = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        try:
            path.write_bytes(content)
        except _store_errors() as error:
            raise OSError(f"{path}: {reason(error)}") from error
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def copy_tree(source: Path, target: epath.PathLike) -> None:
    """Copies a local directory's files, and replaces files of the same name.

    Raises:
      OSError: a file could not be written.
    """
    for path in sorted(source.rglob("*")):
        copy = epath.Path(target) / path.relative_to(source).as_posix()
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                epath.Path(path).copy(copy, overwrite=True)
            except _store_errors() as error:
                raise OSError(f"{copy}: {reason(error)}") from error


def unused(directory: epath.Path, name: str) -> epath.Path:
    """A path that does not exist in a directory: the name, else name-2, name-3, ... The directory need not exist."""
    taken = {path.name for path in directory.iterdir()} if directory.exists() else set()
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return directory / next(name for name in names if name not in taken)


def reason(error: Exception) -> str:
    """The message of one of `file_errors`, in one line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0][:300]


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that a disk, a quota or a file has no room left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded", "File too large")):
            return True
        error = error.__cause__ or error.__context__
    return False
