"""The cache directory, which keeps rendered faces and the faces found in images between runs.

It may be deleted at any time. It must not hold a user's own files: a directory with other files is refused. Data that
is read in place has its own key (`data.directory`).
"""

import fnmatch
from contextlib import suppress
from pathlib import Path

from actfer_jax.data.errors import DataError
from actfer_jax.files import as_path, reason, write_atomically

TAG = "CACHEDIR.TAG"
_TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# This is a cache of actfer_jax, which makes anew what is missing; for the format see https://bford.info/cachedir/
"""
# Names that we write (the tag has a temporary name too), and names that systems create anywhere.
_OURS = (TAG, f".{TAG}.*", "synth_faces", "synth_faces.lock", "downloads", "faces.sqlite*")
_OF_THE_SYSTEM = ("lost+found", ".DS_Store")


def open_cache(directory: str) -> Path:
    """Checks that a directory may be used as the cache, and marks it as one (`CACHEDIR.TAG`).

    A cache that cannot be written can still be read.

    Args:
      directory: a path, perhaps with "~".

    Raises:
      DataError: it is not a directory, cannot be made, or holds files that are not ours.
    """
    path = Path(as_path(directory))
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = sorted(child.name for child in path.iterdir())
    except OSError as error:
        raise DataError(
            f"the cache {path} cannot be used ({reason(error)}); give another with config.data.cache_directory"
        ) from error
    others = [name for name in names if not any(fnmatch.fnmatchcase(name, own) for own in (*_OURS, *_OF_THE_SYSTEM))]
    marked = _is_marked(path)
    if others and not marked:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise DataError(
            f"{path} holds files that are not of this program's cache ({shown}), and nothing is written among them: "
            f"give a directory of its own with config.data.cache_directory, such as {path / 'actfer_jax'}"
        )
    if not marked:
        with suppress(OSError):
            write_atomically(path / TAG, _TAG_TEXT)
    return path


def _is_marked(path: Path) -> bool:
    with suppress(OSError):
        return (path / TAG).read_bytes() == _TAG_TEXT.encode()
    return False
