"""Imports the faces that another detector found, for the step "imported" of `config.faces.steps` (docs/faces.md).

    python -m actfer_jax.faces.import_detections --detections=faces.jsonl --images=DIR \\
        --store=~/.cache/actfer_jax/data/faces.sqlite
"""

from pathlib import Path

from absl import flags

from actfer_jax import cli
from actfer_jax.faces.imported import import_detections
from actfer_jax.faces.store import FaceStore


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    landmarks = str(given.landmarks) if given.landmarks else None
    print(import_detections(Path(given.detections), Path(given.images), FaceStore(given.store), landmarks))


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "detections", None, "JSON lines: image, box, score, landmarks.", required=True)
    flags.DEFINE(cli.PathFlag(), "images", None, "The directory of the images.", required=True)
    flags.DEFINE(
        cli.PathFlag(), "store", None, "The face store: faces.sqlite in config.data.cache_directory.", required=True
    )
    flags.DEFINE(cli.PathFlag(), "landmarks", None, "A landmark model for dlib, instead of the one that is installed.")
    cli.run(main)
