"""Names the first difference between two training runs, and shows it.

    python -m actfer_jax.diff RUN RUN

A RUN is the workdir of a training run. Settings and versions that differ are listed; then the first step that went
otherwise is named by sample, episode, turn, token, tool reply, metric or array of its checkpoint (docs/files.md). The
exit status is 0 if the runs are the same, and 1 if they are not. What measures the machine does not count.
"""

import sys

from actfer_jax import cli
from actfer_jax.errors import UserError
from actfer_jax.files import as_path


def main(argv: list[str]) -> None:
    from actfer_jax.evaluation.difference import differences

    if len(argv) != 3:
        raise UserError("give two workdirs of training runs: python -m actfer_jax.diff RUN RUN")
    found = differences(as_path(argv[1]), as_path(argv[2]))
    print(cli.printable("\n".join(found) or "no difference"))
    sys.exit(bool(found))


if __name__ == "__main__":
    cli.run(main, arguments=True)
