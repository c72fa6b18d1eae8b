"""Is anything lost when a training is started twice, killed, and started again without its checkpoints?

    python benchmarks/contested_training.py --json=docs/results/contested.json

Trains the small policy (tests/hosts_config.py), ten times with its workdir on a disk and ten times in a bucket (the
stand-in of the tests). At an instant drawn over the first half of an undisturbed run the same command is started a
second time: one of the two has to be refused. At another instant, drawn over all of the run, the other gets SIGKILL,
and the command is started again at once: it has to go on without waiting. When that run has ended, its checkpoints are
removed, and the command is started once more: everything that was there has to be kept aside. Every run has to end with
the same metrics, episodes and policy as the undisturbed one, bit for bit. Prints a table; exits with 1 where one does
not.

Runs that are complete are not run again, so the same command goes on where it was stopped.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from disturbed_training import POLICY, arguments, keep, kept, same, undisturbed
from equal_training import ROOT, ends, episodes, log_of, metrics, start

from actfer_jax.evaluation.tables import align
from actfer_jax.files import write_atomically

sys.path.append(str(ROOT))
from tests import bucket as stand_in

TRIES = 10


class Storage(Protocol):
    """Where the workdirs of some runs are."""

    name: str

    def address(self, workdir: Path) -> str:
        """What `--workdir` is to be for a run that is compared in a local directory."""

    def fetch(self, workdir: Path) -> None:
        """Makes the local directory what the workdir is."""

    def remove_checkpoints(self, workdir: Path) -> None:
        """Removes all of a run's checkpoints."""


class Disk:
    name = "disk"

    def address(self, workdir: Path) -> str:
        return str(workdir)

    def fetch(self, workdir: Path) -> None:
        pass

    def remove_checkpoints(self, workdir: Path) -> None:
        shutil.rmtree(workdir / "checkpoints")


class InBucket:
    name = "bucket"

    def __init__(self, bucket: stand_in.Bucket):
        self._bucket = bucket

    def address(self, workdir: Path) -> str:
        return f"gs://{stand_in.NAME}/{workdir.name}"

    def fetch(self, workdir: Path) -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        for name, content in self._of(workdir).items():
            path = workdir.parent / name
            if not name.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def remove_checkpoints(self, workdir: Path) -> None:
        for name in self._of(workdir):
            if name.startswith(f"{workdir.name}/checkpoints/"):
                del self._bucket.objects[name]

    def _of(self, workdir: Path) -> dict[str, bytes]:
        with self._bucket.lock:
            return {k: v for k, v in self._bucket.objects.items() if k.startswith(f"{workdir.name}/")}


def contest(storage: Storage, workdir: Path, expected: Path, seconds: float, seed: int) -> dict[str, Any]:
    """One try; `seconds` is how long an undisturbed run takes."""
    if figures := kept(workdir):
        return figures
    shutil.rmtree(workdir, ignore_errors=True)
    chance = random.Random(f"{storage.name} {seed}")
    second_after, killed_after = chance.uniform(0, seconds / 2), chance.uniform(0, seconds)
    command = [*arguments(workdir), f"--workdir={storage.address(workdir)}"]

    began = time.monotonic()
    runs = [workdir, workdir.with_name(f"{workdir.name}-rival")]
    processes = start(runs[0], command)
    time.sleep(second_after)
    processes += start(runs[1], command)
    while not any(ended := [process.poll() is not None for process in processes]):
        time.sleep(0.05)
    refused, trains = (0, 1) if ended[0] else (1, 0)
    said = log_of(runs[refused], 0).read_text()
    with suppress(subprocess.TimeoutExpired):
        processes[trains].wait(timeout=max(killed_after - (time.monotonic() - began), 0))
    ended_before = processes[trains].poll() is not None
    processes[trains].kill()
    processes[trains].wait()
    again = ends(start(workdir, command), 900)
    waited = "waiting up to" in log_of(workdir, 0).read_text()
    storage.fetch(workdir)
    figures = {
        "storage": storage.name,
        "seed": seed,
        "second_after": round(second_after, 1),
        "killed_after": round(killed_after, 1),
        "ended_before": ended_before,
        "refused": processes[refused].returncode == 1 and "is being trained by process" in said,
        "traceback": "Traceback" in said,
        "exit_codes_again": again,
        "waited": waited,
        "same": not any(again) and same(workdir, expected),
    }

    storage.remove_checkpoints(workdir)
    once_more = ends(start(workdir, command), 900)
    storage.fetch(workdir)
    (aside,) = (workdir / "superseded").iterdir()
    figures |= {
        "named": f"superseded/{aside.name}" in log_of(workdir, 0).read_text(),
        "kept_aside": metrics(aside) == metrics(expected)
        and episodes(aside) == episodes(expected)
        and (aside / POLICY).read_bytes() == (expected / POLICY).read_bytes(),
        "same_without_checkpoints": not any(once_more) and same(workdir, expected),
    }
    shutil.rmtree(workdir)
    return keep(workdir, figures)


def table(tries: list[dict[str, Any]]) -> str:
    lines = [["workdir", "tries", "second refused", "went on at once", "same bits", "kept aside", "same bits again"]]
    for name in ("disk", "bucket"):
        of = [found for found in tries if found["storage"] == name]
        counts = [
            sum(found["refused"] and not found["traceback"] for found in of),
            sum(not any(found["exit_codes_again"]) and not found["waited"] for found in of),
            sum(found["same"] for found in of),
            sum(found["named"] and found["kept_aside"] for found in of),
            sum(found["same_without_checkpoints"] for found in of),
        ]
        lines.append([name, str(len(of)), *map(str, counts)])
    return align(lines, left=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/contested"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    root = given.workdir.absolute()
    root.mkdir(parents=True, exist_ok=True)
    # All starts share their compiled programs, so that most of a run is not compiling.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{root}/programs"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # TensorFlow need not see at once what others write into a bucket.
    os.environ["GCS_STAT_CACHE_MAX_AGE"] = "0"

    undisturbed(root / "compiles")
    seconds = undisturbed(root / "alone")[str(POLICY)]
    with tempfile.TemporaryDirectory() as certificate, stand_in.serve(Path(certificate)) as bucket:
        os.environ.update(bucket.environment)
        tries = [
            contest(storage, root / f"{storage.name}-{seed}", root / "alone", seconds, seed)
            for storage in (Disk(), InBucket(bucket))
            for seed in range(TRIES)
        ]
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, json.dumps(tries, indent=1) + "\n")
    print(table(tries))
    sound = all(
        found["refused"] and not found["traceback"] and not found["waited"] and found["named"] and found["kept_aside"]
        for found in tries
    )
    sys.exit(not (sound and all(found["same"] and found["same_without_checkpoints"] for found in tries)))


if __name__ == "__main__":
    main()
