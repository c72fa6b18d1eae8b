"""The hours and dollars of a training of examples/reproduce.sh, from a report of `compile_check`; nothing is measured.

python -m examples.reproduce_hours docs/compile_check/v5e-4x4.json --dollars_per_chip_hour=1.2
"""

import argparse
import json
from pathlib import Path


def words(path: Path, dollars_per_chip_hour: float) -> str:
    """The estimate as a line says it."""
    if not path.is_file():
        return f"hours unknown: there is no {path}"
    report = json.loads(path.read_text())
    hours = report["estimate"]["hours"]
    if hours is None:
        return f"hours unknown: a program of {path} has no estimate"
    price = f", ${hours * report['chips'] * dollars_per_chip_hour:.0f}" if dollars_per_chip_hour else ""
    return f"{hours:.1f} hours{price} on {report['topology']} (estimated, {path})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The hours and dollars of a training, from a report of compile_check.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--dollars_per_chip_hour", type=float, default=0.0)
    given = parser.parse_args()
    print(words(given.report, given.dollars_per_chip_hour))
