"""Writes the small model's directory without weights: what `configs/sft.py:demo` starts from.

    python -m actfer_jax.make_demo --out=actfer_jax/models/demo

It holds config.json, a byte-pair tokenizer with the special-token strings of Qwen, a chat template of the same shape,
and a preprocessor_config.json with small size limits; training adds the weights. The vocabulary is learned from the
words of the traces, so that a tool call is a handful of tokens.
"""

from pathlib import Path

from absl import flags

from actfer_jax import cli


def main(argv: list[str]) -> None:
    from actfer_jax.training.demo import write_demo

    del argv
    write_demo(Path(flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write; it may exist.", required=True)
    cli.run(main)
