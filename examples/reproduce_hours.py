"""The hours and dollars of a step of examples/reproduce.sh, from a report of `compile_check`; nothing is measured.

    python -m examples.reproduce_hours docs/compile_check/v5e-4x4.json --dollars_per_chip_hour=1.2
    python -m examples.reproduce_hours docs/compile_check/v5e-4x4.json --samples=11072

With `--samples` it is that of an evaluation: batches as in the evaluations of the training that the report is about,
each with one prefill, and every turn of every row at its full length.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from configs import ucgrpo


def hours(report: dict[str, Any], samples: int = 0) -> float | None:
    """Of the training, or of an evaluation of so many samples; None where a part has no estimate."""
    if not samples:
        return report["estimate"]["hours"]
    config = ucgrpo.get_config("ferbench")
    seconds = {program["name"]: program["estimated_seconds"] for program in report["programs"]}
    rollout, queries = config.rollout, config.evaluation.queries
    runs = {
        "prefill": 1,
        "decode chunk": rollout.max_turns * math.ceil(rollout.turn_tokens / rollout.chunk),
        "slot fill": (rollout.max_turns - 1) * math.ceil(queries / rollout.fill_rows),
    }
    parts = [(seconds.get(f"evaluation: {name}"), times) for name, times in runs.items()]
    if any(one is None for one, _ in parts):
        return None
    return math.ceil(samples / queries) * sum(one * times for one, times in parts if one is not None) / 3600


def words(path: Path, dollars_per_chip_hour: float, samples: int) -> str:
    """The estimate as a line says it."""
    if not path.is_file():
        return f"hours unknown: there is no {path}"
    report = json.loads(path.read_text())
    found = hours(report, samples)
    if found is None:
        return f"hours unknown: a program of {path} has no estimate"
    price = f", ${found * report['chips'] * dollars_per_chip_hour:.0f}" if dollars_per_chip_hour else ""
    return f"{found:.1f} hours{price} on {report['topology']} (estimated, {path})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The hours and dollars of a step, from a report of compile_check.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--dollars_per_chip_hour", type=float, default=0.0)
    given = parser.parse_args()
    print(words(given.report, given.dollars_per_chip_hour, given.samples))
