"""Every data set against the Protocol of `data.datasets`, and one that lies outside of the package."""

import numpy as np
import pytest
from data_fixtures import WRITERS
from PIL import Image

from actfer_jax import facs, plugins
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.sources import DataConfig, DataError, emotion_labels, open_source


@pytest.mark.parametrize("name", plugins.names("data.datasets"))
def test_a_data_set_keeps_its_protocol(name, tmp_path):
    files = WRITERS[name](tmp_path / "files") if name in WRITERS else {}
    given = {"name": name, "size": 3, "cache_directory": str(tmp_path / "cache")} | files
    config = read_config(given, DataConfig, "data")
    source, labels = open_source(config), emotion_labels(config)
    classes = [facs.normalise_emotion(label) for label in labels]
    assert len(source) == 3 and len(set(classes)) == len(classes)
    for index in range(3):
        sample, again = source[index], source[index]
        for image, same in zip(sample.images, again.images, strict=True):
            np.testing.assert_array_equal(image, same)
        emotion = sample.reference.emotion
        assert sample.reference.has_aus if emotion is None else emotion in sample.reference.labels
        assert {facs.normalise_emotion(label) for label in sample.reference.labels} <= set(classes)
        assert sample.reference.strata == source.strata(index)
    with pytest.raises(ConfigError, match=r"^data\.split is 'nowhere'"):
        read_config(given | {"split": "nowhere"}, DataConfig, "data")


def test_a_module_of_ones_own_is_a_data_set(tmp_path):
    for value, path in ((10, "sadness/b.png"), (20, "anger/a.png"), (30, "sadness/a.png")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / path)
    given = {"name": "examples.my_faces", "directory": str(tmp_path)}
    config = read_config(given, DataConfig, "data")
    assert emotion_labels(config) == ("anger", "sadness")
    source = open_source(config)
    shown = sorted((source[i].reference.emotion, source[i].images[0][0, 0, 0]) for i in range(len(source)))
    assert shown == [("anger", 20), ("sadness", 10), ("sadness", 30)]
    with pytest.raises(DataError, match="size is 4, but .* has 3 images"):
        open_source(read_config(given | {"size": 4}, DataConfig, "data"))
