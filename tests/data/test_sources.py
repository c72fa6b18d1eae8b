"""Samples on their way to training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from actfer_jax.agent.episode import Episode, Reference, Sample
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.sources import DataConfig, DataError, batches, check_reference, open_face_store, open_source, order
from actfer_jax.evaluation.run import EvaluateConfig
from actfer_jax.faces.images import ImageError
from actfer_jax.rl import rewards
from actfer_jax.training.config import TrainConfig
from configs import ucgrpo
from configs.eval import synth_faces
from tests.runs.test_checkpoints import contents

LABELS = ("fear", "surprise")
FEAR = Reference(LABELS, "fear", frozenset({1, 2, 4}))


class Records:
    """A data set that knows so much of each picture."""

    def __init__(self, references: Sequence[Reference]):
        self.references = references

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Sample:
        return Sample("records", f"picture {index}", (np.zeros((4, 4, 3), np.uint8),), self.references[index])


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


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference(("fear",), "anger"), "has the emotion 'anger', and the labels of the data set are fear"),
        (Reference((), "anger"), "has the emotion 'anger', and the data set has no labels"),
    ],
)
def test_an_emotion_that_is_no_label_is_named(reference, message):
    sample = Sample("records", "picture 3", (np.zeros((8, 8, 3), np.uint8),), reference)
    with pytest.raises(DataError, match=f"^records/picture 3 {message}: add it to the labels"):
        check_reference(sample)
    assert check_reference(replace(sample, reference=Reference(("Angry",), "anger"))).reference.emotion == "anger"


@pytest.mark.parametrize(
    ("raw_config", "cls", "section"),
    [
        (ucgrpo.get_config("demo"), TrainConfig, "data"),
        (ucgrpo.get_config("demo"), TrainConfig, "evaluation.data"),
        (synth_faces.get_config(), EvaluateConfig, "data"),
    ],
)
def test_faces_are_never_rendered_as_if_they_were_those_of_a_directory(raw_config, cls, section):
    """Nor is a directory of somebody's faces taken for the cache, as older configs called it."""
    raw_config.update_from_flattened_dict({f"{section}.directory": "MY_FACES"})
    with pytest.raises(ConfigError, match=rf"^config.{section}.directory is 'MY_FACES'.*data.cache_directory"):
        read_config(raw_config, cls, "config")


@pytest.mark.parametrize("open_data", [open_source, open_face_store])
def test_nothing_is_written_into_a_directory_with_files_of_others(tmp_path, open_data):
    mine = tmp_path / "mine"
    (mine / "holiday").mkdir(parents=True)
    (mine / "me.jpg").write_bytes(b"a picture")
    # An older version may have written there, and other programs mark their caches too.
    (mine / "synth_faces.lock").write_text("")
    (mine / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n")
    before = contents(mine)
    with pytest.raises(DataError, match=rf"^{mine} holds files that are not .*\(holiday, me.jpg\).*cache_directory"):
        open_data(DataConfig(size=2, cache_directory=str(mine)))
    assert contents(mine) == before and (mine / "holiday").is_dir()
    with pytest.raises(DataError, match="me.jpg cannot be used .*data.cache_directory"):
        open_data(DataConfig(size=2, cache_directory=str(mine / "me.jpg")))


def test_a_cache_is_a_new_an_empty_or_an_own_directory(tmp_path):
    new, empty, old = tmp_path / "new", tmp_path / "empty", tmp_path / "old"
    for directory in (empty, old / "synth_faces", old / "downloads"):
        directory.mkdir(parents=True)
    for name in ("faces.sqlite", "faces.sqlite-wal", "synth_faces.lock", ".DS_Store"):
        (old / name).write_bytes(b"")
    for directory in (new, empty, old):
        open_face_store(DataConfig(cache_directory=str(directory)))
        # Backup programs leave out what is tagged so.
        assert (directory / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
        (directory / "notes.txt").write_text("whoever puts something into a cache knows that it is one")
        open_face_store(DataConfig(cache_directory=str(directory)))


def test_a_read_only_cache_is_enough(tmp_path, make_read_only: Callable[[Path], None], caplog):
    config = DataConfig(size=2, cache_directory=str(tmp_path / "data"))
    expected = open_source(config)[1].images[0]
    (tmp_path / "data" / "CACHEDIR.TAG").unlink()
    make_read_only(tmp_path / "data")
    np.testing.assert_array_equal(open_source(config)[1].images[0], expected)
    open_face_store(config)
    assert [f"{tmp_path}/data/faces.sqlite" in message for message in caplog.messages] == [True]


def test_a_file_that_is_damaged_while_it_is_read_is_named(tmp_path):
    """By the threads that read ahead, which no command sees into."""
    source = open_source(DataConfig(size=4, cache_directory=str(tmp_path)))
    (file,) = tmp_path.rglob("*.array_record*")
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    with pytest.raises(DataError, match=rf"^{file}: .*delete the directory {file.parent}"):
        list(islice(batches(order(source, 0), 1, 0), 4))


def test_a_sample_whose_image_is_none_is_named():
    with pytest.raises(ImageError, match=r"^records/picture 0: an image is uint8 .* not float64"):
        Sample("records", "picture 0", (np.zeros((4, 4, 3)),), FEAR)
