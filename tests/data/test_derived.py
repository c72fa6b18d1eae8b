"""Another data set with chosen samples or changed pictures."""

from pathlib import Path

import numpy as np
import pytest
from data_fixtures import config_of
from PIL import Image

from actfer_jax.config import ConfigError
from actfer_jax.data.sources import DataError, open_source

HEIGHT, WIDTH = 30, 40


@pytest.fixture
def faces(tmp_path) -> dict:
    """Three angry and three sad pictures, of which the first of each is of the stratum "indoor"."""
    rows = ["image,emotion,strata"]
    for number, emotion in enumerate(["anger", "sadness"] * 3):
        pixels = np.random.default_rng(number).integers(0, 100, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{emotion},{'indoor' if number < 2 else 'outdoor'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return {"name": "table", "directory": str(tmp_path)}


def pictures(faces: dict, **keys) -> dict[str, np.ndarray]:
    source = open_source(config_of("derived", of=faces, split="all", **keys))
    return {sample.name: sample.images[0] for sample in (source[index] for index in range(len(source)))}


def test_pictures_are_changed_as_is_said(faces):
    before = pictures(faces)
    assert len(before) == 6
    for name, pixels in pictures(faces, change="brightness", strength=2.0).items():
        np.testing.assert_array_equal(pixels, 2 * before[name])
    assert {one.shape for one in pictures(faces, change="scale", strength=0.5).values()} == {(15, 20, 3)}
    for name, pixels in pictures(faces, change="occlusion", strength=0.4).items():
        rows, columns = np.nonzero((pixels == 128).all(-1))  # No picture has a 128 of its own.
        assert (np.ptp(rows), np.ptp(columns), len(rows)) == (11, 11, 144)  # a square of 12: 0.4 of 30
        outside = np.ones((HEIGHT, WIDTH), bool)
        outside[rows, columns] = False
        np.testing.assert_array_equal(pixels[outside], before[name][outside])
    turned = pictures(faces, change="rotation", strength=180.0)
    blurred = pictures(faces, change="blur", strength=3.0)
    for name, pixels in before.items():
        np.testing.assert_array_equal(turned[name], pixels[::-1, ::-1])
        assert blurred[name].std() < pixels.std() / 3 and abs(blurred[name].mean() - pixels.mean()) < 2


def test_an_occlusion_lies_where_it_lay_before_and_elsewhere_on_another_picture(faces):
    first, again = (pictures(faces, change="occlusion", strength=0.4) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    places = {tuple(np.argwhere((pixels == 128).all(-1))[0]) for pixels in first.values()}
    assert len(places) > 1


def test_emotions_can_be_taken_from_one_stratum(faces):
    assert set(pictures(faces, strata={"Angry": "indoor"})) == {"0.png", "1.png", "3.png", "5.png"}
    both = list(pictures(faces, strata={"anger": "indoor", "sad": "outdoor"}))
    assert set(both) == {"0.png", "3.png", "5.png"}
    assert list(pictures(faces, strata={"anger": "indoor", "sad": "outdoor"}, size=2)) == both[:2]
    with pytest.raises(DataError, match=r"data\.size is 5, but data\.strata leaves 4 of 6 samples of table"):
        pictures(faces, strata={"anger": "indoor"}, size=5)
    with pytest.raises(DataError, match="data.strata names contempt, which is no label of table"):
        pictures(faces, strata={"contempt": "indoor"})
    with pytest.raises(ConfigError, match=r"directory is '.*'; it must be empty"):
        config_of("derived", of=faces, directory=str(Path(faces["directory"])))
