"""Every state that a kill could leave a directory or a bucket in."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Files = dict[str, bytes]
CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
_watched: list[tuple[Path, list[Files]]] = []


def files(directory: Path) -> Files:
    """Content by name."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def _notice(event: str, arguments: tuple) -> None:
    if event in CHANGES and _watched:
        # Not what this function itself opens.
        directory, states = _watched.pop()
        now = files(directory)
        if now not in states[-1:]:
            states.append(now)
        _watched.append((directory, states))


_hooked: list[bool] = []


@contextmanager
def moments(directory: Path) -> Iterator[list[Files]]:
    """The files of a directory before whatever this process changes anywhere on the disk, one thread at a time."""
    if not _hooked:
        sys.addaudithook(_notice)  # for ever
        _hooked.append(True)
    states: list[Files] = []
    _watched.append((directory, states))
    try:
        yield states
    finally:
        _watched.clear()


class Recorded(dict):
    """Objects of a bucket, with every state that they were in."""

    def __init__(self, objects: Files):
        super().__init__(objects)
        self.states: list[Files] = [dict(objects)]

    def __setitem__(self, name: str, content: bytes) -> None:
        super().__setitem__(name, content)
        self.states.append(dict(self))

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.states.append(dict(self))
