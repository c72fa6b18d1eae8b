"""A store of found faces on disk, so that later runs do not search the same image again."""

import hashlib
import logging
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import dlib
import numpy as np
from numpy.typing import NDArray

from actfer_jax.faces.detector import LANDMARKS, Face, FaceDetector
from actfer_jax.faces.images import check_image
from actfer_jax.files import reason

log = logging.getLogger(__name__)

_COLUMNS = 4 + 1 + LANDMARKS * 2  # Box, score, landmarks.
_CHECKSUM_BYTES = 16
_NOT_WRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


class FaceStore:
    """Faces by the content of their image and the settings of the detector, in one SQLite file.

    Threads and processes may share the file. It may be deleted, since all faces can be found again. If it cannot be
    written, it is only read, with a warning.

    Args:
      path: the file; it and its directory are made if they are missing.

    Raises:
      OSError: the file is not such a store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._warned = False
        self._database: sqlite3.Connection | None
        try:
            self._database = self._open()
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF not in _NOT_WRITABLE:
                message = f"{self.path}: the store of found faces cannot be used ({error}); delete the file"
                raise OSError(message) from error
            self._database = self._open_to_read()
            what = "what is there is read, nothing is added" if self._database else "every run finds them anew"
            self._warn(f"cannot be written ({reason(error)}): {what}")

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
        # Write-ahead logging does not wait for the disk. Faces lost in a power failure are found again.
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("CREATE TABLE IF NOT EXISTS faces (key BLOB PRIMARY KEY, faces BLOB) WITHOUT ROWID")
        # A read-only file opens too. This statement changes nothing, but needs to write.
        database.execute("DELETE FROM faces WHERE 0")
        return database

    def _open_to_read(self) -> sqlite3.Connection | None:
        # "immutable" needs no additional files, which a read-only disk cannot take, but misses rows in a log.
        for mode in ("mode=ro", "immutable=1"):
            with suppress(sqlite3.Error):
                uri = f"{self.path.absolute().as_uri()}?{mode}"
                database = sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False, isolation_level=None)
                database.execute("SELECT key, faces FROM faces LIMIT 1")
                return database
        return None

    def __reduce__(self) -> tuple[type["FaceStore"], tuple[Path]]:
        return FaceStore, (self.path,)

    def detect(self, detector: FaceDetector, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """The result of `detector.detect(image)`, from the store if it has it."""
        check_image(image)
        settings = (dlib.__version__, detector.landmarks_digest, detector.max_pixels, detector.upsampling, image.shape)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image).data)
        key = digest.digest()
        row = self._execute("SELECT faces FROM faces WHERE key = ?", key)
        faces = _unpack(row[0]) if row is not None else None
        if faces is None:
            faces = detector.detect(image)
            if (packed := _pack(faces)) is not None:
                self._execute("INSERT OR REPLACE INTO faces VALUES (?, ?)", key, packed)
        return faces

    def _execute(self, statement: str, *values: bytes) -> tuple[bytes] | None:
        """The first row, if any. A damaged or busy file or a full disk costs a search, and does not end the run."""
        if self._database is None:
            return None
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            self._warn(f"does not answer ({error}): faces are searched anew; if that stays so, delete the file")
            return None

    def _warn(self, message: str) -> None:
        if not self._warned:
            log.warning("%s: the store of found faces %s", self.path, message)
        self._warned = True


def _pack(faces: tuple[Face, ...]) -> bytes | None:
    """Faces as a row with its checksum; None if the tools cannot use them."""
    if any(face.landmarks.shape != (LANDMARKS, 2) or not np.isfinite(face.landmarks).all() for face in faces):
        return None
    values = np.array([[*face.box, face.score, *face.landmarks.ravel()] for face in faces], np.float64).tobytes()
    return values + _checksum(values)


def _unpack(row: bytes) -> tuple[Face, ...] | None:
    """The faces of a row; None if it is damaged or not ours."""
    if not isinstance(row, bytes):
        return None
    values, checksum = row[:-_CHECKSUM_BYTES], row[-_CHECKSUM_BYTES:]
    if _checksum(values) != checksum or len(values) % (8 * _COLUMNS):
        return None
    rows = np.frombuffer(values, np.float64).reshape(-1, _COLUMNS)
    return tuple(Face(tuple(r[:4].tolist()), float(r[4]), r[5:].reshape(LANDMARKS, 2)) for r in rows)


def _checksum(values: bytes) -> bytes:
    return hashlib.blake2b(values, digest_size=_CHECKSUM_BYTES).digest()
