"""Every annotator against the Protocol of `data.annotators`."""

from pathlib import Path
from typing import Any

import pytest
from data_fixtures import put

from actfer_jax import plugins
from actfer_jax.config import read_config
from actfer_jax.data.annotations import pseudo_mark, read_annotations
from actfer_jax.data.annotators import AnnotationsConfig
from actfer_jax.data.sources import DataError


def config_of(name: str, **keys: Any) -> AnnotationsConfig:
    return read_config({"name": name, "file": "out"} | keys, AnnotationsConfig, "data.annotations")


def read(folder: Path, name: str, **keys: Any) -> None:
    read_annotations(config_of(name, **keys), folder)


@pytest.mark.parametrize("name", plugins.names("data.annotators"))
def test_an_annotator_keeps_its_protocol(name):
    module, config = plugins.load("data.annotators", name), config_of(name)
    assert isinstance(config, module.Config)
    nothing = module.read({}, config)
    assert nothing is None or not any(nothing.labels)
    assert module.TITLE in pseudo_mark(config) and all(data in pseudo_mark(config) for data in module.TRAINED_ON)


@pytest.mark.parametrize("name", plugins.names("data.annotators"))
def test_another_file_is_called_what_it_is(tmp_path, name):
    for content, what in (
        ("<html>404</html>", "out: a web page that was saved under this name"),
        ("image,emotion\na.jpg,fear\n", "out has no action units as .* writes them; it has the columns 'image', 'emo"),
    ):
        put(tmp_path / "out", content)
        with pytest.raises(DataError, match=what):
            read(tmp_path, name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no CSV files; data.annotations.file is what .* wrote"):
        read(tmp_path, name, file="empty")
    with pytest.raises(DataError, match="has no column 'face'; it has 'image', 'emotion': say with .*picture_column"):
        read(tmp_path, name, picture_column="face")
