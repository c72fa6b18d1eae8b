"""Writes a page of runs as files, which need no server."""

import os
import shutil
from pathlib import Path

from etils import epath

from actfer_jax.files import is_remote
from actfer_jax.outputs import Output, check_apart, check_directory, publish, staged
from actfer_jax.progress import ProgressLine
from actfer_jax.viewer.site import ADDRESSES, PAGE, Site

OUTPUT = Output("a page of episodes", ADDRESSES, PAGE, (), ("data", "pictures"))


def write(site: Site, out: epath.Path) -> None:
    """Writes every file of a site. An earlier page there is replaced at the end.

    Pictures of a run on the same disk are linked (they never change), and so take no room twice.

    Raises:
      OutputError: the directory has other files, or is that of a run.
      OSError: the disk is full.
    """
    check_directory(out, OUTPUT)
    for run in site.runs:
        check_apart(out, run.workdir)
    with staged(out, OUTPUT) as staging:

        def put(address: str) -> None:
            content = site.content(address)
            assert content is not None
            path = staging / address
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        for address in site.addresses():
            put(address)
        progress, total, placed = ProgressLine("parts of eight episodes"), site.chunk_count, set[str]()
        for done, (data, pictures) in enumerate(site.chunks(), start=1):
            for address in data:
                put(address)
            for address in pictures.keys() - placed:
                _place(pictures[address], staging / address)
            placed |= pictures.keys()
            progress(done, total)
        publish(staging, out, OUTPUT)


def _place(file: epath.Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(file):
        try:
            return os.link(file, path)
        except OSError:  # Another disk, or one without links.
            pass
        shutil.copyfile(file, path)
    else:
        path.write_bytes(file.read_bytes())
