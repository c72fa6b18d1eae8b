"""Where the scripts here write: looked at before they work."""

import re
import sys
from pathlib import Path

from actfer_jax.outputs import Output, OutputError, check_directory, check_file, claim


def check_places(
    *, json: Path | str | None = None, png: Path | str | None = None, workdir: Path | str | None = None
) -> None:
    """Ends the script with a message where it cannot write one of its files, or where its directory, in which it
    deletes what it made before, has files that it did not make."""
    script = Path(sys.argv[0]).name
    runs = Output(f"the runs of benchmarks/{script}", names=re.compile(r"(?!)"), last="", signs=())
    try:
        for path, kind in ((json, "JSON"), (png, "PNG")):
            if path:
                check_file(path, kind)
        if workdir:
            check_directory(workdir, runs)
            claim(workdir, runs)
    except OutputError as error:
        sys.exit(f"error: {error}")
