"""Does a training that was killed, or whose newest checkpoint was damaged, end as if nothing had happened?

    python benchmarks/disturbed_training.py --json=docs/results/disturbed.json

Trains the small policy (tests/hosts_config.py). Kills: two processes with two devices each, one or both of which get
SIGKILL at an instant drawn over the time of an undisturbed run (for half of the runs: from the first or second step on,
since most of so short a run compiles), are started again. Damages: a file of the newest checkpoint of a run in one
process is changed (benchmarks/damages.py), and the run is started again: it has to name the damage, set the checkpoint
aside and go on from the one before. Every run has to end with the same metrics, episodes and policy as the undisturbed
one, bit for bit. Prints a table; exits with 1 where one does not.

Runs that are complete are not run again, so the same command goes on where it was stopped.
"""

import argparse
import json
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from damages import DAMAGES
from equal_training import ends, episodes, log_of, metrics, start
from places import check_places

from actfer_jax.evaluation.tables import align
from actfer_jax.files import absolute, as_path, write_atomically
from actfer_jax.runs.manifest import MANIFEST
from actfer_jax.runs.metrics import read_metrics

KILLS = 12
DAMAGES_EACH = 10
TWO = {"processes": 2, "devices": 2}
MESHES = ["--config.mesh.update=(1,4,1)", "--config.mesh.rollout=(2,1,2)"]
POLICY = Path("policy", "model.safetensors")


def arguments(workdir: Path) -> list[str]:
    return ["--config=tests/hosts_config.py:rl", f"--config.data.cache_directory={workdir.parent}/data"]


def same(workdir: Path, expected: Path) -> bool:
    """Whether two complete runs are the same, bit for bit, but for the time they took."""
    return (
        metrics(workdir) == metrics(expected)
        and episodes(workdir) == episodes(expected)
        and (workdir / POLICY).read_bytes() == (expected / POLICY).read_bytes()
    )


def kept(workdir: Path) -> dict[str, Any] | None:
    """What an earlier call of this script measured of a run."""
    path = workdir.with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else None


def keep(workdir: Path, figures: dict[str, Any]) -> dict[str, Any]:
    write_atomically(workdir.with_suffix(".json"), json.dumps(figures))
    print(f"{workdir.name}: {figures}", file=sys.stderr, flush=True)
    return figures


def undisturbed(workdir: Path, *extra: str, **options: int) -> dict[str, Any]:
    """A run that nothing happens to; when it had its manifest and its policy, seconds after its start."""
    if figures := kept(workdir):
        return figures
    shutil.rmtree(workdir, ignore_errors=True)
    began = time.time()
    codes = ends(start(workdir, [*arguments(workdir), *extra], **options), 900)
    if any(codes):
        sys.exit(f"error: {workdir} ended with {codes}, see {log_of(workdir, 0)}")
    return keep(workdir, {str(name): (workdir / name).stat().st_mtime - began for name in (MANIFEST, POLICY)})


def steps_done(workdir: Path) -> int:
    """The newest checkpoint, 0 for none."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()), default=0)


def kill(workdir: Path, expected: Path, seed: int) -> dict[str, Any]:
    """Kills one process of two, or both, at a random instant; starts the run again."""
    if figures := kept(workdir):
        return figures
    shutil.rmtree(workdir, ignore_errors=True)
    chance = random.Random(seed)
    after_step = 0 if seed < KILLS // 2 else chance.choice((1, 2))
    # Of the first process, seconds to its manifest and to its policy; seconds of a step.
    range_of_instants = (0, read_metrics(expected)[-1]["perf/step_s"]) if after_step else undisturbed(expected).values()
    after = chance.uniform(*range_of_instants)
    victims = chance.choice([(0,), (1,), (0, 1)])
    processes = start(workdir, [*arguments(workdir), *MESHES], **TWO)
    while after_step and f"step {after_step}/" not in log_of(workdir, 0).read_text():
        if processes[0].poll() is not None:
            sys.exit(f"error: {workdir} ended before it was killed, see {log_of(workdir, 0)}")
        time.sleep(0.05)
    time.sleep(after)
    for victim in victims:
        processes[victim].send_signal(signal.SIGKILL)
    codes = ends(processes, 300)
    saved = steps_done(workdir)
    again = ends(start(workdir, [*arguments(workdir), *MESHES], **TWO), 900)
    return keep(
        workdir,
        {
            "seed": seed,
            "after_step": after_step,
            "seconds": round(after, 1),
            "killed": victims,
            "exit_codes": codes,
            "saved_steps": saved,
            "exit_codes_again": again,
            "same": not any(again) and same(workdir, expected),
        },
    )


def damage(workdir: Path, expected: Path, change: Callable[[random.Random, Path], None], seed: int) -> dict[str, Any]:
    """Damages the newest checkpoint of a run; starts the run again."""
    if figures := kept(workdir):
        return figures
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(expected, workdir)
    shutil.rmtree(workdir / "policy")
    newest = steps_done(workdir)
    change(random.Random(seed), workdir / "checkpoints" / str(newest))
    codes = ends(start(workdir, arguments(workdir)), 900)
    log = log_of(workdir, 0).read_text()
    found = re.search(rf"checkpoint \S+/{newest} is damaged \((.*)\): moved", log)
    figures = {
        "kind": change.__name__,
        "seed": seed,
        "noticed": found[1] if found else "",
        "resumed_before_it": f"continuing after step {newest - 1} of {newest}" in log,
        "set_aside": (workdir / "checkpoints" / "damaged" / str(newest)).is_dir(),
        "traceback": "Traceback" in log,
        "exit_codes": codes,
        "same": not any(codes) and same(workdir, expected),
    }
    shutil.rmtree(workdir)
    return keep(workdir, figures)


def table(kills: Sequence[dict[str, Any]], damages: Sequence[dict[str, Any]]) -> str:
    lines = [["what", "runs", "noticed", "went on", "same bits"]]
    for victims in ([0], [1], [0, 1]):
        runs = [run for run in kills if list(run["killed"]) == victims]
        name = "both processes killed" if len(victims) > 1 else f"process {victims[0]} killed"
        went_on = sum(not any(run["exit_codes_again"]) for run in runs)
        lines.append([name, str(len(runs)), "-", str(went_on), str(sum(run["same"] for run in runs))])
    for change in DAMAGES:
        runs = [run for run in damages if run["kind"] == change.__name__]
        noticed = sum(bool(run["noticed"]) and run["set_aside"] for run in runs)
        went_on = sum(run["resumed_before_it"] and not any(run["exit_codes"]) for run in runs)
        lines.append([change.__name__.replace("_", " "), str(len(runs)), str(noticed), str(went_on)])
        lines[-1].append(str(sum(run["same"] for run in runs)))
    return align(lines, left=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=as_path, default=Path("runs/disturbed"), help="where the runs are kept")
    parser.add_argument("--json", type=as_path, help="file for the figures")
    given = parser.parse_args()
    root = Path(absolute(given.workdir))
    check_places(json=given.json, workdir=root)
    root.mkdir(parents=True, exist_ok=True)

    alone, together = root / "alone", root / "together"
    undisturbed(alone)
    damages = [
        damage(root / f"{change.__name__}-{seed}", alone, change, seed)
        for change in DAMAGES
        for seed in range(DAMAGES_EACH)
    ]
    undisturbed(together, *MESHES, **TWO)
    kills = [kill(root / f"killed-{seed}", together, seed) for seed in range(KILLS)]
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, json.dumps({"kills": kills, "damages": damages}, indent=1) + "\n")
    print(table(kills, damages))
    sound = [
        run["noticed"] and run["resumed_before_it"] and run["set_aside"] and not run["traceback"] for run in damages
    ]
    sys.exit(not all([*sound, *(run["same"] for run in [*kills, *damages])]))


if __name__ == "__main__":
    main()
