"""Episode records: strict JSON, exact pictures, whole shards, and an index that leads to each of them."""

import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from actfer_jax.episodes import store
from actfer_jax.episodes.store import (
    RECORD_FILES,
    EpisodeWriter,
    RecordError,
    picture_name,
    read_episodes,
    read_index,
    read_record,
    shards,
)
from actfer_jax.faces.views import View
from actfer_jax.files import write_atomically

processes = multiprocessing.get_context("spawn")


def make_record(name="0-0", **changes):
    view = {"picture": 1, "size": (96, 64), "name": "mouth", "to_original": np.array([[1.5, 0, 10], [0, 1.5, 20.25]])}
    turn = {
        "text": "<think>…</think>",
        "call": {"name": "zoom"},
        "reply": {"text": "mouth", "ok": True, "tool": "zoom", "region": "mouth", "inspects": True},
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
    return view_of(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def view_of(pixels):
    return View(pixels, np.eye(2, 3), "a view")


def test_what_is_written_is_read(tmp_path):
    pictures = [picture(0), picture(1, 4, 4)]
    EpisodeWriter(tmp_path).write(10, [(make_record("a"), pictures), (make_record("b"), pictures[:1])])
    first, second = read_episodes(tmp_path)
    assert first["id"] == "a" and second["id"] == "b"
    assert first["token_ids"] == [5, 6, 7] and first["loss_mask"] == [False, True, True]
    np.testing.assert_array_equal(np.array(first["logprobs"], np.float32), make_record()["logprobs"])
    assert first["prediction"]["aus"] == [1, 2, 26] and first["reference"] == {"aus": [1, 4], "emotion": None}
    assert first["turns"][0]["view"]["to_original"] == [[1.5, 0, 10], [0, 1.5, 20.25]]
    for name, view in zip(first["images"], pictures, strict=True):
        assert re.fullmatch(r"images/([0-9a-f]{2})/\1[0-9a-f]+\.png", name) and name == picture_name(view)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), view.pixels)
    # The picture that the two episodes share is there once, and nothing else is.
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    shard = "episodes/step-00000010-host0"
    assert files == [f"{shard}.index", f"{shard}.jsonl", *sorted(first["images"])]
    assert all(re.fullmatch(RECORD_FILES, name) for name in files)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_any_picture_is_exact(tmp_path_factory, pixels):
    directory = tmp_path_factory.mktemp("picture")
    EpisodeWriter(directory).write(0, [(make_record(), [view_of(pixels)])])
    (record,) = read_episodes(directory)
    np.testing.assert_array_equal(np.asarray(Image.open(directory / record["images"][0])), pixels)


def test_pictures_of_the_same_bytes_but_another_size_are_two():
    wide, high = (view_of(np.zeros(shape, np.uint8)) for shape in ((2, 8, 3), (8, 2, 3)))
    assert picture_name(wide) != picture_name(high)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values)
def test_any_json_value_comes_back(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("value")
    EpisodeWriter(directory).write(0, [(make_record(reward={"parts": value}), [])])
    (record,) = read_episodes(directory)
    assert record["reward"]["parts"] == value


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
            EpisodeWriter(tmp_path).write(1, [(make_record(), [view_of(bad)])])


def test_order_and_dropping_past_a_restored_step(tmp_path):
    for host in (10, 2, 0):
        writer = EpisodeWriter(tmp_path, host)
        for step in (100_000_000, 20, 3):
            writer.write(step, [(make_record(f"{step}-{host}"), [])])
    order = [f"{step}-{host}" for step in (3, 20, 100_000_000) for host in (0, 2, 10)]
    assert names(tmp_path) == order
    writer.drop_after(20)
    assert names(tmp_path) == order[:6]
    writer.write(20, [(make_record("again"), [])])
    assert names(tmp_path) == ["3-0", "3-2", "3-10", "again", "20-2", "20-10"]
    writer.drop_after(-1)
    assert names(tmp_path) == os.listdir(tmp_path / "episodes") == []


def names(workdir):
    """The ids of the episodes, by the records and by the index."""
    ids = [record["id"] for record in read_episodes(workdir)]
    assert [line["id"] for line in read_index(workdir)] == ids
    return ids


def test_a_damaged_shard_is_named(tmp_path):
    path = EpisodeWriter(tmp_path).write(1, [(make_record(), [])])
    for line in ("{", "3", json.dumps({"id": "x"})):
        path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
        with pytest.raises(RecordError, match="step-00000001-host0.jsonl, line 2"):
            list(read_episodes(tmp_path))


def zoomed(region, inspects, ok=True):
    reply = {"text": region, "ok": ok, "tool": "zoom", "region": region, "inspects": inspects}
    return {"text": "…", "call": {"name": "zoom"}, "reply": reply, "view": None, "seconds": 0.0}


def test_the_index_says_what_a_viewer_filters_by(tmp_path):
    """Each line against what a person sees in the record."""
    answered = {"text": "<answer>", "call": None, "reply": None, "view": None, "seconds": 0.0}
    spoilt = zoomed("nose", False, ok=False)
    angry = {"aus": [4], "emotion": "Angry", "strata": ["plain", "female"]}
    unknown = {"aus": [4], "emotion": None, "strata": []}
    no_answer = {"aus": None, "emotion": None}
    cases = {
        "looked": ([zoomed("nose", True), zoomed("bbox", False), answered], angry, {"aus": [4], "emotion": "anger"}),
        "beside": ([zoomed("bbox", False), answered], angry, {"aus": [], "emotion": "fear"}),
        "refused": ([spoilt, answered], angry, no_answer),
        "unknown": ([answered], unknown, {"aus": [4], "emotion": "anger"}),
    }
    reward = {"total": 0.5, "format": 1, "emotion": 0.0}
    records = [
        make_record(
            name, turns=turns, reference=reference, prediction=prediction, reward=reward, advantage=-0.25, arm=name
        )
        for name, (turns, reference, prediction) in cases.items()
    ]
    EpisodeWriter(tmp_path, 3).write(7, [(record, []) for record in records])
    found = {line["id"]: line for line in read_index(tmp_path)}
    assert {name: (line["outcome"], line["looked"], line["regions"]) for name, line in found.items()} == {
        "looked": ("right", True, ["nose", "bbox"]),
        "beside": ("wrong", False, ["bbox"]),
        "refused": ("no answer", False, []),
        "unknown": (None, False, []),
    }
    assert {name: (line["class"], line["strata"]) for name, line in found.items()} == dict.fromkeys(
        ("looked", "beside", "refused"), ("anger", ["plain", "female"])
    ) | {"unknown": (None, [])}
    for line in found.values():
        assert (line["step"], line["reward"], line["advantage"], line["arm"]) == (7, reward, -0.25, line["id"])


@settings(max_examples=20)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_a_line_of_the_index_leads_to_its_record_alone(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("index")
    EpisodeWriter(directory).write(0, [(make_record(text, dataset=text), []) for text in texts])
    records = list(read_episodes(directory))
    assert [read_record(directory, line) for line in read_index(directory)] == records
    assert [record["dataset"] for record in records] == texts
    # Without an index, as after a kill, the lines are the same.
    (kept,) = directory.glob("episodes/*.index")
    lines = list(map(json.loads, kept.read_text().splitlines()))
    kept.unlink()
    assert list(read_index(directory)) == lines


def test_records_of_before_are_read_and_newer_ones_refused_by_name(tmp_path):
    path = EpisodeWriter(tmp_path).write(1, [(make_record("a"), [picture(0)])])
    record = json.loads(path.read_text())
    assert record["schema"] == 2
    old = {key: value for key, value in record.items() if key not in ("schema", "arm")}
    old["images"] = ["images/0123456789abcdef01234567.png"]
    path.write_text(json.dumps(old) + "\n")
    path.with_suffix(".index").unlink()
    assert re.fullmatch(RECORD_FILES, old["images"][0])
    assert list(read_episodes(tmp_path)) == [old]
    (line,) = read_index(tmp_path)
    assert (line["id"], line["looked"], line["arm"]) == ("a", True, None)
    path.write_text(json.dumps(record | {"schema": 3}) + "\n")
    with pytest.raises(RecordError, match="host0.jsonl, line 1 has schema 3; this version reads 1 to 2"):
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
    assert names(tmp_path) == ["whole"]
    assert os.listdir(tmp_path / "episodes") == ["step-00000001-host0.jsonl"]


@pytest.mark.parametrize("done", [False, True])
def test_a_kill_before_or_after_any_file_leaves_the_old_records_or_the_new(done, tmp_path, monkeypatch):
    """A shard is replaced, and the process ends at one of its files after the other."""
    old = [(make_record(f"old {row}"), [picture(row)]) for row in range(2)]
    new = [(make_record(f"new {row}", dataset="d" * row), [picture(row + 1), picture(row + 7)]) for row in range(3)]
    seen, total = [], 5 + 2  # pictures, the shard and its index
    for moment in range(total):
        workdir = tmp_path / f"{moment}"
        workdir.mkdir()
        EpisodeWriter(workdir).write(1, old)
        count = itertools.count()

        def killed_at(path, data, *, moment=moment, count=count, **options):
            if (number := next(count)) == moment and done or number < moment:
                write_atomically(path, data, **options)
            if number >= moment:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(store, "write_atomically", killed_at)
            EpisodeWriter(workdir).write(1, new)
        records = list(read_episodes(workdir))
        assert [read_record(workdir, line) for line in read_index(workdir)] == records
        for record in records:
            for name in record["images"]:
                Image.open(workdir / name).load()
        seen.append([record["id"] for record in records])
    replaced = 5 if done else 6
    assert seen == [["old 0", "old 1"]] * replaced + [["new 0", "new 1", "new 2"]] * (total - replaced)


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
        for line, record in zip(read_index(tmp_path), read_episodes(tmp_path), strict=True):
            assert read_record(tmp_path, line) == record
            for name in record["images"]:
                Image.open(tmp_path / name).load()
