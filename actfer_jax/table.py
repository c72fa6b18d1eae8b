"""Prints the figures of finished evaluations as a table, and tests between them (docs/benchmarks.md).

    python -m actfer_jax.table RUN [RUN ...] --format=latex
    python -m actfer_jax.table RUN OTHER --compare
    python -m actfer_jax.table RUN RUN ... --pool

A RUN is a directory that `evaluate` wrote, of episodes or of scored predictions; all are of one benchmark.
`--metrics=accuracy,uar` chooses the figures. `--strata` shows the figures of each stratum. `--compare` tests the first
run against each other one, and a single run against its controls. `--pool` counts runs as one whose policies were each
tested on another subject.
"""

from absl import flags

from actfer_jax import cli
from actfer_jax.errors import UserError
from actfer_jax.files import as_path


def main(argv: list[str]) -> None:
    from actfer_jax.evaluation.paper import comparison_table, legend, main_table, render, strata_table
    from actfer_jax.evaluation.pool import pool
    from actfer_jax.evaluation.results import read_results

    given = flags.FLAGS
    if len(argv) < 2:
        raise UserError("give at least one directory that `evaluate` wrote: python -m actfer_jax.table RUN [RUN ...]")
    runs = [read_results(as_path(path)) for path in argv[1:]]
    if given.pool:
        runs = [pool(runs)]
    if given.compare or given.strata:
        if given.metrics:
            raise UserError("--metrics chooses the figures of the main table, without --compare and --strata")
        rows = comparison_table(runs) if given.compare else strata_table(runs)
    else:
        rows = main_table(runs, given.metrics)
    print(render(rows, given.format) + legend(rows, given.format), end="")


if __name__ == "__main__":
    flags.DEFINE_enum("format", "md", ["md", "latex", "csv"], "Markdown, LaTeX or CSV.")
    flags.DEFINE_list("metrics", [], "The figures to show, by their names in results.json; all by default.")
    flags.DEFINE_bool("strata", False, "Show the figures of each stratum.")
    flags.DEFINE_bool("pool", False, "Count the runs as one: each was tested on other samples.")
    flags.DEFINE_bool("compare", False, "Test the runs against each other.")
    cli.run(main, arguments=True)
