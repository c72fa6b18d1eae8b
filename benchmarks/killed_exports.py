"""Does an export that is killed leave the old policy, the new one, or one that no command takes for whole?

    python benchmarks/killed_exports.py --json=docs/results/killed_exports.json

Makes a run of the small policy with two checkpoints, exports the first, and puts a model card beside it. Then the
export of the second into the same directory is killed (SIGKILL), ten times on a disk and ten times in a stand-in for a
bucket (tests/bucket.py): at an instant drawn over the time of an export, or, for half of them, over that of the
replacement, from the moment on at which config.json is gone. Each time the policy must load and be one of the two, file
by file, or be refused as not complete; the same command must then make it the second one; and the card must stay.
Prints a table; exits with 1 where that is not so.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from places import check_places

from actfer_jax.config import read_config
from actfer_jax.evaluation.tables import align
from actfer_jax.files import write_atomically
from actfer_jax.models import demo_checkpoint, load_pretrained
from actfer_jax.outputs import MARKER
from actfer_jax.runs.checkpoints import Checkpoints
from actfer_jax.runs.manifest import write_manifest
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.state import initial_state

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs import ucgrpo  # noqa: E402
from tests import bucket as stand_in  # noqa: E402

TRIES = 10
CONFIG = "config.json"
CARD = {"README.md": b"A model card."}

Files = dict[str, bytes]


def make_run(workdir: Path) -> None:
    """A run with two checkpoints; in that of step n all parameters are n more than the small policy's."""
    raw_config = ucgrpo.get_config("demo")
    workdir.mkdir()
    write_manifest(workdir, raw_config, "")
    config = read_config(raw_config, TrainConfig, "config")
    optimizer = make_optimizer(config.optimizer, 2)
    params = nnx.state(load_pretrained(demo_checkpoint()), nnx.Param)
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2):
            moved = jax.tree.map(lambda x, step=step: x + step, params)
            checkpoints.save(step, initial_state(moved, optimizer, config), {})


def export(workdir: Path, out: str, step: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "actfer_jax.export", f"--workdir={workdir}", f"--out={out}", f"--step={step}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(process: subprocess.Popen) -> None:
    if process.wait(timeout=600):
        sys.exit(f"error: {process.args} ended with {process.returncode}")


def policy(files: Files) -> Files:
    """The files that are read of a policy: not the marker, nor what an export makes beside them."""
    return {name: content for name, content in files.items() if ".actfer_" not in name and name not in CARD}


def verdict(files: Files, before: Files, after: Files, scratch: Path) -> str:
    """What a directory holds: "old", "new", or "incomplete" where it does not load; else what is wrong with it."""
    directory = scratch / "seen"
    shutil.rmtree(directory, ignore_errors=True)
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    try:
        load_pretrained(directory)
    except FileNotFoundError as error:
        return "incomplete" if "is not complete" in str(error) else f"refused: {error}"
    return {digest(before): "old", digest(after): "new"}.get(digest(policy(files)), "a mix that loads")


def digest(files: Files) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


class Disk:
    """A directory for a policy, in which it is replaced within some seconds."""

    seconds = 0.002

    def __init__(self, directory: Path):
        self.name, self.directory = str(directory), directory

    def in_replacement(self) -> bool:
        return not (self.directory / CONFIG).exists()

    def files(self) -> Files:
        """Those that go while they are read are passed over."""
        found = {}
        for path in self.directory.rglob("*"):
            with suppress(OSError):
                found[path.relative_to(self.directory).as_posix()] = path.read_bytes()
        return found

    def write(self, files: Files) -> None:
        """These files and no others."""
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        for name, content in files.items():
            (self.directory / name).write_bytes(content)


class Prefix:
    """A prefix in the bucket for a policy, in which it is replaced within some seconds."""

    seconds = 0.05

    def __init__(self, bucket: stand_in.Bucket):
        self.name, self.bucket = f"gs://{stand_in.NAME}/policy", bucket

    def in_replacement(self) -> bool:
        return f"policy/{CONFIG}" not in self.bucket.objects

    def files(self) -> Files:
        with self.bucket.lock:
            objects = dict(self.bucket.objects)
        return {name.removeprefix("policy/"): content for name, content in objects.items() if not name.endswith("/")}

    def write(self, files: Files) -> None:
        with self.bucket.lock:
            self.bucket.objects.clear()
            for name, content in files.items():
                self.bucket.put(f"policy/{name}", content)


def tries(workdir: Path, out: Disk | Prefix, scratch: Path) -> list[dict[str, Any]]:
    """Kills exports to a place."""
    finished(export(workdir, out.name, 2))
    after = policy(out.files())
    began = time.monotonic()
    finished(export(workdir, out.name, 1))
    seconds = time.monotonic() - began
    before, whole = policy(out.files()), out.files() | CARD
    results = []
    for seed in range(TRIES):
        chance, drawn_over_all = random.Random(seed), seed < TRIES // 2
        out.write(whole)
        process = export(workdir, out.name, 2)
        while not drawn_over_all and process.poll() is None and not out.in_replacement():
            time.sleep(0.0001)
        delay = chance.uniform(0, seconds if drawn_over_all else out.seconds)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        states = [out.files()]
        finished(export(workdir, out.name, 2))
        states.append(out.files())
        found, again = (verdict(files, before, after, scratch) for files in states)
        result = {"where": type(out).__name__.lower(), "seed": seed, "seconds": round(delay, 4)}
        result |= {"drawn_over": "all" if drawn_over_all else "replacement", "found": found, "again": again}
        result["card_kept"] = all(files.items() >= CARD.items() for files in states)
        result["left"] = sorted(states[1].keys() - after.keys() - CARD.keys() - {MARKER})
        print(result, file=sys.stderr, flush=True)
        results.append(result)
    return results


def table(results: list[dict[str, Any]]) -> str:
    lines = [["where", "kills", "old", "incomplete", "new", "anything else", "whole by the same command", "card kept"]]
    for where in dict.fromkeys(result["where"] for result in results):
        runs = [result for result in results if result["where"] == where]
        found = Counter(result["found"] for result in runs)
        counts = [found[name] for name in ("old", "incomplete", "new")]
        counts += [
            len(runs) - sum(counts),
            sum(run["again"] == "new" for run in runs),
            sum(run["card_kept"] for run in runs),
        ]
        lines.append([where, str(len(runs)), *map(str, counts)])
    return align(lines, left=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    check_places(json=given.json)
    # TensorFlow need not see at once what others write into a bucket.
    os.environ |= {"JAX_PLATFORMS": "cpu", "GCS_STAT_CACHE_MAX_AGE": "0"}
    with tempfile.TemporaryDirectory() as scratch, stand_in.serve(Path(scratch)) as bucket:
        os.environ |= bucket.environment
        workdir = Path(scratch, "run")
        make_run(workdir)
        results = [
            result
            for out in (Disk(Path(scratch, "policy")), Prefix(bucket))
            for result in tries(workdir, out, Path(scratch))
        ]
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, json.dumps(results, indent=1) + "\n")
    print(table(results))
    sound = [
        run["found"] in ("old", "incomplete", "new") and run["again"] == "new" and run["card_kept"] and not run["left"]
        for run in results
    ]
    sys.exit(not all(sound))


if __name__ == "__main__":
    main()
