"""RAF-AU, RAF-ML and RAF-CE: what is read from their lists, and what is said of rows that are odd."""

from dataclasses import fields

import pytest
from data_fixtures import (
    RAF_AU_ROWS,
    RAF_ML_SHARES,
    config_of,
    picture,
    problems_of,
    put,
    report_of,
    samples_of,
    write_raf_au,
    write_raf_ce,
    write_raf_ml,
)
from hypothesis import given
from hypothesis import strategies as st

from actfer_jax.config import ConfigError, read_config
from actfer_jax.data import raf
from actfer_jax.data.datasets import raf_au
from actfer_jax.data.sources import DataError, emotion_labels, open_source, read_named_set
from actfer_jax.evaluation.run import EvaluateConfig
from configs.eval import raf_au as eval_raf_au

EMOTIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger")
# What the rows of the fixture say, read by eye.
AUS = {
    "0001.jpg": ({1, 2, 12, 25}, {"sides": {"AU12": "L"}}),
    "0002.jpg": (set(), {}),
    "0003.jpg": ({4}, {}),
    "0004.jpg": ({12, 18}, {"sides": {"AU12": "LR", "AU18": "BL"}}),
    "0005.jpg": ({23, 26}, {"sides": {"AU23": "T"}}),
    "0006.jpg": ({5, 19, 25}, {}),
    "0009.jpg": ({9, 17}, {"other_aus": [36]}),
}


def grey(sample) -> int:
    return int(sample.images[0][0, 0, 0])


# RAF-AU


def test_action_units_are_merged_over_sides_which_are_kept(tmp_path):
    given = write_raf_au(tmp_path)
    samples = samples_of("raf_au", **given)
    assert {name: (sample.reference.aus, sample.reference.extra) for name, sample in samples.items()} == AUS
    for index, (stem, _) in enumerate(RAF_AU_ROWS):
        reference = samples[f"{stem}.jpg"].reference
        assert (reference.known_aus, reference.emotion, reference.labels) == (None, None, ()) and reference.has_aus
        assert abs(grey(samples[f"{stem}.jpg"]) - 10 * index) < 3
    originals = samples_of("raf_au", pictures="original", **given)
    assert abs(grey(originals["0004.jpg"]) - 35) < 3 and originals["0004.jpg"].images[0].shape == (120, 120, 3)
    report = report_of("raf_au", **given)
    assert report["official"] == {"all": {"expected": 4601, "found": 7}} and report["unreadable"] == 0
    assert report["aus"]["records"] == {"people": 7} and report["aus"]["rates"]["AU12"] == {"known": 7, "present": 2}
    assert problems_of("raf_au", **given) == [
        ("RAFAU_label.txt", 5, "1 rows from here on have a code twice; it counts once"),
        (
            "RAFAU_label.txt",
            7,
            "1 rows from here on have AU36, which the package's table lacks; only in reference.extra",
        ),
    ]


def test_emotions_come_from_raf_ml_where_it_is_given(tmp_path):
    given = write_raf_au(tmp_path / "RAF-AU") | {"raf_ml": write_raf_ml(tmp_path / "RAF-ML")["directory"]}
    samples = samples_of("raf_au", **given)
    names = ("surprise", "disgust", "disgust", "happiness", "sadness", "fear", None)
    assert tuple(samples[f"{stem}.jpg"].reference.emotion for stem, _ in RAF_AU_ROWS) == names
    assert emotion_labels(config_of("raf_au", **given)) == EMOTIONS == samples["0001.jpg"].reference.labels
    assert samples["0001.jpg"].reference.extra["distribution"] == dict(
        zip(EMOTIONS, RAF_ML_SHARES["0001"], strict=True)
    )
    assert {name: sample.reference.aus for name, sample in samples.items()} == {name: AUS[name][0] for name in AUS}
    file, lacks = "../RAF-ML/EmoLabel/distribution.txt", "rows from here on name a picture that"
    tied = "1 rows from here on have more than one emotion with the largest share; the first of them counts"
    assert problems_of("raf_au", **given)[2:] == [
        (file, 3, tied),
        ("RAFAU_label.txt", 7, f"1 {lacks} {file} lacks; they have no emotion"),
    ]
    official = report_of("raf_au", **given)["official"]
    assert official["all/disgust"] == {"expected": 1073, "found": 2}
    assert sum(official[f"all/{name}"]["expected"] for name in EMOTIONS) == official["all"]["expected"] == 4601
    with pytest.raises(DataError, match=r"no .*nothing/EmoLabel/distribution.txt; give the folder of RAF-ML"):
        samples_of("raf_au", **given | {"raf_ml": str(tmp_path / "nothing")})


def test_a_seed_divides_raf_au(tmp_path):
    given = write_raf_au(tmp_path)
    stems = [f"{number:04d}" for number in range(1, 201)]
    put(tmp_path / "RAFAU_label.txt", "".join(f"{stem}.jpg 4\n" for stem in stems))

    def parts(**keys):
        records = raf_au.inventory(config_of("raf_au", **given | keys)).records
        assert [record.name for record in records] == [f"{stem}.jpg" for stem in stems]
        return {split: {one.name for one in records if one.split == split} for split in ("train", "validation", "test")}

    assert {split: len(names) for split, names in parts().items()} == {"train": 140, "validation": 20, "test": 40}
    assert parts() == parts() and parts()["test"] != parts(split_seed=1)["test"]
    assert len(parts(test_share=0.5, validation_share=0.0)["test"]) == 100
    with pytest.raises(ConfigError, match=r"data\.test_share is 0\.95; with validation_share it must be at most 1"):
        config_of("raf_au", **given | {"test_share": 0.95})


def test_the_config_of_raf_au_shows_every_key_and_takes_all_pictures(tmp_path):
    raw = eval_raf_au.get_config()
    raw.data.directory = write_raf_au(tmp_path)["directory"]
    config = read_config(raw, EvaluateConfig, "config")
    default = raf_au.Config(name="raf_au", split="all", directory=str(tmp_path))
    assert config.data == default and config.benchmark.name == "raf_au" and len(open_source(config.data)) == 7
    assert {one.name for one in fields(raf_au.Config)} - {*raw.data} == {"annotations", "exclude", "min_fit"}


@given(st.data())
def test_codes_are_read_however_they_are_written(data):
    aus, sides, words = set(), {}, []
    for au in data.draw(st.lists(st.sampled_from((1, 2, 4, 12, 26)), min_size=1, unique=True)):
        side = data.draw(st.sampled_from(("", "L", "R", "T", "B", "BL")))
        number = data.draw(st.sampled_from((f"{au}", f"{au:02d}", f"AU{au}")))
        words.append(data.draw(st.sampled_from((side + number, number + side, (side + number).lower()))))
        aus.add(au)
        sides |= {f"AU{au}": side} if side else {}
    row = raf.Row(1, data.draw(st.sampled_from(("+", ", "))).join(words).split())
    problems = []
    (coded,) = raf.read_codes(raf.PictureList("list", {"0001": row}), problems).values()
    assert coded == (aus, {"sides": sides} if sides else {}) and not problems


def test_odd_rows_are_named_and_left_out(tmp_path):
    given = write_raf_au(tmp_path)
    rows = [
        "0001.jpg 4+x",
        "0002.jpg",
        "0001.jpg 4",
        "D:\\RAF\\0003_aligned.jpg 4",
        "",
        "0003.jpg 5",
        "0004.png 6",
        "0005.jpg +",
        "0006.jpg null+1",
    ]
    put(tmp_path / "RAFAU_label.txt", "\ufeff" + "\r\n".join(rows))
    assert {name: sample.reference.aus for name, sample in samples_of("raf_au", **given).items()} == {"0003.jpg": {4}}
    not_codes, no_name = (
        "for action units, not codes as in 1+L12; left out",
        "not the name of a picture and more; left out",
    )
    assert [(line, what) for file, line, what in problems_of("raf_au", **given) if file == "RAFAU_label.txt"] == [
        (2, f"is '0002.jpg', {no_name}"),
        (3, "0001.jpg is in line 1 already; left out"),
        (6, "0003.jpg is in line 4 already; left out"),
        (7, f"is '0004.png 6', {no_name}"),
        (1, f"has '4+x' {not_codes}"),
        (8, f"has '+' {not_codes}"),
        (9, f"has 'null+1' {not_codes}"),
    ]
    unused = [file for file, _, what in problems_of("raf_au", **given) if what == "no row names it; not used"]
    assert unused == [f"aligned/{stem}_aligned.jpg" for stem, _ in RAF_AU_ROWS if stem != "0003"]


@pytest.mark.parametrize(
    ("name", "write", "file"),
    [
        ("raf_au", write_raf_au, "RAFAU_label.txt"),
        ("raf_ml", write_raf_ml, "EmoLabel/partition_label.txt"),
        ("raf_ce", write_raf_ce, "RAFCE_AUlabel.txt"),
    ],
)
def test_a_list_that_is_none_is_called_what_it_is(tmp_path, name, write, file):
    given = write(tmp_path)
    put(tmp_path / file, "<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(DataError, match=f"{file}: a web page"):
        samples_of(name, **given)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=rf"there is no .*{file}; give the folder of RAF-(AU|ML|CE)"):
        samples_of(name, **given)


# RAF-ML


def test_raf_ml_has_the_emotion_that_most_saw_and_all_shares(tmp_path):
    given = write_raf_ml(tmp_path)
    samples = samples_of("raf_ml", split="all", **given)
    names = ("surprise", "disgust", "disgust", "happiness", "sadness", "fear", "anger")
    assert tuple(samples[f"{stem}.jpg"].reference.emotion for stem in RAF_ML_SHARES) == names
    reference = samples["0003.jpg"].reference
    assert reference.labels == EMOTIONS and not reference.has_aus
    assert reference.extra == {
        "distribution": {"surprise": 0.0, "fear": 0.0, "disgust": 0.4, "happiness": 0.0, "sadness": 0.2, "anger": 0.4},
        "labels": ["disgust", "anger"],
    }
    report = report_of("raf_ml", **given)
    assert report["splits"] == {"test": 1, "train": 6} and list(samples_of("raf_ml", split="test", **given)) == [
        "0007.jpg"
    ]
    assert {part: count["expected"] for part, count in report["official"].items()} == {
        "all": 4908, "train": 3926, "test": 982,
    }  # fmt: skip
    tied = "1 rows from here on have more than one emotion with the largest share; the first of them counts"
    assert report["problems"] == [{"file": "EmoLabel/distribution.txt", "line": 3, "what": tied}]


def test_odd_lists_of_raf_ml_are_named(tmp_path):
    given = write_raf_ml(tmp_path) | {"split": "all"}
    for stem in ("0001", "0004", "0009"):  # An archive of the aligned pictures, unpacked into a folder of its name.
        put(tmp_path / f"Image/aligned/aligned/{stem}_aligned.jpg", picture(200 + int(stem)))
    shares = ("0001.jpg 0 0 0 0 0 0", "0002.jpg 0 1 nan 0 0 0", "0003.jpg 1 0 0")
    shares += ("0004.jpg 0 0 1 0 0 0", "0009.jpg 1 0 0 0 0 0")
    put(tmp_path / "EmoLabel/distribution.txt", "\n".join(shares))
    parts = zip((4, 1, 2, 3, 5, 6), (2, 0, 0, 0, 0, 1), strict=True)
    put(tmp_path / "EmoLabel/partition_label.txt", "".join(f"{number:04d}.jpg {part}\n" for number, part in parts))
    put(tmp_path / "EmoLabel/multilabel.txt", "0004.jpg 3\n0009.jpg 1 0 0 0 0 1\n")
    samples = samples_of("raf_ml", **given)
    assert {name: (grey(sample), sample.reference.emotion) for name, sample in samples.items()} == {
        "0004.jpg": (204, "disgust"), "0009.jpg": (209, "surprise"),
    }  # fmt: skip
    assert samples["0009.jpg"].reference.extra["labels"] == ["surprise", "anger"]
    report = report_of("raf_ml", **given)
    assert report["splits"] == {"all": 2}
    none, lacks = "not 6 shares of emotions; left out", "rows from here on name a picture that EmoLabel"
    assert [(problem["file"], problem["line"], problem["what"]) for problem in report["problems"]] == [
        ("EmoLabel/distribution.txt", 1, f"is '0 0 0 0 0 0', {none}"),
        ("EmoLabel/distribution.txt", 2, f"is '0 1 nan 0 0 0', {none}"),
        ("EmoLabel/distribution.txt", 3, f"is '1 0 0', {none}"),
        ("EmoLabel/partition_label.txt", 1, "the part is '2', of 0 to 1; left out"),
        ("EmoLabel/distribution.txt", 5, f"1 {lacks}/partition_label.txt lacks; they are in the split 'all' only"),
        ("EmoLabel/partition_label.txt", 5, f"2 {lacks}/distribution.txt lacks; not used"),
        ("EmoLabel/multilabel.txt", 1, "is '3', not 6 times 0 or 1; left out of reference.extra"),
        ("Image/aligned/aligned/0001_aligned.jpg", None, "no row names it; not used"),
    ]


# RAF-CE


def test_raf_ce_has_emotions_and_action_units(tmp_path):
    given = write_raf_ce(tmp_path) | {"split": "all"}
    samples = samples_of("raf_ce", **given)
    assert {name: (sample.reference.emotion, sample.reference.aus) for name, sample in samples.items()} == {
        "0001.jpg": ("fearfully surprised", {1, 2, 25}),
        "0004.jpg": ("happily surprised", {12}),
        "0005.jpg": ("sadly disgusted", set()),
        "0006.jpg": ("happily sad", {6, 16}),
    }
    assert samples["0001.jpg"].reference.extra == {"sides": {"AU2": "T"}}
    assert samples["0006.jpg"].reference.extra == {"sides": {"AU16": "B", "AU6": "L"}}
    assert len(set(emotion_labels(config_of("raf_ce", **given)))) == 14
    report = report_of("raf_ce", **given)
    assert report["splits"] == {"test": 1, "train": 3} and report["problems"] == []
    assert report["official"]["all"] == {"expected": 4549, "found": 4}
    assert report["official"]["test/happily sad"] == {"expected": 8, "found": 1}
    as_another = read_named_set(f"raf_ce:{tmp_path},partition=('validation','train','test')").config.partition
    other = report_of("raf_ce", partition=as_another, **given)
    assert other["splits"] == {"train": 1, "validation": 3} and list(other["official"]) == ["all"]
    with pytest.raises(ConfigError, match=r"data\.partition is .*; it must have train, test, validation, in any order"):
        config_of("raf_ce", partition=("train", "test", "test"), **given)


def test_lists_of_raf_ce_that_differ_are_joined_by_name(tmp_path):
    given = write_raf_ce(tmp_path) | {"split": "all"}
    put(tmp_path / "RAFCE_partition.txt", "0006.jpg 2\n0001.jpg 3\n0005.jpg 1\n0008.jpg 0\n")
    put(tmp_path / "RAFCE_AUlabel.txt", "0005.jpg 4\n0004.jpg 6+12\n0001.jpg ?\n")
    samples = samples_of("raf_ce", **given)
    aus = {name: sample.reference.aus for name, sample in samples.items()}
    assert aus == {"0001.jpg": None, "0004.jpg": {6, 12}, "0005.jpg": {4}, "0006.jpg": None}
    report = report_of("raf_ce", **given)
    assert report["splits"] == {"all": 2, "test": 1, "validation": 1}
    lacks = "1 rows from here on name a picture that RAFCE_"
    assert [tuple(problem.values()) for problem in report["problems"]] == [
        ("RAFCE_partition.txt", 2, "the part is '3', of 0 to 2; left out"),
        ("RAFCE_AUlabel.txt", 3, "has '?' for action units, not codes as in 1+L12; left out"),
        ("RAFCE_emolabel.txt", 2, f"{lacks}partition.txt lacks; they are in the split 'all' only"),
        ("RAFCE_emolabel.txt", 4, f"{lacks}AUlabel.txt lacks; their action units are not known"),
        ("RAFCE_partition.txt", 4, f"{lacks}emolabel.txt lacks; not used"),
    ]
