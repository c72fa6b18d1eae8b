"""What a study is going to do, in words, before anything is run."""

import shlex

from actfer_jax.evaluation.tables import align
from actfer_jax.studies.config import StudyConfig
from actfer_jax.studies.grid import commands
from actfer_jax.studies.report import design
from actfer_jax.studies.run import Study
from actfer_jax.studies.tables import design_table


def design_text(config: StudyConfig) -> str:
    """The question, and the differences that the design can see."""
    lines = [config.question]
    if config.contrasts:
        titles = {method.name: method.shown for method in config.methods}
        lines.append(f"What paired t tests of {config.primary} find with power 0.8, in deviations of the differences:")
        lines.append(align(design_table(design(config), titles), left=1))
    return "\n".join(lines)


def plan_text(study: Study) -> str:
    """The question, the design, and the command lines of every cell."""
    lines = [design_text(study.config)]
    for cell in study.cells:
        start = None if cell.start is None else study.directory(cell.start)
        lines.append(f"\n{cell.name}")
        for command in commands(study.config, cell, study.directory(cell), start, {cell.method.name: "CHOSEN"}):
            lines.append(f"  python -m {shlex.join(command.arguments)}")
    return "\n".join(lines)
