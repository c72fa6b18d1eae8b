"""Files that are whole or absent, whenever the process is killed."""

import os

from etils import epath


def write_atomically(path: epath.PathLike, data: bytes | str, *, sync: bool = True) -> None:
    """Writes a file under a temporary name beside it and renames it, replacing what was there.

    Args:
      path: the file; its directory must exist.
      data: the whole content; text is written as UTF-8.
      sync: wait until the disk has it, so that it also survives a machine that stops (local paths only).

    Raises:
      OSError: the disk is full or the directory cannot be written; nothing is left under either name.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if sync and "://" not in os.fspath(path):
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
