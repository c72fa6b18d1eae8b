"""Do the commands still write the same bytes? For changes that may not change behaviour, such as moving code.

    python benchmarks/fingerprint.py --json=before.json     # in the old checkout
    python benchmarks/fingerprint.py --json=after.json      # in the new one, on the same machine
    diff before.json after.json

Runs three steps of the demo, supervised and by reinforcement with forced arms, an evaluation and an `analyze`, and
writes the SHA-256 of every file that they leave: metrics, episode records, pictures, evaluations, results, weights and
pages. What measures the machine, dates the run or names its directory is left out, and so are plots, which show the
date over what `results.json` has, and the index of records, which has their lengths.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from actfer_jax.data.datasets import synth_faces

RUN = ("--config.steps=3", "--config.data.size=64", "--config.evaluation.data.size=14", "--config.checkpoint.every=2")
COMMANDS = {
    "sft": ("train", "--config=configs/sft.py:demo", *RUN, "--config.traces.readings_steps=1", "--workdir={out}"),
    "rl": (
        "train",
        "--config=configs/ucgrpo.py:demo",
        *RUN,
        "--config.estimator.forced_arm_rate=0.5",
        "--workdir={out}",
    ),
    "evaluation": (
        *("evaluate", "--config=configs/eval/synth_faces.py", "--config.data.size=14"),
        *("--checkpoint={root}/rl/policy", "--out={out}"),
    ),
    "analysis": ("analyze", "{root}/0.png", "{root}/1.png", "--checkpoint={root}/rl/policy", "--out={out}"),
}
LEFT_OUT = re.compile(
    r"checkpoints/|compilation_cache/|events\.out\.tfevents|manifest\.json|^[a-z]+\.png$|(^|/)\.|\.index$"
)
UNSTEADY = re.compile(r"perf/|.*latency_p|seconds$|date$|git_commit$|git_modified$|version$|checkpoint$|policy$")
"""Keys of JSON whose values measure the machine, date the run or name a directory."""


def steady(value: Any) -> Any:
    """A value from JSON without what may differ from run to run."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if not UNSTEADY.match(key)}
    return [steady(item) for item in value] if isinstance(value, list) else value


def contents(path: Path, root: Path) -> bytes:
    """What counts of a file."""
    if path.suffix == ".jsonl":
        return b"\n".join(json.dumps(steady(json.loads(line))).encode() for line in path.read_text().splitlines())
    if path.suffix == ".json":
        return json.dumps(steady(json.loads(path.read_text()))).encode()
    if path.suffix == ".html":
        text = path.read_text().replace(str(root), "ROOT")
        return re.sub(r"\d\d\d\d-\d\d-\d\dT[\d:]+Z?|\d+\.\d+ s\b", "", text).encode()
    return path.read_bytes()


def hashes(root: Path) -> Iterator[tuple[str, str]]:
    for name in COMMANDS:
        for path in sorted((root / name).rglob("*")):
            if path.is_file() and not LEFT_OUT.search(path.relative_to(root / name).as_posix()):
                yield path.relative_to(root).as_posix(), hashlib.sha256(contents(path, root)).hexdigest()


def run(root: Path, name: str, command: Sequence[str]) -> None:
    module, *flags = [part.format(root=root, out=root / name) for part in command]
    print(f"{name}: {module} {' '.join(flags)}", file=sys.stderr, flush=True)
    with (root / f"{name}.log").open("w") as log:
        ended = subprocess.run([sys.executable, "-m", f"actfer_jax.{module}", *flags], stdout=log, stderr=log)
    if ended.returncode:
        sys.exit(f"error: it ended with {ended.returncode}:\n{(root / f'{name}.log').read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the hashes, by file")
    given = parser.parse_args()
    # The directory has one name in all runs, since it may stand in what is written.
    root = Path(tempfile.gettempdir()) / "actfer_jax-fingerprint"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for index in range(2):
        image = synth_faces.render(synth_faces.face_of("validation", index)).image
        Image.fromarray(image).save(root / f"{index}.png")
    for name, command in COMMANDS.items():
        run(root, name, command)
    found = dict(hashes(root))
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} files: {given.json}")


if __name__ == "__main__":
    main()
