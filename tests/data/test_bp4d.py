"""BP4D: which frame has which codes, who is tested in which fold, and what is said about files that are odd."""

import shutil

import pytest
from data_fixtures import (
    BP4D_AUS,
    BP4D_EVALUATED,
    BP4D_FIRST,
    BP4D_PEOPLE,
    bp4d_code,
    problems_of,
    put,
    report_of,
    samples_of,
    write_bp4d,
)

from actfer_jax import facs
from actfer_jax.data.check import show
from actfer_jax.data.datasets import bp4d
from actfer_jax.data.sources import DataError

WRITTEN = {"F002", "F003", "F007", "M001"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return write_bp4d(tmp_path_factory.mktemp("bp4d"), tasks=2, people=sorted(WRITTEN))


def test_codes_are_those_of_the_frame_and_nine_is_not_known(given):
    samples = samples_of("bp4d", split="all", aus="coded", **given)
    assert len(samples) == 4 * 2 * 6
    for name, sample in samples.items():
        subject, task, frame = name.split("/")
        codes = {au: bp4d_code(subject, int(task[1:]), au, int(frame)) for au in {*BP4D_AUS} & {*facs.AU_NAMES}}
        reference = sample.reference
        assert abs(int(sample.images[0][0, 0, 0]) - int(frame)) <= 1
        assert reference.known_aus == {au for au, code in codes.items() if code != 9}
        assert reference.aus == {au for au, code in codes.items() if code == 1}
        assert reference.emotion is None and reference.extra == {"subject": subject}
    assert any(sample.reference.known_aus < {*BP4D_AUS} & {*facs.AU_NAMES} for sample in samples.values())
    for name, sample in samples_of("bp4d", split="all", **given).items():
        assert sample.reference.known_aus == BP4D_EVALUATED
        assert sample.reference.aus == samples[name].reference.aus & BP4D_EVALUATED
    strided = samples_of("bp4d", split="all", stride=4, **given)
    assert {name.rpartition("/")[2] for name in strided} == {f"{BP4D_FIRST + step:04d}" for step in (0, 4)}


def test_everybody_is_tested_in_one_fold(given):
    assert sorted(person for people in bp4d.FOLDS.values() for person in people) == sorted(BP4D_PEOPLE)
    assert sum(bp4d.FRAMES.values()) == 146_576
    for fold, tested in {1: {"F007"}, 2: {"F003"}, 3: {"F002", "M001"}}.items():
        parts = {split: samples_of("bp4d", split=split, fold=fold, **given) for split in ("train", "test")}
        people = {
            split: {one.reference.extra["subject"] for one in samples.values()} for split, samples in parts.items()
        }
        assert people == {"test": tested, "train": WRITTEN - tested}


def test_what_is_odd_is_named_with_file_and_line(given, tmp_path):
    shutil.copytree(given["directory"], tmp_path, dirs_exist_ok=True)
    coded, keys = tmp_path / "AUCoding/AU_OCC", given | {"directory": str(tmp_path)}
    header = ",".join(map(str, (0, *sorted(BP4D_EVALUATED - {23}))))
    rows = ["100" + ",1" * 11, "101" + ",0" * 10 + ",2", "x" + ",0" * 11, "100" + ",0" * 11, "102,1", "99" + ",9" * 11]
    put(coded / "F002_T1.csv", "\n".join([header, *rows]))
    (coded / "M001_T2.csv").unlink()
    put(coded / "F099_T1.csv", header)
    for frame in (96, 97, 99):
        (tmp_path / f"frames/F003/T1/{frame}.jpg").unlink()
    report = report_of("bp4d", split="all", **keys)
    at = "AUCoding/AU_OCC/"
    files = {f"{at}{who}_T{task}.csv" for who in (*WRITTEN, "F099") for task in (1, 2)}
    others = [tuple(one.values()) for one in report["problems"] if one["file"] in files]
    assert [(file.removeprefix(at), line, what) for file, line, what in others] == [
        ("F099_T1.csv", None, "is of nobody in the three folds; left out"),
        ("F002_T1.csv", 1, "has no column of AU23; not known of these frames"),
        ("F002_T1.csv", 3, "has the code '2', not 0, 1 or 9; left out"),
        ("F002_T1.csv", 4, "the frame is 'x', no number; left out"),
        ("F002_T1.csv", 5, "frame 100 is in line 2 already; left out"),
        ("F002_T1.csv", 6, "has 2 cells, and the header 12; the row is left out"),
        ("F002_T1.csv", 7, "1 rows from here on have no action unit that is known; left out"),
        ("F003_T1.csv", 3, "frames/F003/T1 has no picture of the frames 96 to 97; left out"),
        ("F003_T1.csv", 6, "frames/F003/T1 has no picture of frame 99; left out"),
        ("M001_T2.csv", None, "is not there"),
    ]
    assert report["official"]["all"] == {"expected": 146_576, "found": 4 * 2 * 6 - 5 - 6 - 3}
    assert "  test: 12, officially 45809" in show(report)


def test_what_cannot_be_read_is_refused(given, tmp_path):
    keys = {"directory": str(tmp_path)}
    with pytest.raises(DataError, match="data.directory must hold BP4D's AUCoding/AU_OCC/"):
        problems_of("bp4d", **keys)
    put(tmp_path / "AU_OCC/F001_T1.csv", "2440,0,0,1,5\n2441,0,0,1,5\n")
    with pytest.raises(DataError, match=r"no .*frames; data.frames is the folder that has F001/T1/2440.jpg"):
        problems_of("bp4d", **keys)
    (tmp_path / "frames").mkdir()
    with pytest.raises(DataError, match=r"F001_T1.csv, line 1: the first row must name .* \(AU_INT\)"):
        problems_of("bp4d", **keys)
