"""Runs a study, a grid of methods and seeds, and writes what it says as one page.

    python -m actfer_jax.study --config=configs/studies/ablation.py --workdir=runs/ablation --processes=2

Each cell is a training with its evaluations, in processes and a directory of its own. The same command goes on with a
study that was stopped or killed, and ends with the same report: `report/index.html`, `report.md`, `report.tex` and
`report.json`. What the design can see is printed first. docs/studies.md has the rest.

`--dry_run` prints the command lines of all cells. `--cells=grpo/*` runs some of them only, here or on another machine
with the same file system. `--verify=2` runs two cells of a study again, and says whether they come out bit for bit.
"""

import logging
import signal
import sys

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli


def main(argv: list[str]) -> None:
    from actfer_jax.parallel.hosts import exit_as_told, termination
    from actfer_jax.studies.config import read_study_config
    from actfer_jax.studies.grid import named
    from actfer_jax.studies.page import check_place, write_study
    from actfer_jax.studies.plan import design_text, plan_text
    from actfer_jax.studies.run import Study, run_cells
    from actfer_jax.studies.verify import verify

    del argv
    given = flags.FLAGS
    study = Study.open(read_study_config(given.config), given.workdir)
    if given.dry_run:
        return print(plan_text(study))
    check_place(study)
    with termination() as stop:
        if given.verify:
            problems = verify(study, given.verify, given.processes, stop)
        else:
            logging.getLogger(__name__).info("%s", design_text(study.config))
            problems = run_cells(study, named(study.cells, given.cells), given.processes, stop)
    if stop.noticed:
        exit_as_told(signal.Signals(stop.noticed))
    if not given.verify and not given.cells:
        print(write_study(study, problems))
    if problems:
        said = "do not come out the same" if given.verify else "are not done"
        lines = [f"{cell}: {why}" for cell, why in problems.items()]
        sys.exit("\n  ".join([f"error: {len(lines)} cells {said}:", *lines]))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The study.")
    flags.DEFINE(
        cli.PathFlag(), "workdir", None, "Directory of the study; one that is there is continued.", required=True
    )
    flags.DEFINE_integer("processes", 1, "Cells at a time; they share the cores of this machine.", lower_bound=1)
    flags.DEFINE_list("cells", [], "Names of the cells to run, such as grpo/* or */seed-10; then no report is written.")
    flags.DEFINE_bool("dry_run", False, "Print the commands of all cells, and run none.")
    flags.DEFINE_integer("verify", 0, "How many of the cells to run again and compare.", lower_bound=0)
    flags.mark_flag_as_required("config")
    cli.run(main, config="studies.config.StudyConfig")
