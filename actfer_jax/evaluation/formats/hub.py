"""The Hugging Face Hub's `.eval_results/*.yaml` (hub-docs at 064c754), one file for each control.

A model's repository shows them, and the benchmark's data set ranks them. The Hub takes a `task_id` only if the data
set's own `eval.yaml` names it. Values are percentages. The files hold no predictions.
"""

import re
from collections.abc import Mapping, Sequence

import yaml

from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import figures_of
from actfer_jax.evaluation.items import NORMAL, Answer
from actfer_jax.evaluation.results import Results

_NOTES = {NORMAL: "tools", "no_tools": "no-tools"}


def write(results: Results, answers: Mapping[str, Sequence[Answer]]) -> dict[str, str]:
    if not results.hub_dataset:
        raise UserError("hub: give --hub_dataset=OWNER/NAME, the data set on the Hub that ranks these figures")
    stem = re.sub(r"[^\w.-]+", "_", results.provenance["dataset"])
    files = {}
    for control, summary in results.summaries.items():
        shared = {"date": results.provenance["date"]}
        if results.tools:  # Those of predictions are not known.
            shared["notes"] = _NOTES.get(control, f"tools, {control}")
        entries = [
            {"dataset": {"id": results.hub_dataset, "task_id": name}, "value": round(100 * value, 2), **shared}
            for name, figure in figures_of(results.benchmark, summary).items()
            if (value := figure["value"]) is not None
        ]
        ending = "" if control == NORMAL else f"-{control}"
        files[f".eval_results/{stem}{ending}.yaml"] = yaml.safe_dump(entries, sort_keys=False)
    return files
