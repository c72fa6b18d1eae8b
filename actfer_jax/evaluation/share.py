"""Writes a finished evaluation as the score files of other programs (docs/benchmarks.md).

    python -m actfer_jax.evaluation.share RUN --formats=unifer,lmms_eval,vlmevalkit,hub,pyfeat --out=DIR

RUN is a directory that `evaluate` wrote, of episodes or of scored predictions. The files of a format are in its folder
of DIR, by control. What can be read again is scored by `evaluate --predictions=FILE`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from absl import flags
from etils import epath

from actfer_jax import cli, plugins
from actfer_jax.errors import UserError
from actfer_jax.evaluation.results import read_results
from actfer_jax.files import as_path, write_atomically
from actfer_jax.outputs import MARKER, Output, publish, staged

_FOLDER, _LIST = "evaluation.formats", "files.json"


def share(run: epath.Path, formats: Sequence[str], out: epath.Path, hub_dataset: str = "") -> list[str]:
    """Writes the files, and a list of them.

    Args:
      run: what to write.
      formats: names of `evaluation.formats`, or of a user's modules.
      out: the directory to write; what an earlier call wrote there is replaced.
      hub_dataset: as in `Results`, instead of the benchmark's own.

    Returns:
      The names of the files.

    Raises:
      UserError, OSError: there is no evaluation, a format cannot say what is there, or it cannot be written.
    """
    results = read_results(run)
    if hub_dataset:
        results = replace(results, hub_dataset=hub_dataset)
    answers = results.answers()
    files = {
        f"{name}/{file}": text
        for name in formats
        for file, text in plugins.load(_FOLDER, name).write(results, answers).items()
    }
    output = Output("score files", re.compile(r"files\.json|[\w.]+/.+"), last=_LIST, signs=(MARKER,))
    with staged(out, output) as staging:
        for name, text in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(staging / name, text)
        listed = {"provenance": results.provenance, "run": str(run), "files": sorted(files)}
        write_atomically(staging / _LIST, json.dumps(listed, indent=1) + "\n")
        publish(staging, out, output)
    return sorted(files)


def main(argv: list[str]) -> None:
    given = flags.FLAGS
    if len(argv) != 2:
        raise UserError("give one directory that `evaluate` wrote: python -m actfer_jax.evaluation.share RUN --out=DIR")
    for name in share(as_path(argv[1]), given.formats, given.out, given.hub_dataset):
        print(given.out / name)


if __name__ == "__main__":
    flags.DEFINE_list("formats", None, "Any of unifer, lmms_eval, vlmevalkit, hub and pyfeat.", required=True)
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write; it may exist.", required=True)
    flags.DEFINE_string("hub_dataset", "", "For hub: OWNER/NAME of the data set there, unless it is the benchmark's.")
    cli.run(main, arguments=True)
