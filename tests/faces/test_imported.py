"""Faces that another detector found, from its file into the store and out of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from actfer_jax.config import ConfigError
from actfer_jax.errors import UserError
from actfer_jax.faces.detector import FaceConfig, FaceDetector
from actfer_jax.faces.imported import import_detections
from actfer_jax.faces.landmarks import five_points
from actfer_jax.faces.store import FaceStore
from actfer_jax.faces.views import ViewConfig
from actfer_jax.rollout.agent import ModelConfig, load_agent
from actfer_jax.rollout.engine import RolloutConfig

LYING = np.ascontiguousarray(np.rot90(skimage.data.astronaut(), -1))
DETECTOR = FaceDetector(config=FaceConfig(steps=("imported", "rotated")))


@pytest.fixture(scope="module")
def face():
    (found,) = DETECTOR.detect(LYING)
    return found


@pytest.fixture
def images(tmp_path):
    Image.fromarray(LYING).save(tmp_path / "lying.png")
    return tmp_path


def write(path, face, **changes):
    record = {"image": "lying.png", "box": face.box, "score": 0.5, "landmarks": face.landmarks.tolist()} | changes
    path.write_text(json.dumps(record) + "\n")
    return path


def test_the_command_imports_what_the_step_finds(images, face):
    """A lying face, given by five points as InsightFace gives them, and one by 68, lower in score."""
    lines = images / "faces.jsonl"
    five = write(lines, face, landmarks=five_points(face.landmarks).tolist(), score=0.9).read_text()
    lines.write_text(five + write(lines, face, box=[1, 2, 30, 40]).read_text())
    path = images / "new" / "faces.sqlite"
    command = [sys.executable, "-m", "actfer_jax.faces.import_detections", f"--detections={lines}"]
    done = subprocess.run([*command, f"--images={images}", f"--store={path}"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].startswith(f"2 faces in 1 images imported into {path}"), done.stderr
    first, second = FaceStore(path).detect(DETECTOR, LYING)
    assert (first.step, first.score, second.box) == ("imported", 0.9, (1.0, 2.0, 30.0, 40.0))
    eye_distance = np.hypot(*(five_points(face.landmarks)[1] - five_points(face.landmarks)[0]))
    assert np.hypot(*(first.landmarks - face.landmarks).T).mean() < 0.03 * eye_distance
    np.testing.assert_array_equal(second.landmarks, face.landmarks)
    # Who does not name the step searches, and gets none of it from the store.
    (searched,) = FaceStore(path).detect(FaceDetector(config=FaceConfig(steps=("rotated",))), LYING)
    assert (searched.step, searched.score) == ("rotated", face.score)


def test_what_is_imported_later_counts_at_once(images, face):
    store = FaceStore(images / "faces.sqlite")
    assert [found.step for found in store.detect(DETECTOR, LYING)] == ["rotated"]
    for score in (0.5, 0.7):
        import_detections(write(images / "faces.jsonl", face, score=score), images, store)
        assert [(found.step, found.score) for found in store.detect(DETECTOR, LYING)] == [("imported", score)]
    # A damaged row is no face, and the next step searches.
    store._execute("UPDATE imported SET faces = ?", b"damaged")
    assert [found.step for found in store.detect(DETECTOR, LYING)] == ["rotated"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"landmarks": [[1, 2]] * 7}, "landmarks is .*; give 5 or 68 points"),
        ({"landmarks": [[1, "a"]] * 5}, "landmarks is .*; give 5 or 68 points"),
        ({"score": None}, "score is None; give a number"),
        ({"box": [5, 5, 5, 9]}, r"box is \[5, 5, 5, 9\]; give \[left, top, right, bottom\]"),
        ({"box": [0.1, 0.1, 0.3, 0.4]}, "box .* is not in lying.png, which has 512x512 pixels; give pixels"),
        ({"image": "gone.png"}, "gone.png: no such file"),
        ({"extra": 1}, "the keys image, box, score, landmarks, and no others"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(images, face, changes, words):
    store = FaceStore(images / "faces.sqlite")
    lines = write(images / "faces.jsonl", face, **changes)
    lines.write_text("\n" + lines.read_text())
    with pytest.raises(UserError, match=f"^{lines}:2: .*{words}"):
        import_detections(lines, images, store)
    assert not store.has_imported


def test_eyes_that_are_exchanged_are_noticed(images, face):
    points = five_points(face.landmarks)[[1, 0, 2, 4, 3]].tolist()
    lines = write(images / "faces.jsonl", face, landmarks=points)
    with pytest.raises(UserError, match="faces.jsonl:1: .*left and right are exchanged"):
        import_detections(lines, images, FaceStore(images / "faces.sqlite"))


def test_a_run_with_the_step_and_nothing_imported_does_not_start(tmp_path):
    store = FaceStore(tmp_path / "faces.sqlite")
    with pytest.raises(ConfigError, match="faces.sqlite has no imported faces; .*faces.import_detections"):
        load_agent(ModelConfig(path="demo"), ViewConfig(), RolloutConfig(), faces=DETECTOR.config, store=store)
