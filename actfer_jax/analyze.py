"""Runs the agent on pictures.

    python -m actfer_jax.analyze photo.jpg other.png --checkpoint=demo --out=analysis

Prints each episode turn by turn and writes to the output directory `episodes.jsonl` (records), `images/` (what the
model saw) and `index.html`, one page that shows it all and needs nothing else. What an earlier call wrote there is
replaced when all is done, and nothing else (docs/files.md).
"""

import sys

from absl import flags

from actfer_jax import cli
from actfer_jax.errors import UserError
from actfer_jax.files import as_path


def main(argv: list[str]) -> None:
    from actfer_jax.evaluation.analysis import analyze

    if len(argv) < 2:
        raise UserError("give at least one picture: python -m actfer_jax.analyze photo.jpg --checkpoint=DIR --out=DIR")
    given = flags.FLAGS
    try:
        pictures = [str(as_path(picture)) for picture in argv[1:]]
    except ValueError as error:
        raise UserError(f"the name of a picture {error}") from error
    unread = analyze(pictures, given.checkpoint, given.out, given.dtype, str(given.landmarks or ""))
    if unread:
        sys.exit(f"error: {unread} of {len(argv) - 1} pictures could not be read")


if __name__ == "__main__":
    flags.DEFINE_string(
        "checkpoint", None, "Hugging Face directory, a name on the hub, gs://..., or demo.", required=True
    )
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write; it may exist.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model's weights and activations.")
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    cli.run(main, arguments=True)
