"""Does every data set go from its files to a table? Check, two training steps and an evaluation, by commands.

    python benchmarks/play_data_sets.py --json=docs/results/data_sets.json
    python benchmarks/play_data_sets.py --only=disfa,casme2

The files are those of the tests (tests/data_fixtures.py), in the layout of each data set with its oddities; their
pictures are exchanged for rendered faces, which the face tools find. Each data set is checked, the small policy takes
two supervised steps on it, and is evaluated on the same samples by the data set's benchmark. Where samples have no
action units, none are asked for. Prints a line a data set; exits with 1 where a command fails. Takes a quarter of an
hour on one core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from places import check_places

from actfer_jax import plugins
from actfer_jax.data.datasets.synth_faces import render
from actfer_jax.data.datasets.synth_faces.second_world import sample_face
from actfer_jax.data.sources import open_source
from actfer_jax.episodes.store import read_episodes
from actfer_jax.files import as_path, write_atomically
from actfer_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import data_fixtures  # noqa: E402
from data_fixtures import WRITERS, config_of  # noqa: E402

LAYOUTS = {name: (name, writer) for name, writer in WRITERS.items()} | {
    "fer_plus_folders": ("fer_plus", data_fixtures.write_fer_plus_folders),
    "affectnet_later": ("affectnet", data_fixtures.write_affectnet_later),
    "affectnet_plus": ("affectnet", data_fixtures.write_affectnet_plus),
}
"""By the name of the layout: the data set, and what writes it."""
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".jfif"))
LEAST_SIDE = 96
BENCHMARKS = {"disfa": "disfa", "bp4d": "bp4d", "raf_au": "raf_au", "fea_20k": "fea_20k", "ferbench": "ferbench"}
BENCHMARKS |= dict.fromkeys(("casme2", "casme3", "samm", "smic", "dfme", "mmew", "four_dme"), "micro")
"""By data set, the benchmark that it is measured by; "recognition" of others."""

CONFIGS = '''"""A data set of the tests, for training or evaluation."""

from ml_collections import ConfigDict

from configs import sft
from configs.eval import synth_faces


def get_config(kind):
    config = sft.get_config("demo") if kind == "train" else synth_faces.get_config()
    config.data = ConfigDict({data!r})
    if kind == "train" and {unlabelled}:
        config.data.min_fit = 0.0  # Traces need an emotion.
    if kind == "evaluate":
        config.benchmark.name, config.images = {benchmark!r}, {images}
        return config
    config.steps, config.traces.readings_steps, config.logging.every = 2, 0, 1
    config.batch.queries, config.batch.microbatches, config.batch.length = 4, 1, 320
    config.model.initialise, config.rollout.ask_aus, config.rollout.images = "pretrained", {asks_aus}, {images}
    config.rollout.prompt_tokens, config.rollout.max_length = 160, 320
    del config.evaluation
    return config
'''


def put_faces(directory: Path) -> int:
    """Exchanges every picture for a rendered face, as large or larger; their number."""
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in PICTURES)
    count = 0
    for number, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                size, kind = picture.size, picture.format
        except OSError:
            continue  # The oddity is that it is no picture.
        face = render(sample_face((11, number)))
        scale = max(1.0, LEAST_SIDE / min(size))
        width, height = round(size[0] * scale), round(size[1] * scale)
        Image.fromarray(face.image).resize((width, height)).save(path, kind)
        count += 1
    return count


def run(*arguments: str) -> float:
    """Seconds of a command.

    Raises:
      RuntimeError: it failed; the message has what it said.
    """
    began = time.perf_counter()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return round(time.perf_counter() - began, 1)


def play(layout: str, root: Path) -> dict[str, Any]:
    """
    Raises:
      RuntimeError: a command failed.
    """
    files = root / "files"
    name, write = LAYOUTS[layout]
    given = {"name": name, "cache_directory": str(root / "cache")} | write(files)
    pictures = put_faces(files)
    source = open_source(config_of(**given))
    samples = [source[index] for index in range(len(source))]
    benchmark, images = BENCHMARKS.get(name, "recognition"), max(len(sample.images) for sample in samples)
    asks_aus = all(sample.reference.has_aus for sample in samples)
    unlabelled = any(sample.reference.labels and sample.reference.emotion is None for sample in samples)
    settings = {"benchmark": benchmark, "images": images, "asks_aus": asks_aus, "unlabelled": unlabelled}
    config = root / "config.py"
    config.write_text(CONFIGS.format(data=given, **settings))
    row = {"layout": layout, "pictures": pictures, "samples": len(source), "images": images, "aus": asks_aus}
    if hasattr(plugins.load("data.datasets", name), "inventory"):
        keys = [f"--set={key}={value}" for key, value in given.items() if key not in ("name", "directory")]
        row["check_s"] = run("actfer_jax.data.check", name, f"--data_dir={given['directory']}", *keys)
    policy, out = root / "run" / "policy", root / "evaluation"
    row["train_s"] = run("actfer_jax.train", f"--config={config}:train", f"--workdir={root / 'run'}")
    row["evaluate_s"] = run(
        *("actfer_jax.evaluate", f"--config={config}:evaluate", f"--checkpoint={policy}", f"--out={out}")
    )
    metrics = read_metrics(root / "run")
    row["steps"], row["loss"] = len(metrics), round(metrics[-1]["sft/loss"], 3)
    row["episodes"] = sum(1 for _ in read_episodes(out))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(LAYOUTS), help="layouts, of %(default)s")
    parser.add_argument("--workdir", type=as_path, default=Path("runs/data_sets"), help="made anew")
    parser.add_argument("--json", type=as_path, help="file for the figures")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - set(LAYOUTS):
        parser.error(f"--only: there is no {unknown.pop()!r}; there are {', '.join(LAYOUTS)}")
    check_places(json=given.json, workdir=given.workdir)
    rows, failed = [], False
    for name in names:
        root = Path(given.workdir).absolute() / name
        shutil.rmtree(root, ignore_errors=True)
        try:
            rows.append(play(name, root))
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, json.dumps(rows, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
