"""Files that are whole or absent, whenever the process is killed, on a file system or in an object store."""

import errno
import itertools
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import tensorflow as tf
from etils import epath

# What reading or writing a file may raise: object stores are reached through TensorFlow, which has errors of its own.
FILE_ERRORS: tuple[type[OSError], type[Exception]] = (OSError, tf.errors.OpError)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def as_path(text: epath.PathLike) -> epath.Path:
    """The path that a person means: every flag, argument and config key that is a path is read by this.

    `~` and `~user` are home directories, whether or not a shell has seen them; `file:///x` is `/x`; `gs://bucket/name`
    stays what it is.

    Raises:
      ValueError: it is empty, or means no place; whoever calls this puts the name of the flag or key before it.
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
    """Whether a path leads into an object store (`gs://bucket/name`)."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root of its file system, or of its object store: Orbax takes no other."""
    return epath.Path(path) if is_remote(path) else epath.Path(os.path.abspath(path))


def write_atomically(path: epath.PathLike, data: bytes | str, *, sync: bool = True) -> None:
    """Writes a whole file, replacing what was there.

    A local file is written under a temporary name beside it and renamed. An object store cannot rename, and shows an
    object only when all of it has arrived.

    Args:
      path: the file; its directory must exist.
      data: the whole content; text is written as UTF-8.
      sync: wait until the disk has it, so that it also survives a machine that stops (local paths only).

    Raises:
      OSError: the disk is full or the directory cannot be written; nothing is left under either name.
    """
    path = epath.Path(path)
    content = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        try:
            path.write_bytes(content)
        except tf.errors.OpError as error:
            raise OSError(f"{path}: {error.message}") from error
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
    """Copies a local directory's files, replacing those of the same name.

    Raises:
      OSError: one of them could not be written.
    """
    for path in sorted(source.rglob("*")):
        copy = epath.Path(target) / path.relative_to(source).as_posix()
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                epath.Path(path).copy(copy, overwrite=True)
            except tf.errors.OpError as error:
                raise OSError(f"{copy}: {error.message}") from error


def unused(directory: epath.Path, name: str) -> epath.Path:
    """A path in a directory, which need not exist, that nothing is at: the name, else name-2, name-3, ..."""
    taken = {path.name for path in directory.iterdir()} if directory.exists() else set()
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return directory / next(name for name in names if name not in taken)


def reason(error: Exception) -> str:
    """What one of `FILE_ERRORS` says, in a line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0][:300]


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that a disk, a quota or a file has no room left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded", "File too large")):
            return True
        error = error.__cause__ or error.__context__
    return False
