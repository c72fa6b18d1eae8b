"""A store of found faces on disk, so that later runs do not search the same image again."""

import hashlib
import logging
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actfer_jax.faces.detector import STEPS, Face, FaceDetector
from actfer_jax.faces.images import check_image
from actfer_jax.faces.landmarks import LANDMARKS
from actfer_jax.files import reason

log = logging.getLogger(__name__)

_COLUMNS = 4 + 1 + 1 + LANDMARKS * 2  # Box, score, step, landmarks.
_CHECKSUM_BYTES = 16
_PATIENCE_S = 10.0  # How long to wait for another process, which writes for milliseconds.
_NOT_WRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_NOT_LOCKABLE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL)


class FaceStore:
    """Faces by the content of their image and the settings of the detector, in one SQLite file.

    Threads and processes may share the file, on a network disk too if that locks files. It may be deleted, since faces
    can be found again (and imported again). If it cannot be written, it is only read; if it cannot be read either,
    faces are searched anew. One warning says so, and no run ends.

    Args:
      path: the file; it and its directory are made if they are missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._warned = False
        self._database: sqlite3.Connection | None
        try:
            self._database = self._open()
        except (sqlite3.Error, OSError) as error:
            self._database = self._open_to_read()
            what = "what is there is read, nothing is added" if self._database else "every run finds them anew"
            self._warn(f"{_problem(error)}: {what}")

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = self._connect("mode=rwc")
        # Write-ahead logging, in which older versions left the file, needs memory that all processes share: from
        # several machines on a network disk it would damage the file.
        database.execute("PRAGMA journal_mode=DELETE")
        # It does not wait for the disk. What a power failure takes is found again.
        database.execute("PRAGMA synchronous=OFF")
        for table in ("faces", "imported"):
            database.execute(f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, faces BLOB) WITHOUT ROWID")
        # A read-only file opens too. This statement changes nothing, but needs to write.
        database.execute("DELETE FROM faces WHERE 0")
        return database

    def _open_to_read(self) -> sqlite3.Connection | None:
        # "immutable" needs neither locks nor the additional files of a log, but misses rows in that.
        for mode in ("mode=ro", "immutable=1"):
            with suppress(sqlite3.Error):
                database = self._connect(mode)
                database.execute("SELECT key, faces FROM faces LIMIT 1")
                return database
        return None

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?{mode}"
        return sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S, check_same_thread=False, isolation_level=None)

    def __reduce__(self) -> tuple[type["FaceStore"], tuple[Path]]:
        return FaceStore, (self.path,)

    @property
    def has_imported(self) -> bool:
        """Whether it has imported faces."""
        return self._ask("SELECT faces FROM imported LIMIT 1") is not None

    def add_imported(self, image: NDArray[np.uint8], faces: tuple[Face, ...]) -> None:
        """Keeps the faces that another detector found in an image, in place of those imported before.

        Raises:
          OSError: they cannot be written.
        """
        try:
            self._execute("INSERT OR REPLACE INTO imported VALUES (?, ?)", _key(image), _pack(faces))
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: faces cannot be imported, since the file {_problem(error)}") from error

    def detect(self, detector: FaceDetector, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        """The result of `detector.detect` with the image's imported faces, from the store if it has it."""
        check_image(image)
        imported = self._imported(image) if "imported" in detector.config.steps else ()
        key = _key(image, detector.fingerprint, _pack(imported))
        row = self._ask("SELECT faces FROM faces WHERE key = ?", key)
        faces = _unpack(row[0]) if row is not None else None
        if faces is None:
            faces = detector.detect(image, imported)
            if (packed := _pack(faces)) is not None:
                self._ask("INSERT OR REPLACE INTO faces VALUES (?, ?)", key, packed)
        return faces

    def _imported(self, image: NDArray[np.uint8]) -> tuple[Face, ...]:
        row = self._ask("SELECT faces FROM imported WHERE key = ?", _key(image))
        faces = _unpack(row[0]) if row is not None else ()
        if faces is None:
            self._warn("has imported faces that are damaged: the other steps search these images; import them anew")
        return faces or ()

    def _ask(self, statement: str, *values: bytes | None) -> tuple[Any] | None:
        """The first row, if any. A damaged or busy file or a full disk costs a search, and does not end the run."""
        if self._database is None:
            return None
        try:
            return self._execute(statement, *values)
        except sqlite3.Error as error:
            self._warn(f"{_problem(error)}: faces are searched anew")
            if _code(error) in _NOT_LOCKABLE:
                self._database = None  # Every question would wait as long.
            return None

    def _execute(self, statement: str, *values: bytes | None) -> tuple[Any] | None:
        with self._lock:
            if self._database is None:
                raise sqlite3.OperationalError("it could not be opened")
            return self._database.execute(statement, values).fetchone()

    def _warn(self, message: str) -> None:
        if not self._warned:
            log.warning("%s: the store of found faces %s", self.path, message)
        self._warned = True


def _code(error: Exception) -> int:
    """SQLite's primary code of an error; 0 for others."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _problem(error: Exception) -> str:
    """What is wrong with the file, and what to do."""
    if _code(error) in _NOT_LOCKABLE:
        return (
            f"does not answer ({reason(error)}): another program holds it, or its disk, perhaps a network disk, cannot "
            "lock files; put it on a disk of this machine with config.data.cache_directory"
        )
    if isinstance(error, OSError) or _code(error) in _NOT_WRITABLE:
        return f"cannot be written ({reason(error)})"
    return f"cannot be used ({reason(error)}); if that stays so, delete the file"


def _key(image: NDArray[np.uint8], *settings: object) -> bytes:
    digest = hashlib.blake2b(repr((settings, image.shape)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _pack(faces: tuple[Face, ...]) -> bytes | None:
    """Faces as a row with its checksum; None if the tools cannot use them."""
    if any(face.landmarks.shape != (LANDMARKS, 2) or not np.isfinite(face.landmarks).all() for face in faces):
        return None
    values = np.array(
        [[*face.box, face.score, STEPS.index(face.step), *face.landmarks.ravel()] for face in faces], np.float64
    ).tobytes()
    return values + _checksum(values)


def _unpack(row: object) -> tuple[Face, ...] | None:
    """The faces of a row; None if it is damaged or not ours."""
    if not isinstance(row, bytes):
        return None
    values, checksum = row[:-_CHECKSUM_BYTES], row[-_CHECKSUM_BYTES:]
    if _checksum(values) != checksum or len(values) % (8 * _COLUMNS):
        return None
    rows = np.frombuffer(values, np.float64).reshape(-1, _COLUMNS)
    return tuple(Face(tuple(r[:4].tolist()), float(r[4]), r[6:].reshape(LANDMARKS, 2), STEPS[int(r[5])]) for r in rows)


def _checksum(values: bytes) -> bytes:
    return hashlib.blake2b(values, digest_size=_CHECKSUM_BYTES).digest()
