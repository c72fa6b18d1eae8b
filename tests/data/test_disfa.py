"""DISFA: which frame has which codes, who is tested in which fold, and what is said about files that are odd."""

import shutil
from typing import Any

import pytest
from data_fixtures import DISFA_PEOPLE, disfa_intensity, put, write_disfa

from actfer_jax.config import read_config
from actfer_jax.data.check import check, show
from actfer_jax.data.datasets import disfa
from actfer_jax.data.inventory import Inventory
from actfer_jax.data.sources import DataConfig, DataError, open_source
from actfer_jax.training.config import read_train_config
from configs import grpo, sft, ucgrpo

EVALUATED = {1, 2, 4, 6, 9, 12, 25, 26}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Any]:
    return write_disfa(tmp_path_factory.mktemp("disfa"))


def inventory_of(**keys: Any) -> Inventory:
    return disfa.inventory(read_config({"name": "disfa", "split": "all"} | keys, DataConfig, "data"))


def frames_of(**keys: Any) -> dict[str, tuple[int, Any]]:
    """The grey and the reference of every frame by its name."""
    source = open_source(read_config({"name": "disfa", "split": "all"} | keys, DataConfig, "data"))
    samples = [source[index] for index in range(len(source))]
    return {sample.name: (int(sample.images[0][0, 0, 0]), sample.reference) for sample in samples}


def test_both_ways_to_name_frames_name_the_same_frame(given, tmp_path):
    by_number, from_zero = frames_of(**given), frames_of(**write_disfa(tmp_path, from_zero=True))
    assert by_number == from_zero and len(by_number) == 27 * 4 - 1
    for name, (grey, reference) in by_number.items():
        subject, frame = name.split("/")
        assert grey == DISFA_PEOPLE.index(subject) * 4 + int(frame)
        coded = {au: disfa_intensity(subject, au, int(frame)) for au in EVALUATED}
        assert reference.aus == {au for au, intensity in coded.items() if intensity >= 2}
        assert reference.known_aus == EVALUATED and reference.emotion is None and reference.labels == ()
        assert reference.extra["subject"] == subject
        letters = {f"AU{au}": " ABCDE"[intensity] for au, intensity in coded.items() if intensity}
        assert reference.extra.get("intensities", {}) == letters


def test_everybody_is_tested_in_one_fold_and_trained_on_in_the_others(given):
    tested: list[str] = []
    for fold in (1, 2, 3):
        parts = [
            {reference.extra["subject"] for _, reference in frames_of(fold=fold, split=split, **given).values()}
            for split in ("train", "test")
        ]
        assert len(parts[0]) == 18 and len(parts[1]) == 9 and not parts[0] & parts[1]
        assert parts[1] == {*disfa.FOLDS[fold]}
        tested += parts[1]
    assert sorted(tested) == DISFA_PEOPLE


def test_a_stride_and_all_coded_units_are_choices(given):
    assert sorted(frames_of(stride=3, **given))[:4] == ["SN001/00001", "SN001/00004", "SN002/00001", "SN002/00004"]
    _, reference = frames_of(aus="coded", **given)["SN007/00002"]
    assert reference.known_aus == EVALUATED | {5, 15, 17, 20}


@pytest.mark.parametrize("module", [ucgrpo, grpo, sft])
def test_a_config_trains_on_two_folds_and_evaluates_on_the_third(module, given):
    raw = module.get_config("disfa")
    raw.model.path, raw.data.directory, raw.evaluation.data.directory = "demo", given["directory"], given["directory"]
    config = read_train_config(raw)
    trained, tested = map(people_in, (config.data, config.evaluation.data))
    assert trained | tested == {*DISFA_PEOPLE} and tested == {*disfa.FOLDS[1]} and not trained & tested


def people_in(config: DataConfig) -> set[str]:
    return {record.name.split("/")[0] for record in disfa.open_source(config).records}


def test_what_is_odd_is_named_with_file_and_line(given, tmp_path):
    shutil.copytree(given["directory"], tmp_path, dirs_exist_ok=True)
    coded, frames = tmp_path / "ActionUnit_Labels", tmp_path / "frames"
    put(coded / "SN001/SN001_au4.txt", "1,0\r\n3,6\r\n2,5\r\n2,4\r\nx\r\n")
    (coded / "SN003/SN003_au26.txt").unlink()
    for frame in (2, 3):
        (frames / f"SN005/{frame:05d}.png").unlink()
    put(coded / "SN014/SN014_au1.txt", "1,0\n")
    shutil.rmtree(coded / "SN032")
    shutil.rmtree(frames / "SN031")
    keys = given | {"directory": str(tmp_path)}
    report = check(inventory_of(**keys), tmp_path)
    at = "ActionUnit_Labels/"
    expected = [
        ("SN014", None, "is of nobody in the three folds; left out"),
        ("SN001/SN001_au4.txt", 2, "the intensity is 6, of 0 to 5; left out"),
        ("SN001/SN001_au4.txt", 4, "frame 2 is in line 3 already; left out"),
        ("SN001/SN001_au4.txt", 5, "is 'x', no frame and intensity; left out"),
        ("SN001/SN001_au4.txt", 4, "has no row of the frames 3 to 4, which other files have; AU4 is not known there"),
        ("SN003/SN003_au26.txt", None, "is not there; its action unit is not known of this person"),
        ("SN005/SN005_au1.txt", 2, "frames/SN005 has no picture of the frames 2 to 3; left out"),
        ("SN031/SN031_au1.txt", 1, "frames/SN031 has no picture of the frames 1 to 4; left out"),
        ("SN032", None, "is not there"),
    ]  # fmt: skip
    found = [tuple(problem.values()) for problem in report["problems"]]
    assert found[: len(expected)] == [(at + file, line, what) for file, line, what in expected]
    # Frames without a row: SN023 is one row short, and nobody coded SN032.
    names = ("SN023/00004.png", *(f"SN032/{frame:05d}.png" for frame in range(1, 5)))
    assert found[len(expected) :] == [(f"frames/{name}", None, "no row names it; not used") for name in names]
    assert report["official"] == {"all": {"expected": 130814, "found": 27 * 4 - 1 - 2 - 4 - 4}}
    assert "all: 97, officially 130814" in show(report)
    records = frames_of(**keys)
    assert records["SN001/00002"][1].known_aus == EVALUATED and 4 in records["SN001/00002"][1].aus
    assert records["SN001/00003"][1].known_aus == EVALUATED - {4}
    assert records["SN003/00001"][1].known_aus == EVALUATED - {26}


def test_frames_that_cannot_be_matched_are_refused(given, tmp_path):
    shutil.copytree(given["directory"], tmp_path, dirs_exist_ok=True)
    frames, keys = tmp_path / "frames", given | {"directory": str(tmp_path)}

    def rename(number: int, name: str) -> None:
        for folder in frames.iterdir():
            next(path for path in folder.iterdir() if int(path.stem) == number).rename(folder / name)

    rename(1, "0.png")
    with pytest.raises(DataError, match="its names are of both kinds, so that it is not known which frame"):
        inventory_of(**keys)
    for number, name in enumerate(("1.png", "2.png", "3.png", "4.png")):
        rename(number + (number > 0), name)
    with pytest.raises(DataError, match="its names are of neither kind"):
        inventory_of(**keys)
    frames.rename(tmp_path / "faces")
    with pytest.raises(DataError, match=r"there is no .*frames \(data.frames\). Videos are not read; .*`ffmpeg -i"):
        inventory_of(**keys)
    (tmp_path / "ActionUnit_Labels").rename(tmp_path / "labels")
    with pytest.raises(DataError, match="data.directory must hold DISFA's ActionUnit_Labels/"):
        inventory_of(**keys)
