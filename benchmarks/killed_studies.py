"""Does a study that was killed end with the report of a study in peace?

    python benchmarks/killed_studies.py --json=docs/results/killed_studies.json

Runs the smallest study (tests/studies/tiny.py) without a kill, then kills another ten times with SIGKILL, at instants
drawn over the time that the first one took, and starts it again each time; every second time its commands are killed
too. Reports must be equal, but for what they took and when. Then all cells are run again by `--verify`. Prints what
happened; exits with 1 where something differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from places import check_places

from actfer_jax.files import as_path, write_atomically
from actfer_jax.studies.report import COSTS

KILLS = 10
CHEAP = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of machine code: compiles faster


def begin(workdir: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "actfer_jax.study", "--config=tests/studies/tiny.py", f"--workdir={workdir}"]
    # A session of its own, so that its commands can be killed with it.
    return subprocess.Popen([*command, *extra], env=os.environ | CHEAP, start_new_session=True)


def report(workdir: Path) -> dict[str, Any]:
    found = json.loads((workdir / "report" / "report.json").read_text())
    return {key: value for key, value in found.items() if key not in COSTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdir", type=as_path, default=Path("runs/killed_studies"), help="where the studies are kept"
    )
    parser.add_argument("--json", type=as_path, help="file for the figures")
    given = parser.parse_args()
    root = Path(given.workdir)
    check_places(json=given.json, workdir=root)
    peaceful, killed = root / "peaceful", root / "killed"
    shutil.rmtree(peaceful, ignore_errors=True)
    shutil.rmtree(killed, ignore_errors=True)

    began = time.monotonic()
    if begin(peaceful).wait():
        sys.exit("error: the study that nothing happens to fails")
    took, chance, kills = time.monotonic() - began, random.Random(0), list[dict[str, Any]]()
    for number in range(KILLS):
        process = begin(killed)
        after = chance.uniform(0, took / KILLS * 2)
        time.sleep(after)
        everything = number % 2 == 1
        if process.poll() is None:
            (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        done = len(list(killed.glob("cells/**/results.json")))
        kills.append({"seconds": round(after, 1), "commands_too": everything, "evaluations_done": done})
        print(kills[-1], file=sys.stderr, flush=True)
    status = begin(killed).wait()
    same = status == 0 and report(killed) == report(peaceful)
    verified = begin(killed, "--verify=100").wait() == 0
    figures = {"seconds": round(took, 1), "kills": kills, "same_report": same, "verified": verified}
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, json.dumps(figures, indent=1) + "\n")
    print(f"{KILLS} kills: the report is {'the same' if same else 'another'}")
    print(f"run again: the cells are {'the same, bit for bit' if verified else 'others'}")
    sys.exit(not (same and verified))


if __name__ == "__main__":
    main()
