"""Runs the agent on pictures.

    python -m actfer_jax.analyze photo.jpg other.png --checkpoint=demo --out=analysis
    python -m actfer_jax.analyze photos/ @list.txt --checkpoint=demo --faces=all --out=analysis
    find . -name '*.jpg' -print0 | python -m actfer_jax.analyze - --checkpoint=demo --out=analysis

A folder stands for the pictures in it and in its folders, @FILE for the names in a file, one a line, and - for those on
standard input. Relative names start at the current directory.

Prints each episode turn by turn and writes to the output directory `index.html`, which shows it all and needs nothing
else (with 100 pictures a page: `page-2.html`, ...), `readings.csv` (a row a face), `episodes.jsonl` (records) and
`images/` (what the model saw). The pages and the table grow while it works; a call that was killed starts anew. What an
earlier call wrote there is replaced when all is done, and nothing else (docs/files.md).
"""

import sys

from absl import flags

from actfer_jax import cli
from actfer_jax.errors import UserError


def main(argv: list[str]) -> None:
    from actfer_jax.evaluation.analysis import analyze
    from actfer_jax.evaluation.pictures import find_pictures

    if len(argv) < 2:
        raise UserError(
            "give a picture, a folder, @LIST or -: python -m actfer_jax.analyze photo.jpg --checkpoint=DIR --out=DIR"
        )
    given = flags.FLAGS
    pictures = find_pictures(argv[1:], sys.stdin.buffer)
    unread = analyze(pictures, given.checkpoint, given.out, given.dtype, str(given.landmarks or ""), given.faces)
    if unread:
        sys.exit(f"error: {unread} of {len(pictures)} pictures could not be read")


if __name__ == "__main__":
    flags.DEFINE_string(
        "checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.", required=True
    )
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write; it may exist.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model's weights and activations.")
    flags.DEFINE_string(
        "faces",
        "largest",
        "Which faces of a picture: largest, all, a number (at most so many, the largest first), or whole (the picture "
        "as it is, in which the policy chooses).",
    )
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    cli.run(main, arguments=True)
