"""Faces kept on disk: the same as those found anew, whoever asks, and found anew where anything differs."""

import multiprocessing
import re
import sqlite3
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import skimage.data

from actfer_jax.faces.detector import Face, FaceConfig, FaceDetector
from actfer_jax.faces.store import FaceStore

PHOTOGRAPH = skimage.data.astronaut()


class Never(FaceDetector):
    """A detector of the same settings that must not be needed."""

    def detect(self, image, imported=()):
        raise AssertionError("the picture was searched again")


def summary(faces: tuple[Face, ...]) -> list[tuple]:
    return [(face.box, face.score, face.step, face.landmarks.tolist()) for face in faces]


def find_without_searching(store: FaceStore) -> list[tuple]:
    return summary(store.detect(Never(), PHOTOGRAPH))


def test_another_process_gets_the_same_faces_without_a_search(tmp_path):
    store = FaceStore(tmp_path / "new" / "faces.sqlite")
    found = summary(store.detect(FaceDetector(), PHOTOGRAPH))
    expected = summary(FaceDetector().detect(PHOTOGRAPH))
    assert found == expected
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(find_without_searching, store).result(timeout=120) == expected


def test_a_picture_without_a_face_is_remembered_too(tmp_path):
    store, grey = FaceStore(tmp_path / "faces.sqlite"), np.full((9, 9, 3), 128, np.uint8)
    assert store.detect(FaceDetector(), grey) == ()
    assert store.detect(Never(), grey) == ()


@pytest.mark.parametrize(
    ("detector", "image"),
    [
        (Never(), np.ascontiguousarray(PHOTOGRAPH[:, ::-1])),
        (Never(), PHOTOGRAPH.reshape(256, 1024, 3)),
        (Never(config=FaceConfig(hog_pixels=2**16)), PHOTOGRAPH),
        (Never(config=FaceConfig(steps=("hog",))), PHOTOGRAPH),
    ],
)
def test_another_picture_or_another_setting_is_searched(tmp_path, detector, image):
    store = FaceStore(tmp_path / "faces.sqlite")
    store.detect(FaceDetector(), PHOTOGRAPH)
    with pytest.raises(AssertionError, match="searched again"):
        store.detect(detector, image)


def test_a_damaged_page_costs_a_search_and_no_more(tmp_path):
    path, grey = tmp_path / "faces.sqlite", np.full((9, 9, 3), 128, np.uint8)
    FaceStore(path).detect(FaceDetector(), grey)
    pages = path.read_bytes()
    path.write_bytes(pages[:4096] + b"\xff" * (len(pages) - 4096))
    with pytest.raises(AssertionError, match="searched again"):
        FaceStore(path).detect(Never(), grey)


def test_a_row_that_is_damaged_or_of_another_kind_costs_a_search_and_is_replaced(tmp_path):
    path = tmp_path / "faces.sqlite"
    expected = summary(FaceStore(path).detect(FaceDetector(), PHOTOGRAPH))
    database = sqlite3.connect(path, isolation_level=None)
    (sound,) = database.execute("SELECT faces FROM faces").fetchone()
    flipped = sound[:50] + bytes([sound[50] ^ 1]) + sound[51:]
    # The last is a face as versions before the checksum kept it: with landmarks 0.
    for row in (b"", b"short", sound[:-8], sound + bytes(8), flipped, "text", 7, None, bytes(8 * (5 + 2 * 68))):
        database.execute("UPDATE faces SET faces = ?", (row,))
        assert summary(FaceStore(path).detect(FaceDetector(), PHOTOGRAPH)) == expected
        assert find_without_searching(FaceStore(path)) == expected


class FivePoints(FaceDetector):
    """A detector whose landmarks no tool can use."""

    def detect(self, image, imported=()):
        return (Face((0.0, 0.0, 9.0, 9.0), 1.0, np.zeros((5, 2))),)


def test_faces_that_no_tool_can_use_are_not_kept(tmp_path):
    store = FaceStore(tmp_path / "faces.sqlite")
    assert len(store.detect(FivePoints(), PHOTOGRAPH)) == 1
    assert len(store.detect(FaceDetector(), PHOTOGRAPH)[0].landmarks) == 68


@pytest.mark.parametrize("lies", ["in a read-only directory", "in a read-only file", "nowhere"])
def test_a_store_that_cannot_be_written_is_read(tmp_path, make_read_only, caplog, lies):
    directory, grey = tmp_path / "data", np.full((9, 9, 3), 128, np.uint8)
    path, expected = directory / "faces.sqlite", []
    directory.mkdir()
    if lies != "nowhere":
        expected = summary(FaceStore(path).detect(FaceDetector(), PHOTOGRAPH))
    make_read_only(path if lies == "in a read-only file" else directory)
    store = FaceStore(path)
    if expected:
        assert find_without_searching(store) == expected
    assert store.detect(FaceDetector(), grey) == () == store.detect(FaceDetector(), grey)
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: the store of found faces cannot be written")
    with pytest.raises(AssertionError, match="searched again"):
        store.detect(Never(), grey)


def test_a_file_that_is_no_store_is_named_and_left_alone(tmp_path, caplog):
    path, grey = tmp_path / "faces.sqlite", np.full((9, 9, 3), 128, np.uint8)
    path.write_text("not a database, but long enough to look like one " * 40)
    before = path.read_bytes()
    assert FaceStore(path).detect(FaceDetector(), grey) == ()
    (warning,) = caplog.messages
    assert re.search("faces.sqlite: .* cannot be used .*delete the file: every run finds them anew", warning)
    assert path.read_bytes() == before


def test_on_a_disk_that_does_not_lock_the_run_goes_on_and_one_message_says_where_to_put_the_store(
    tmp_path, monkeypatch, caplog
):
    """SQLite says the same of a network disk without locks as of a file that another program holds for long."""
    path, grey = tmp_path / "faces.sqlite", np.full((9, 9, 3), 128, np.uint8)
    monkeypatch.setattr("actfer_jax.faces.store._PATIENCE_S", 0.01)
    store = FaceStore(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    for late in (FaceStore(path), store):
        assert late.detect(FaceDetector(), grey) == () == late.detect(FaceDetector(), grey)
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert re.search("network disk.* put it on a disk of this machine with config.data.cache_directory", message)


def test_a_store_in_write_ahead_mode_as_versions_of_before_left_it_is_brought_out_of_it(tmp_path):
    """That mode needs shared memory: machines that share the file over a network would damage it."""
    path = tmp_path / "faces.sqlite"
    expected = summary(FaceStore(path).detect(FaceDetector(), PHOTOGRAPH))
    old = sqlite3.connect(path, isolation_level=None)
    assert old.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    old.execute("DELETE FROM faces WHERE 0")
    old.close()
    assert find_without_searching(FaceStore(path)) == expected
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["faces.sqlite"]
