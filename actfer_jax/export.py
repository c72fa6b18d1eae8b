"""Writes a checkpoint of a training run as a Hugging Face directory, whether the run goes on or not.

    python -m actfer_jax.export --workdir=runs/ucgrpo --out=runs/ucgrpo-policy [--step=100] [--merged]

Of a run that trained adapters it writes these, as PEFT has them; with --merged the whole model (docs/lora.md). Needs no
accelerator, and of the memory twice what the parameters take. The run is not changed. The directory of `--out` is new,
empty, or one of a policy that this package wrote (docs/files.md).
"""

from absl import flags

from actfer_jax import cli


def main(argv: list[str]) -> None:
    import jax

    from actfer_jax.training.export import export

    del argv
    given = flags.FLAGS
    # The memory of the host holds what one accelerator may not, and these are perhaps in use.
    jax.config.update("jax_platforms", "cpu")
    step = export(given.workdir, given.out, given.step, merged=given.merged)
    print(f"the policy after step {step} is in {given.out}")


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "workdir", None, "Directory of the run.", required=True)
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; the newest that is not damaged by default.")
    flags.DEFINE_bool("merged", False, "Merge trained adapters into the base, in float32.")
    cli.run(main)
