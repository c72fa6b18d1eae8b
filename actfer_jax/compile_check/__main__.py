"""Compiles every program of a training run for a TPU pod, on a machine without one: whether they fit, what they take.

    pip install libtpu
    python -m actfer_jax.compile_check --config=configs/ucgrpo.py --topology=v5e:4x4 [--json=FILE]
    python -m actfer_jax.compile_check --config=configs/ucgrpo.py --topology=2xv5e:8x8 \\
        --config.mesh.slices=2 "--config.mesh.update=(2,-1,1)"

It needs only shapes: no weights, no data, no TPU. `2xv5e:8x8` is two slices. `--programs=update,prefill` compiles only
these. `--longest_row`, `--mean_row` and `--mean_prompt` say how long rows are, for the time of a step, and
`--dollars_per_chip_hour` asks what the run costs. For one GPU of 80 GB, `gpu:80`, nothing is compiled: memory is
reckoned. A config without `config.model.path` gets the sizes of Qwen3-VL-4B; else the path needs only a config.json. If
a program does not fit, it says what to change and ends with status 1. docs/compile_check.md explains the table.
"""

import json
import os
import sys

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.outputs import check_file, write_file


def main(argv: list[str]) -> None:
    import jax

    from actfer_jax.compile_check import gpu
    from actfer_jax.compile_check.check import NO_TPU, compile_check, load_config
    from actfer_jax.compile_check.results import GIB, Result
    from actfer_jax.compile_check.step import Assumed, in_words

    del argv
    given = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    os.environ |= NO_TPU
    config, model_config = load_config(given.config)
    if given.json:
        check_file(given.json, "JSON")
    if gpu.gpu_memory(given.topology):
        report, lines = gpu.report(config, model_config, given.topology)
    else:
        assumed = Assumed(
            given.mean_row, given.mean_prompt, given.longest_row, given.loop_trips, given.dollars_per_chip_hour
        )
        report, lines = compile_check(config, model_config, given.topology, given.programs, assumed)
        lines += "\n" + in_words(report["estimate"], config.steps)
    print(lines)
    print("The vision tower runs inside of prefill, slot fill, log-probs and update.")
    print("; ".join(f"{name} {size / GIB:.2f} GiB" for name, size in report["kept_bytes"].items()))
    if given.json:
        write_file(given.json, json.dumps(report, indent=1) + "\n")
    large = [result for program in report["programs"] if not (result := Result(**program)).fits]
    for result in large:
        detail = result.error or f"{result.total / GIB:.2f} GiB"
        print(f"error: {result.name} does not fit on {given.topology} ({detail}); try {result.advice}", file=sys.stderr)
    if large:
        sys.exit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config file, perhaps with a variant: file.py:demo.")
    flags.DEFINE_string(
        "topology", None, "TPU generation and shape, such as v5e:4x4 or 2xv5e:4x4; or gpu:80.", required=True
    )
    flags.DEFINE_list("programs", [], "Compile only these, by their names in the table.")
    flags.DEFINE_integer("mean_row", None, "Positions of a row on average, for the estimates.", lower_bound=1)
    flags.DEFINE_integer("mean_prompt", None, "Positions of a prompt on average, for the estimates.", lower_bound=1)
    flags.DEFINE_integer("longest_row", None, "Most positions of a row, for the estimates.", lower_bound=1)
    flags.DEFINE_integer("loop_trips", 0, "How often loops run of which a program does not say it.", lower_bound=0)
    flags.DEFINE_float("dollars_per_chip_hour", None, "Price of a chip, for what the run costs.", lower_bound=0.0)
    flags.DEFINE(cli.PathFlag(), "json", None, "File for the results.")
    flags.mark_flag_as_required("config")
    cli.run(main, config="training.config.TrainConfig")
