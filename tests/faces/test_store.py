"""Faces kept on disk: the same as those found anew, whoever asks, and found anew where anything differs."""

import multiprocessing
import sqlite3
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import skimage.data

from actfer_jax.faces.detector import Face, FaceDetector
from actfer_jax.faces.store import FaceStore

PHOTOGRAPH = skimage.data.astronaut()


class Never(FaceDetector):
    """A detector of the same settings that must not be needed."""

    def detect(self, image):
        raise AssertionError("the picture was searched again")


def summary(faces: tuple[Face, ...]) -> list[tuple]:
    return [(face.box, face.score, face.landmarks.tolist()) for face in faces]


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
    store, grey = FaceStore(tmp_path / "faces.sqlite"), np.full((80, 80, 3), 128, np.uint8)
    assert store.detect(FaceDetector(), grey) == ()
    assert store.detect(Never(), grey) == ()


@pytest.mark.parametrize(
    ("detector", "image"),
    [
        (Never(), np.ascontiguousarray(PHOTOGRAPH[:, ::-1])),
        (Never(), PHOTOGRAPH.reshape(256, 1024, 3)),
        (Never(max_pixels=2**16), PHOTOGRAPH),
        (Never(upsampling=0), PHOTOGRAPH),
    ],
)
def test_another_picture_or_another_setting_is_searched(tmp_path, detector, image):
    store = FaceStore(tmp_path / "faces.sqlite")
    store.detect(FaceDetector(), PHOTOGRAPH)
    with pytest.raises(AssertionError, match="searched again"):
        store.detect(detector, image)


def test_a_damaged_page_costs_a_search_and_no_more(tmp_path):
    path, grey = tmp_path / "faces.sqlite", np.full((80, 80, 3), 128, np.uint8)
    FaceStore(path).detect(FaceDetector(), grey)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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

    def detect(self, image):
        return (Face((0.0, 0.0, 9.0, 9.0), 1.0, np.zeros((5, 2))),)


def test_faces_that_no_tool_can_use_are_not_kept(tmp_path):
    store = FaceStore(tmp_path / "faces.sqlite")
    assert len(store.detect(FivePoints(), PHOTOGRAPH)) == 1
    assert len(store.detect(FaceDetector(), PHOTOGRAPH)[0].landmarks) == 68


@pytest.mark.parametrize("lies", ["in a read-only directory", "in a read-only file", "nowhere"])
def test_a_store_that_cannot_be_written_is_read(tmp_path, make_read_only, caplog, lies):
    directory, grey = tmp_path / "data", np.full((80, 80, 3), 128, np.uint8)
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


def test_a_file_that_is_no_store_is_named(tmp_path):
    path = tmp_path / "faces.sqlite"
    path.write_text("not a database, but long enough to look like one " * 40)
    with pytest.raises(OSError, match="faces.sqlite.*delete the file"):
        FaceStore(path)
