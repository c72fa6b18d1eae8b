"""`actfer.json`: what a checkpoint needs, in addition to Hugging Face's own files, to act again."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from actfer_jax.config import read_config
from actfer_jax.files import write_atomically

FILE_NAME = "actfer.json"


@dataclass(frozen=True)
class PolicyCard:
    """How the policy was trained to look.

    Attributes:
      labels: the emotion labels it answers with; none where it names action units only.
      trained_on: names of the data sets, and of the annotators of pseudo-labels.
      views, rollout: the fields of `ViewConfig` and `RolloutConfig` as they were in training.
    """

    labels: tuple[str, ...]
    trained_on: tuple[str, ...]
    views: dict[str, Any]
    rollout: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, directory: epath.PathLike) -> None:
        write_atomically(epath.Path(directory) / FILE_NAME, self.to_json())

    @classmethod
    def load(cls, directory: epath.PathLike) -> "PolicyCard":
        """Reads the card of a checkpoint directory.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is not one.
        """
        path = epath.Path(directory) / FILE_NAME
        try:
            return read_config(json.loads(path.read_text()), cls, FILE_NAME)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: {directory} is not a checkpoint of actfer_jax") from None
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); export the checkpoint again") from None
