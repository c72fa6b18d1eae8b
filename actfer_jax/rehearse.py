"""Plays the episodes of a config by script, before anything is paid for. No weights are needed.

    python -m actfer_jax.rehearse --config=configs/ucgrpo.py --config.model.path=DIR --json=rehearsal.json
    python -m actfer_jax.rehearse --config=configs/eval/synth_faces.py --checkpoint=DIR --images=one.jpg two.jpg

Reads the tokenizer, the chat template and the processor of the model directory, and plays pictures of the data set and
`--images` with the face tools: what fits and which key to raise where something does not, how many faces are found,
whether a zoom shows more than the scene, and what the records of the run take on disk. Exits with status 1 where a
limit is too small.
"""

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli


def main(argv: list[str]) -> None:
    from actfer_jax.training.rehearsal import rehearse

    given = flags.FLAGS
    rehearse(given.config, given.checkpoint, given.samples, [*given.images, *argv[1:]], given.json)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A config of training or of evaluation.")
    flags.DEFINE_string("checkpoint", "", "With a config of evaluation: the model directory.")
    flags.DEFINE_integer("samples", 16, "How many pictures of the data set to play; 0 for none.", lower_bound=0)
    flags.DEFINE_multi_string("images", [], "A picture to play as well; may be given again, or followed by more.")
    flags.DEFINE(cli.PathFlag(), "json", None, "File for the report.")
    flags.mark_flag_as_required("config")
    cli.run(main, config="training.config.TrainConfig", arguments=True)
