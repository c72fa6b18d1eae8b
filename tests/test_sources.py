"""Samples on their way to training."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.data.sources import DataError, Sample, batches, order
from actfer_jax.rl import rewards

LABELS = ("fear", "surprise")
FEAR = Reference(LABELS, "fear", frozenset({1, 2, 4}))


class Records:
    """A data set that knows so much of each picture."""

    def __init__(self, references: Sequence[Reference]):
        self.references = references

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Sample:
        return Sample("records", f"picture {index}", np.zeros((4, 4, 3), np.uint8), self.references[index])


def one_pass(references: Sequence[Reference]) -> list[Sample]:
    """Every sample once, as a training step takes them."""
    return [sample for (sample,) in islice(batches(order(Records(references), 0), 1, 0), len(references))]


@pytest.mark.parametrize(
    "reference",
    [
        Reference(LABELS),
        Reference(LABELS, aus=frozenset(), known_aus=frozenset()),  # nothing was annotated
    ],
)
def test_a_sample_without_action_units_and_emotion_is_named(reference):
    with pytest.raises(DataError, match="^records/picture 3 has neither action units nor an emotion.*leave the sample"):
        one_pass([FEAR, FEAR, FEAR, reference, FEAR])


def test_a_sample_with_one_of_them_is_rewarded_for_that_one():
    references = [FEAR, Reference(LABELS, "fear"), Reference(LABELS, None, frozenset({1, 2, 4}))]
    assert len(samples := one_pass(references)) == 3
    for sample in samples:
        right, wrong = (
            rewards.score(Episode.from_texts(text), sample.reference, rewards.RewardConfig())
            for text in (
                "<think>Look.</think><aus>AU1 AU2 AU4</aus><answer>fear</answer>",
                "<think>Look.</think><aus>AU12</aus><answer>surprise</answer>",
            )
        )
        assert right["task"] == pytest.approx(0.85) and wrong["task"] == 0
