"""Copies of pictures: those that are found, those that are none, and what is done about them."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import config_of, put
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actfer_jax.config import ConfigError
from actfer_jax.data import duplicates
from actfer_jax.data.check import check, show
from actfer_jax.data.datasets import folders
from actfer_jax.data.datasets.synth_faces.renderer import render
from actfer_jax.data.datasets.synth_faces.world import sample_face
from actfer_jax.data.duplicates import TOLERANCE, Catalogue, Signature, is_same, perceptual_hash, signature
from actfer_jax.data.leaks import OtherSet
from actfer_jax.data.sheet import contact_sheet
from actfer_jax.data.sources import DataConfig, DataError, open_source, read_named_set
from actfer_jax.runs.manifest import check_workdir, write_manifest
from actfer_jax.runs.metrics import METRICS, WorkdirError

PEOPLE, EXPRESSIONS = 12, ("neutral", "happiness", "surprise")


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def looks(image: Image.Image) -> Signature:
    return signature(encoded(image), np.asarray(image.convert("RGB")))


@pytest.fixture(scope="module")
def faces() -> dict[tuple[int, str], Image.Image]:
    """Each person with each expression: in the same place, light and background, 100 x 100 pixels."""
    drawn = {}
    for person in range(PEOPLE):
        for expression in EXPRESSIONS:
            face = sample_face((5, person), emotion=expression, subtle=False)
            x, y, half = face.pose.x / 2, face.pose.y / 2, face.pose.height * 0.31
            box = (int(x - half), int(y - half), int(x + half), int(y + half))
            drawn[person, expression] = Image.fromarray(render(face, 256).image).crop(box).resize((100, 100))
    return drawn


def crop(image: Image.Image, share: float) -> Image.Image:
    cut = round(image.width * share)
    return image.crop((cut, cut, image.width - cut, image.height - cut))


COPIES = {
    "recompressed": lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=40))),
    "smaller": lambda image: image.resize((48, 48)),
    "larger": lambda image: image.resize((224, 224)),
    "grey": lambda image: image.convert("L"),
    "cropped": lambda image: crop(image, 0.02),
    "cropped and recompressed": lambda image: Image.open(io.BytesIO(encoded(crop(image, 0.03), "JPEG", quality=70))),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_known_among_faces_that_are_much_alike(faces, kind):
    catalogue = Catalogue([looks(face) for face in faces.values()])
    found = [catalogue.find(looks(COPIES[kind](face))) for face in faces.values()]
    right = sum(one == (index, False) for index, one in enumerate(found))
    assert right >= 0.97 * len(faces), found
    assert catalogue.find(looks(next(iter(faces.values())))) == (0, True)


def test_another_expression_and_another_person_are_no_copies(faces):
    """Though some have the same hash."""
    shown = {key: looks(face) for key, face in faces.items()}
    pairs = [(one, other) for one in shown for other in shown if one < other]
    assert any(perceptual_hash(shown[a].thumbnail) == perceptual_hash(shown[b].thumbnail) for a, b in pairs)
    assert [pair for pair in pairs if is_same(*(shown[key].thumbnail for key in pair))] == []


def test_pictures_that_show_nothing_are_no_copies_of_each_other():
    black, white = (Image.new("RGB", (60, 60), (value,) * 3) for value in (0, 255))
    assert Catalogue([looks(black)]).find(looks(white)) is None


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.data())
def test_the_bands_find_every_hash_within_the_tolerance(hashes, data):
    near = st.builds(
        lambda hash_, bits: hash_ ^ sum(1 << bit for bit in bits),
        st.sampled_from(hashes or [0]),
        st.sets(st.integers(0, 63), max_size=TOLERANCE + 2),
    )
    wanted = data.draw(near)
    nothing = np.zeros((32, 32), np.uint8)
    catalogue = Catalogue([Signature(bytes([i]), (hash_,), nothing) for i, hash_ in enumerate(hashes)])
    close = [index for index, hash_ in enumerate(hashes) if (hash_ ^ wanted).bit_count() <= TOLERANCE]
    close.sort(key=lambda index: (hashes[index] ^ wanted).bit_count())
    assert catalogue._similar([wanted]) == close[: duplicates._CANDIDATES]


@pytest.fixture
def sets(faces, tmp_path) -> tuple[Path, Path]:
    """Two data sets, and what they share: one file, and one picture that the other has smaller."""
    train, test = tmp_path / "train set", tmp_path / "test set"
    for person, expression in faces:
        if person < 3:
            put(train / f"train/{expression}/{person}.png", encoded(faces[person, expression]))
    put(train / "test/happiness/cropped.jpg", encoded(crop(faces[1, "happiness"], 0.02), "JPEG"))
    put(train / "test/neutral/8.png", encoded(faces[8, "neutral"]))
    put(test / "a/other.png", encoded(faces[5, "neutral"]))
    put(test / "a/same.png", encoded(faces[0, "neutral"]))
    put(test / "b/small.jpg", encoded(faces[2, "surprise"].resize((48, 48)).convert("L"), "JPEG"))
    return train, test


def test_copies_in_other_splits_and_in_another_set_are_counted_and_named(sets):
    train, test = sets
    config = config_of("folders", directory=str(train))
    text = f"folders:{test}"
    report = check(folders.inventory(config), train, against=[OtherSet(read_named_set(text))])
    assert report["copies"] == {"other splits": {"same": 0, "similar": 1}, text: {"same": 1, "similar": 1}}
    assert [(problem["file"], problem["what"]) for problem in report["problems"]] == [
        (
            "train/happiness/1.png",
            "nearly the same picture as test/happiness/cropped.jpg, which is of the class happiness and the split test",
        ),
        ("train/neutral/0.png", f"the same picture as a/same.png of {text}"),
        ("train/surprise/2.png", f"nearly the same picture as b/small.jpg of {text}"),
    ]
    assert f"1 in other splits (0 the same), 2 in {text} (1 the same)" in show(report)


def test_training_gets_no_picture_of_an_excluded_set(sets, caplog):
    train, test = sets
    text = f"folders:{test}"
    source = open_source(config_of("folders", directory=str(train), exclude=(text,), size=7))
    names = {source[index].name for index in range(len(source))}
    assert len(names) == 7 and not names & {"train/neutral/0.png", "train/surprise/2.png"}
    assert source.excluded == {text: {"same": 1, "similar": 1}}
    with pytest.raises(DataError, match="data.size is 8, but train has 7 records that data.exclude leaves"):
        open_source(config_of("folders", directory=str(train), exclude=(text,), size=8))
    own = f"folders:{train},split=test"
    assert open_source(config_of("folders", directory=str(train), exclude=(own,))).excluded[own]["similar"] == 1
    with pytest.raises(DataError, match="data.exclude leaves nothing of the split 'train'"):
        open_source(config_of("folders", directory=str(train), exclude=(f"folders:{train}",)))
    put(test / "b/small.jpg", "<html>")
    with pytest.raises(DataError, match="1 of its pictures cannot be read, the first b/small.jpg: a web page"):
        open_source(config_of("folders", directory=str(train), exclude=(text,)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("folders", "give NAME:DIR"),
        ("folder:DIR", "did you mean folders"),
        ("synth_faces:DIR", "synth_faces has no files of pictures"),
        ("folders:/nowhere", "directory is '/nowhere', which is no folder"),
        ("folders:DIR,split=holdout", "split is 'holdout'"),
    ],
)
def test_a_set_that_cannot_be_excluded_is_named_at_once(tmp_path, text, words):
    text = text.replace("DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"data\.exclude\[0\] is '{text}': .*{words}"):
        config_of("folders", directory=str(tmp_path), exclude=(text,))


def test_a_source_that_cannot_leave_pictures_out_is_refused(tmp_path):
    put(tmp_path / "a/b.png", encoded(Image.new("RGB", (9, 9))))
    config = DataConfig(size=1, cache_directory=str(tmp_path / "cache"), exclude=(f"folders:{tmp_path}",))
    with pytest.raises(DataError, match="synth_faces cannot leave pictures out"):
        open_source(config)


def test_a_run_goes_on_with_the_same_exclusion_only(tmp_path):
    old, none, other = ({"data": data} for data in ({}, {"exclude": ()}, {"exclude": ("ferbench:DIR",)}))
    write_manifest(tmp_path, old, "")
    (tmp_path / METRICS).write_text("")
    check_workdir(tmp_path, none)  # a run of before there was such a key
    with pytest.raises(WorkdirError, match=r"data.exclude \(\[\] there, \['ferbench:DIR'\] here\)"):
        check_workdir(tmp_path, other)


def test_a_contact_sheet_shows_some_of_each_class(sets):
    train, _ = sets
    shutil.copy(train / "train/neutral/0.png", train / "train/neutral/Z.png")
    put(train / "train/neutral/damaged.png", "<html>")
    inventory = folders.inventory(config_of("folders", directory=str(train)))
    data = contact_sheet(inventory)
    assert data == contact_sheet(inventory)
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    tiles = sheet[4:, 200:].reshape(3, 116, 8, 116, 3)[:, :112, :, :112].transpose(0, 2, 1, 3, 4)
    assert [[bool((tile < 250).any()) for tile in row].count(True) for row in tiles] == [4, 5, 3]
    neutral = {json.dumps(tile.tolist()) for tile in tiles[1]}
    assert len(neutral) == 5  # four pictures, one of them twice, and an empty place
