"""How long a training takes to end: told to stop at the demo's size, and after its peer was killed.

    python benchmarks/stop_times.py --json=docs/results/stop_times.json

Starts the demo's reinforcement learning and, once it has made two steps, sends SIGTERM at instants spread over a step:
it saves a checkpoint and ends. Then starts two processes that train together (tests/hosts_config.py) and kills one of
them: the other must notice. Prints seconds until the last process has ended, and exit codes; exits with 1 where that
took longer than it may.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from equal_training import SIZES, log_of, start
from places import check_places

from actfer_jax.files import absolute, as_path, write_atomically

DEMO = ("--config=configs/ucgrpo.py:demo", "--config.evaluation.data.size=7", "--config.evaluation.controls=()")
DEMO_DELAYS = (0.5, 2.0, 4.0)
"""Seconds after the second step at which SIGTERM is sent."""
STOP_SECONDS, END_SECONDS = 30, 60
"""Most that a checkpoint and an end may take, and most until a process has noticed that its peer is gone."""


def wait_for_step(workdir: Path, processes: list[subprocess.Popen], step: int) -> None:
    """Returns once the first process has made a step."""
    while f"step {step}/" not in log_of(workdir, 0).read_text():
        if any(process.poll() is not None for process in processes):
            sys.exit(f"error: a process of {workdir} ended early, see {log_of(workdir, 0)}")
        time.sleep(0.05)


def end(processes: list[subprocess.Popen], victim: int, number: signal.Signals) -> dict[str, Any]:
    """Sends a signal to one process, and waits for all."""
    began = time.monotonic()
    processes[victim].send_signal(number)
    codes = [process.wait(timeout=600) for process in processes]
    seconds = time.monotonic() - began
    return {"seconds": round(seconds, 1), "exit_codes": codes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=as_path, default=Path("runs/stop_times"), help="where the runs are kept")
    parser.add_argument("--json", type=as_path, help="file for the figures")
    given = parser.parse_args()
    root = Path(absolute(given.workdir))
    check_places(json=given.json)
    root.mkdir(parents=True)
    figures: dict[str, list[dict[str, Any]]] = {"told_to_stop": [], "peer_killed": []}
    for index, delay in enumerate(DEMO_DELAYS):
        workdir = root / f"told-{index}"
        processes = start(workdir, DEMO)
        wait_for_step(workdir, processes, 2)
        time.sleep(delay)
        figures["told_to_stop"].append({"after": delay} | end(processes, 0, signal.SIGTERM))
    for victim in range(2):
        workdir = root / f"killed-{victim}"
        processes = start(workdir, ["--config=tests/hosts_config.py:rl", *SIZES["rl"]], processes=2, devices=2)
        wait_for_step(workdir, processes, 1)
        figures["peer_killed"].append({"killed": victim} | end(processes, victim, signal.SIGKILL))
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, text + "\n")
    told, killed = figures["told_to_stop"], figures["peer_killed"]
    in_time = all(run["seconds"] <= STOP_SECONDS for run in told) and all(
        run["seconds"] <= END_SECONDS for run in killed
    )
    ended = all(run["exit_codes"] == [0] for run in told) and all(all(run["exit_codes"]) for run in killed)
    sys.exit(not (in_time and ended))


if __name__ == "__main__":
    main()
