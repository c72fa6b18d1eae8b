"""Programs that find action units in faces, one file each: how the CSV files that they write are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from actfer_jax.config import Count, FieldError, check_fields


@dataclass(frozen=True)
class AnnotationsConfig:
    """Action units from an annotator, for the pictures of a data set that have none. The `Config` of each module here
    extends this with its thresholds.

    Attributes:
      name: the annotator: a file of `data/annotators`, or the dotted name of a user's module.
      file: what it wrote: a CSV file, or a folder of them; below `data.directory`, or a whole path.
      picture_column: the column that names the picture; "" for the annotator's own. Where there is none, the name of
        the CSV file is that of the picture, or of the video whose frames the rows are.
      path_parts: how many of the last parts of a path name a picture, at least 1: 2 tells a/1.jpg from b/1.jpg.
    """

    FOLDER: ClassVar[str] = "data.annotators"

    name: str = ""
    file: str = ""
    picture_column: str = ""
    path_parts: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.file.strip():
            raise FieldError("file", f"is {self.file!r}; give the CSV file of the annotator, or the folder of them")


class Face(NamedTuple):
    """A row about a face.

    Attributes:
      confidence: of the detection; of several faces in a picture the surest counts.
      labels: what each model of the annotator says: by action unit that it knows, whether it is present.
    """

    confidence: float
    labels: Sequence[Mapping[int, bool]]


class Annotator(Protocol):
    """The interface of an annotator's module.

    Attributes:
      Config: a dataclass that extends `AnnotationsConfig`.
      TITLE: its name in tables.
      TRAINED_ON: the data sets with coded action units that it was trained on itself.
      PICTURE_COLUMNS: columns that name the picture or the video; the first that a row has counts.
      FRAME_COLUMNS: columns with the number of a frame, likewise.
    """

    Config: type[Any]
    TITLE: str
    TRAINED_ON: tuple[str, ...]
    PICTURE_COLUMNS: tuple[str, ...]
    FRAME_COLUMNS: tuple[str, ...]

    def read(self, row: Mapping[str, str], config: Any) -> Face | None:
        """The face of a row, or None where no face was found with enough confidence.

        Args:
          row: cells by column, both without blanks around them. Text is data: it is never evaluated.

        Raises:
          ValueError: a cell cannot be read; the message begins with its column.
        """
