"""The package as a release installs it, by the wheel of its sdist: in an empty directory, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from actfer_jax.data import synth_faces

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_trains_and_evaluates_in_an_empty_directory(tmp_path):
    source, installed, empty = (tmp_path / name for name in ("source", "installed", "empty"))
    # A copy, since building leaves files in the tree.
    ignore = shutil.ignore_patterns(".*", "tests", "docs", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    empty.mkdir()

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    build = f"from setuptools import build_meta; build_meta.build_sdist({os.fspath(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("actfer_jax-*.tar.gz")
    run("pip", "wheel", "-q", "--no-deps", f"--wheel-dir={tmp_path}", str(sdist))
    (wheel,) = tmp_path.glob("actfer_jax-*.whl")
    shutil.rmtree(source)
    run("pip", "install", "-q", "--no-deps", f"--target={installed}", str(wheel))
    assert run("inspect", "--details", "actfer_jax").splitlines()[1] == f"Origin: {installed}/actfer_jax/__init__.py"

    assert "actfer COMMAND" in run("actfer_jax", "--help")
    face = synth_faces.face_of("test", 0)
    Image.fromarray(synth_faces.render(face).image).save(tmp_path / "face.png")
    run("actfer_jax.analyze", str(tmp_path / "face.png"), "--checkpoint=demo", "--out=reading")
    assert f"{tmp_path}/face.png" in (empty / "reading/readings.csv").read_text()

    cache = f"--config.data.cache_directory={tmp_path}/cache"
    small = (
        "--config.traces.readings_steps=0",
        "--config.batch.queries=2",
        "--config.evaluation=None",
        "--config.steps=1",
    )
    run("actfer_jax.train", "--config=sft:demo", cache, "--config.data.size=8", *small, "--workdir=run")
    policy = ("--checkpoint=run/policy", "--out=evaluation")
    run(
        "actfer_jax.evaluate",
        "--config=eval/synth_faces",
        cache,
        "--config.data.size=2",
        "--config.controls=()",
        *policy,
    )
    assert json.loads((empty / "evaluation/results.json").read_text())["results"]["normal"]["episodes"] == 2
    run("actfer_jax.browse", "evaluation", "--out=page")
    assert "Content-Security-Policy" in (empty / "page/index.html").read_text()
    assert {path.name for path in empty.iterdir()} == {"reading", "run", "evaluation", "page"}
