"""Episode records: strict JSON, exact pictures, whole shards."""

import json
import multiprocessing
import os
import random
import resource
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from actfer_jax.episodes.store import EpisodeWriter, RecordError, picture_name, read_episodes, shards

processes = multiprocessing.get_context("spawn")


def make_record(name="0-0", **changes):
    view = {"picture": 1, "size": (96, 64), "name": "mouth", "to_original": np.array([[1.5, 0, 10], [0, 1.5, 20.25]])}
    turn = {
        "text": "<think>…</think>",
        "call": {"name": "zoom"},
        "reply": {"text": "mouth", "ok": True},
        "seconds": 0.01,
    }
    record = {
        "id": name,
        "dataset": "rendered",
        "image": "test/17",
        "turns": [{**turn, "view": view}],
        "token_ids": np.array([5, 6, 7], np.int32),
        "loss_mask": np.array([0, 1, 1], bool),
        "logprobs": np.array([0, -0.1, -2.5e-8], np.float32),
        "raw_logprobs": np.array([0, -0.1, -3.25], np.float32),
        "prediction": {"aus": {26, 1, 2}, "emotion": "surprise"},
        "reference": {"aus": frozenset({4, 1}), "emotion": None},
        "reward": {"total": np.float32(0.3), "format": 1},
        "advantage": None,
    }
    return {**record, **changes}


def picture(seed, height=5, width=7):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_is_written_is_read(tmp_path):
    pictures = [picture(0), picture(1, 4, 4)]
    EpisodeWriter(tmp_path).write(10, [(make_record("a"), pictures), (make_record("b"), pictures[:1])])
    first, second = read_episodes(tmp_path)
    assert first["id"] == "a" and second["id"] == "b"
    assert first["token_ids"] == [5, 6, 7] and first["loss_mask"] == [False, True, True]
    np.testing.assert_array_equal(np.array(first["logprobs"], np.float32), make_record()["logprobs"])
    assert first["prediction"]["aus"] == [1, 2, 26] and first["reference"] == {"aus": [1, 4], "emotion": None}
    assert first["turns"][0]["view"]["to_original"] == [[1.5, 0, 10], [0, 1.5, 20.25]]
    for name, pixels in zip(first["images"], pictures, strict=True):
        assert name == picture_name(pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), pixels)
    # The picture that the two episodes share is there once, and nothing else is.
    assert sorted(os.listdir(tmp_path / "images")) == sorted(os.path.basename(name) for name in first["images"])
    assert os.listdir(tmp_path / "episodes") == ["step-00000010-host0.jsonl"]


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_any_picture_is_exact(tmp_path_factory, pixels):
    directory = tmp_path_factory.mktemp("picture")
    EpisodeWriter(directory).write(0, [(make_record(), [pixels])])
    (record,) = read_episodes(directory)
    np.testing.assert_array_equal(np.asarray(Image.open(directory / record["images"][0])), pixels)


def test_pictures_of_the_same_bytes_but_another_size_are_two():
    assert picture_name(np.zeros((2, 8, 3), np.uint8)) != picture_name(np.zeros((8, 2, 3), np.uint8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values)
def test_any_json_value_comes_back(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("value")
    EpisodeWriter(directory).write(0, [(make_record(prediction=value), [])])
    (record,) = read_episodes(directory)
    assert record["prediction"] == value


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), np.array([0.0, np.nan]), object(), b"x", 1j])
def test_what_has_no_json_form_is_named_and_nothing_is_written(bad, tmp_path):
    with pytest.raises(RecordError, match="episode 'x', reward, parts"):
        EpisodeWriter(tmp_path).write(1, [(make_record(), []), (make_record("x", reward={"parts": bad}), [])])
    assert list(read_episodes(tmp_path)) == []


def test_missing_keys_and_bad_pictures_are_named(tmp_path):
    record = make_record("x")
    del record["raw_logprobs"], record["turns"]
    with pytest.raises(RecordError, match="'x' has no turns, raw_logprobs"):
        EpisodeWriter(tmp_path).write(1, [(record, [])])
    for bad in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(RecordError, match="uint8"):
            EpisodeWriter(tmp_path).write(1, [(make_record(), [bad])])


def test_order_and_dropping_past_a_restored_step(tmp_path):
    for host in (10, 2, 0):
        writer = EpisodeWriter(tmp_path, host)
        for step in (100_000_000, 20, 3):
            writer.write(step, [(make_record(f"{step}-{host}"), [])])
    order = [f"{step}-{host}" for step in (3, 20, 100_000_000) for host in (0, 2, 10)]
    assert [record["id"] for record in read_episodes(tmp_path)] == order
    writer.drop_after(20)
    assert [record["id"] for record in read_episodes(tmp_path)] == order[:6]
    writer.write(20, [(make_record("again"), [])])
    assert [record["id"] for record in read_episodes(tmp_path)] == ["3-0", "3-2", "3-10", "again", "20-2", "20-10"]
    writer.drop_after(-1)
    assert list(read_episodes(tmp_path)) == []


def test_a_damaged_shard_is_named(tmp_path):
    path = EpisodeWriter(tmp_path).write(1, [(make_record(), [])])
    for line in ("{", "3", json.dumps({"id": "x"})):
        path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
        with pytest.raises(RecordError, match="step-00000001-host0.jsonl, line 2"):
            list(read_episodes(tmp_path))


def test_a_directory_without_records_has_none(tmp_path):
    assert shards(tmp_path) == []


def test_no_room_leaves_what_was_there(tmp_path):
    writer = EpisodeWriter(tmp_path)
    writer.write(1, [(make_record("whole"), [])])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        for step in (1, 2):
            with pytest.raises(OSError, match=f"step-0000000{step}-host0.jsonl"):
                writer.write(step, [(make_record(str(row)), []) for row in range(20)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record["id"] for record in read_episodes(tmp_path)] == ["whole"]
    assert os.listdir(tmp_path / "episodes") == ["step-00000001-host0.jsonl"]


def write_forever(workdir, reports) -> None:
    writer = EpisodeWriter(workdir)
    for step in range(1_000_000):
        writer.write(step % 7, [(make_record(f"{step}-{row}"), [picture(step), picture(row)]) for row in range(20)])
        reports.send(step)


@pytest.mark.slow
def test_killed_while_writing_every_shard_is_whole(tmp_path):
    chance = random.Random(0)
    for _ in range(4):
        reports, child_end = processes.Pipe(duplex=False)
        process = processes.Process(target=write_forever, args=(tmp_path, child_end))
        process.start()
        for _ in range(8):
            reports.recv()
        process.join(timeout=chance.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(shards(tmp_path)) == 7
        for path in shards(tmp_path):
            assert len(path.read_text().splitlines()) == 20
        for record in read_episodes(tmp_path):
            for name in record["images"]:
                Image.open(tmp_path / name).load()
