"""Score files of other programs, one module each: how an evaluation is written as theirs, and how theirs are read.

A module whose files hold predictions also has `prediction(item, name, place)`: one item of a file (a JSON object, or a
row as texts by column) as an `items.Prediction`. `name` is the file's, `place` its file and line, for messages.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from actfer_jax.evaluation.items import Answer
from actfer_jax.evaluation.results import Results


class Format(Protocol):
    """The interface of a format's module."""

    def write(self, results: Results, answers: Mapping[str, Sequence[Answer]]) -> Mapping[str, str]:
        """The files of an evaluation, their texts by their names.

        Args:
          results: the evaluation.
          answers: its answers by control; those without a true label are left out where the format needs one.

        Raises:
          UserError: the format cannot say what is there.
        """
