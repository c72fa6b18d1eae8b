"""Faces that were found once, kept on disk: the same picture is not searched again by a later run."""

import hashlib
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import dlib
import numpy as np
from numpy.typing import NDArray

from actfer_jax.faces.detector import Face, FaceDetector

_COLUMNS = 4 + 1 + 68 * 2  # Box, score, landmarks.


class FaceStore:
    """Faces by the content of their picture and the settings of the detector, in one SQLite file.

    Threads and processes may share the file. It holds nothing that cannot be found again: it may be deleted.

    Args:
      path: the file; it and its directory are made where they are missing.

    Raises:
      OSError: the file cannot be opened, or is not such a store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            # Write-ahead logging needs no wait for the disk; what a power failure takes is found again.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS faces (key BLOB PRIMARY KEY, faces BLOB) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: the store of found faces cannot be used ({error}); delete the file") from error

    def __reduce__(self) -> tuple[type["FaceStore"], tuple[Path]]:
        return FaceStore, (self.path,)

    def detect(self, detector: FaceDetector, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """What `detector.detect(image)` returns, from the store where it is there."""
        settings = (dlib.__version__, detector.landmarks_digest, detector.max_pixels, detector.upsampling, image.shape)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image).data)
        key = digest.digest()
        row = None
        # A damaged file costs a search.
        with self._lock, suppress(sqlite3.Error):
            row = self._database.execute("SELECT faces FROM faces WHERE key = ?", (key,)).fetchone()
        if row is not None:
            rows = np.frombuffer(row[0], np.float64).reshape(-1, _COLUMNS)
            return tuple(Face(tuple(r[:4].tolist()), float(r[4]), r[5:].reshape(68, 2)) for r in rows)
        faces = detector.detect(image)
        values = np.array([[*face.box, face.score, *face.landmarks.ravel()] for face in faces], np.float64)
        # A full disk or a busy file costs the next run a search, not this one its end.
        with self._lock, suppress(sqlite3.Error):
            self._database.execute("INSERT OR IGNORE INTO faces VALUES (?, ?)", (key, values.tobytes()))
        return faces
