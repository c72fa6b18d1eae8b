"""Several data sets as one: what a sample is, and how often it comes."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import WRITERS, config_of, encoded, noise, put
from hypothesis import given, settings
from hypothesis import strategies as st

from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.datasets.mixture import expanded
from actfer_jax.data.sources import DataError, batches, emotion_labels, label_sets, open_source, order
from actfer_jax.training.config import TrainConfig
from configs import sft, ucgrpo


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """Ten faces with words of one set, four with words of another, and one emotion that only this has."""
    for index in range(10):
        put(tmp_path / f"one/train/{'happy' if index < 7 else 'sad'}/{index}.png", encoded(noise(index)))
    for index in range(4):
        put(tmp_path / f"two/{'sadness' if index < 3 else 'contempt'}/{index}.png", encoded(noise(20 + index)))
    one = {"name": "folders", "directory": str(tmp_path / "one")}
    return {"one": one, "two": {"name": "folders", "directory": str(tmp_path / "two"), "split": "all"}}


def samples(**keys: Any) -> Iterator[Any]:
    source = open_source(config_of("mixture", **keys))
    return (source[index] for index in range(len(source)))


def test_samples_keep_the_labels_of_their_sets_and_are_of_their_stratum(parts):
    config = config_of("mixture", parts=parts)
    assert emotion_labels(config) == ("happy", "sad", "contempt")
    assert set(label_sets(config)) == {("happy", "sad"), ("contempt", "sadness")}
    assert config.lineage == ("folders",)
    found = {
        (one.dataset, one.reference.labels, one.reference.emotion, one.reference.strata) for one in samples(parts=parts)
    }
    assert found == {
        ("one", ("happy", "sad"), "happy", ("one",)),
        ("one", ("happy", "sad"), "sad", ("one",)),
        ("two", ("contempt", "sadness"), "sadness", ("two",)),
        ("two", ("contempt", "sadness"), "contempt", ("two",)),
    }


def test_shared_labels_have_one_word_for_an_emotion(parts):
    assert label_sets(config_of("mixture", parts=parts, labels="shared")) == (("happy", "sad", "contempt"),)
    found = Counter((one.dataset, one.reference.emotion) for one in samples(parts=parts, labels="shared"))
    assert found == {("one", "happy"): 7, ("one", "sad"): 3, ("two", "sad"): 3, ("two", "contempt"): 1}


def test_weights_and_limits_say_how_often_a_sample_comes(parts):
    weighted = samples(parts=parts, weights={"two": 3.0}, class_weights={"happiness": 2.0, "contempt": 0.5})
    # By weight: happy 2, sad 1, sadness 3, contempt 1.5; so of the three sad ones each comes once.
    times = Counter((one.reference.emotion, one.name) for one in weighted)
    by_emotion = {
        emotion: sorted(n for (word, _), n in times.items() if word == emotion)
        for emotion in ("happy", "sad", "sadness", "contempt")
    }
    assert by_emotion["happy"] == [2] * 7 and by_emotion["sad"] == [1] * 3 and by_emotion["sadness"] == [3] * 3
    assert by_emotion["contempt"] in ([1], [2])
    limited = Counter(one.reference.emotion for one in samples(parts=parts, limits={"two": 3}, class_limit=2))
    assert limited["happy"] == 2 and limited["sad"] == 2 and limited["sadness"] + limited["contempt"] in (2, 3)
    assert limited["sadness"] <= 2


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_chance_is_in_proportion_to_its_weight(weights, seed):
    each = 200
    weighted = [(str(part), index, weight) for part, weight in enumerate(weights) for index in range(each)]
    times = Counter(expanded(weighted, seed))
    assert times == Counter(expanded(reversed(weighted), seed))
    for part, weight in enumerate(weights):
        wanted, counts = weight / min(weights), [times[str(part), index] for index in range(each)]
        assert all(abs(count - wanted) < 1 + 1e-6 for count in counts)
        assert abs(sum(counts) / each - wanted) < 0.22  # more than six standard deviations


def test_a_mixture_resumes_at_any_step_whatever_the_order_of_its_keys(parts):
    def names(parts: dict[str, Any], start: int, stop: int) -> list[list[tuple[str, str]]]:
        source = open_source(config_of("mixture", parts=parts, weights={"two": 2.5}))
        steps = islice(batches(order(source, 3), 4, start), stop - start)
        return [[(one.dataset, one.name) for one in batch] for batch in steps]

    assert names(dict(reversed(parts.items())), 7, 12) == names(parts, 0, 12)[7:]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"parts": {}}, "parts is empty; give a section of data for each data set"),
        ({"weights": {"twos": 1.0}}, "weights.twos names no part; did you mean two"),
        ({"limits": {"two": 0}}, "limits.two is 0; it must be at least 1"),
        ({"directory": "/tmp"}, "directory is '/tmp'; it must be empty"),
        ({"weights": {"one": 900.0, "two": 0.5}}, "a sample of one has 1800 times the weight of another"),
        ({"class_weights": {"joyous": 2.0}}, "class_weights names joyous, .* there are happiness, sadness, contempt"),
        ({"size": 99}, "data.size is 99, but the parts have 14 samples"),
    ],
)
def test_a_mixture_that_cannot_be_is_named(parts, keys, words):
    with pytest.raises((ConfigError, DataError), match=words):
        open_source(config_of("mixture", **{"parts": parts} | keys))


def test_classes_cannot_be_weighed_where_they_are_not_known_without_the_pictures(parts, tmp_path):
    faces = {"name": "synth_faces", "size": 2, "cache_directory": str(tmp_path / "cache")}
    with pytest.raises(DataError, match="faces has no `reference\\(index\\)`: leave them out"):
        open_source(config_of("mixture", parts={"faces": faces} | parts, class_limit=1))


@pytest.mark.parametrize("module", [sft, ucgrpo])
def test_the_configs_for_ferbench_train_on_none_of_its_pictures(module, tmp_path):
    config = module.get_config("ferbench")
    config.model.path = "demo"
    for name, part in config.data.parts.items():
        part.directory = WRITERS[name](tmp_path / name)["directory"]
    ferbench = WRITERS["ferbench"](tmp_path / "ferbench")
    directory, questions = ferbench["directory"], ferbench["questions"]
    with pytest.raises(ConfigError, match=r"data.exclude\[0\] is 'ferbench:': give NAME:DIR"):
        read_config(config, TrainConfig, "config")
    config.data.exclude = (text := f"ferbench:{directory},questions={questions}",)
    config.evaluation.data.directory = directory
    # A training picture of RAF-DB is one of FERBench's, too.
    copied = next((tmp_path / "ferbench/images/RAF-DB").rglob("*.jpg")).read_bytes()
    put(tmp_path / "raf_db/basic/Image/aligned/train_00001_aligned.jpg", copied)
    data = read_config(config, TrainConfig, "config").data
    source = open_source(data)
    assert source.excluded[text]["same"] >= 1
    names = {(one.dataset, one.name) for one in (source[index] for index in range(len(source)))}
    assert ("raf_db", "train_00001.jpg") not in names and ("raf_db", "train_00002.jpg") in names
    assert data.lineage == ("affectnet", "fer_plus", "raf_db")
