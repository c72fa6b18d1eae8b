"""Rendered faces on disk."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from actfer_jax.data.datasets.synth_faces import DEMO_EMOTIONS, builder, face_of, level, load, render
from actfer_jax.data.errors import DataError


def test_built_faces_are_the_rendered_ones(tmp_path: Path) -> None:
    source = load("validation", 14, tmp_path, size=128, jobs=1)
    assert len(source) == 14
    for i in (0, 6, 13):
        item, spec = source[i], face_of("validation", i)
        picture = render(spec, 128)
        np.testing.assert_array_equal(item["image"], picture.image)
        np.testing.assert_allclose(item["landmarks"], picture.landmarks, atol=1e-4)
        assert item["emotion"] == spec.emotion == DEMO_EMOTIONS[i % 7]
        assert item["aus"] == {au: level(strength) for au, strength in spec.aus.items()}
        assert (item["fine"], item["subtle"], item["deciding_region"]) == (spec.fine, spec.subtle, spec.deciding_region)
    assert len({source[i]["seed"] for i in range(14)}) == 14
    with pytest.raises(IndexError):
        source[14]


def test_parts_continue_each_other_and_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "PART", 4)
    first = load("test", 8, tmp_path, size=64, jobs=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
    assert len(times) == 2
    longer = load("test", 10, tmp_path, size=64, jobs=1)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    for i in range(8):
        np.testing.assert_array_equal(first[i]["image"], longer[i]["image"])
    assert [longer[i]["seed"][1] for i in range(10)] == list(range(10))


def test_a_build_that_failed_leaves_nothing_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_three(task: tuple[str, int, int]) -> dict:
        if task[1] == 3:
            raise OSError("no space left")
        return encode(task)

    encode = builder.encode_face
    monkeypatch.setattr(builder, "encode_face", fail_at_three)
    with pytest.raises(OSError, match="no space left"):
        load("train", 5, tmp_path, size=64, jobs=1)
    assert not list(tmp_path.rglob("dataset_info.json"))
    monkeypatch.setattr(builder, "encode_face", encode)
    assert len(load("train", 5, tmp_path, size=64, jobs=1)) == 5


def zero_the_middle(file: Path) -> None:
    content = file.read_bytes()
    end = len(content.rstrip(b"\0"))
    file.write_bytes(content[:200] + bytes(end - 200) + content[end:])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("*.array_record*", Path.unlink),
        ("*.array_record*", lambda file: file.write_bytes(file.read_bytes()[:-1])),
        ("*.array_record*", lambda file: file.write_bytes(b"")),
        ("*.array_record*", zero_the_middle),
        ("dataset_info.json", Path.unlink),
        ("dataset_info.json", lambda file: file.write_text("{")),
        ("dataset_info.json", lambda file: file.write_text(file.read_text().replace('"5"', '"4"'))),
        ("*", lambda file: file.unlink(missing_ok=True)),
    ],
)
def test_faces_that_are_damaged_or_gone_are_named_with_the_remedy(tmp_path: Path, name: str, damage: Callable) -> None:
    expected = load("train", 5, tmp_path, size=64, jobs=1)[4]["image"]
    (directory,) = tmp_path.glob("synth_faces/train*/*")
    for file in directory.glob(name):
        damage(file)
    with pytest.raises(DataError, match=rf"^{directory}.*delete the directory {directory}, and .* renders them anew"):
        load("train", 5, tmp_path, size=64, jobs=1)
    shutil.rmtree(directory)
    np.testing.assert_array_equal(load("train", 5, tmp_path, size=64, jobs=1)[4]["image"], expected)


def test_faces_on_a_read_only_disk_are_read_and_missing_ones_explained(
    tmp_path: Path, make_read_only: Callable[[Path], None]
) -> None:
    expected = load("train", 5, tmp_path, size=64, jobs=1)[4]["image"]
    make_read_only(tmp_path)
    np.testing.assert_array_equal(load("train", 5, tmp_path, size=64, jobs=1)[4]["image"], expected)
    with pytest.raises(DataError, match=rf"^{tmp_path} does not hold all .* cannot be written.*data.cache_directory"):
        load("train", 6, tmp_path, size=64, jobs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("dev", 7), "'dev' is not one of train"), (("train", 0), "at least one face")],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(*arguments, tmp_path)


LOAD = """
import sys
from actfer_jax.data.datasets.synth_faces import load
if __name__ == "__main__":
    load("train", 900, sys.argv[1], size=512, jobs=2)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "render.py"
    script.write_text(LOAD)
    with subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.PIPE, text=True) as process:
        assert "faces rendered" in next(line for line in process.stderr if "rendered" in line)
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2
        process.kill()
        alive = psutil.wait_procs(workers, timeout=60)[1]
    assert not alive


LOAD_SLOWLY = """
import sys
from actfer_jax.data.datasets.synth_faces import builder, load
encode = builder.encode_face
def encode_when_told(task):
    if task[1] == 0:
        print("rendering", flush=True)
        sys.stdin.readline()
    return encode(task)
builder.encode_face = encode_when_told
print(len(load("train", 5, sys.argv[1], size=64, jobs=1)))
"""


def test_a_process_that_comes_second_uses_what_the_first_renders(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD_SLOWLY, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "rendering\n"
        with subprocess.Popen(command, **pipes) as second:
            assert next(line for line in second.stderr if "another process renders" in line)
            assert first.communicate("go on\n")[0] == "5\n"
            assert second.communicate()[0] == "5\n"  # and did not render
    assert (first.returncode, second.returncode) == (0, 0)


def test_a_size_that_the_builder_lists_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (listed,) = [config for config in builder.SynthFaces.BUILDER_CONFIGS if config.split == "test"]
    face = builder.encode_face(("test", 0, 64))
    monkeypatch.setattr(builder, "encode_face", lambda task: face | {"seed": np.array([2, task[1]])})
    monkeypatch.setattr(listed, "size", 64)  # Pictures of that size cost nothing.
    assert len(load("test", listed.stop, tmp_path, jobs=1)) == listed.stop
