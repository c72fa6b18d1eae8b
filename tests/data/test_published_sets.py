"""FER2013 and FER+, AffectNet, SFEW and FERBench's questions: what is read from each layout, and what is said of it."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import (
    FER_HEADER,
    FER_ROWS,
    FERBENCH_LABELS,
    config_of,
    encoded,
    noise,
    problems_of,
    put,
    report_of,
    samples_of,
    write_affectnet,
    write_affectnet_later,
    write_affectnet_plus,
    write_fer_plus,
    write_fer_plus_folders,
    write_ferbench,
    write_sfew,
)
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from actfer_jax.config import ConfigError, read_config
from actfer_jax.data import synth_faces
from actfer_jax.data.datasets import fer_plus
from actfer_jax.data.datasets.ferbench import SUBSETS
from actfer_jax.data.sources import DataError, emotion_labels, open_source
from actfer_jax.episodes.store import read_episodes
from actfer_jax.evaluation import ferbench as scoring
from actfer_jax.evaluation.run import EvaluateConfig, evaluate
from configs.eval import ferbench as eval_ferbench

PAGE = "<!DOCTYPE html><title>Sign in</title>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"


def emotions_of(name, **keys):
    return {name: sample.reference.emotion for name, sample in samples_of(name, **keys).items()}


def shows(sample, pixels):
    return np.array_equal(sample.images[0], np.broadcast_to(pixels[..., None], (*pixels.shape, 3)))


# FER2013 and FER+


def test_fer2013_is_read_from_its_table(tmp_path):
    given = write_fer_plus(tmp_path) | {"labels": "fer2013"}
    (tmp_path / "fer2013new.csv").unlink()
    samples = samples_of("fer_plus", **given)
    codes = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert emotion_labels(config_of("fer_plus", **given)) == codes
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        f"line_{index + 2:05d}": codes[code]
        for index, (usage, code, _, _) in enumerate(FER_ROWS)
        if usage == "Training"
    }
    assert all(shows(samples[f"line_{index + 2:05d}"], noise(index)) for index in range(8))
    table = (tmp_path / "fer2013.csv").read_text().splitlines()
    put(tmp_path / "fer2013.csv", "\n".join([*table, table[2].replace("Training", "PrivateTest")]))
    report = report_of("fer_plus", **given)
    assert report["splits"] == {"test": 2, "train": 8, "validation": 1} and report["unreadable"] == 0
    assert report["official"]["train"] == {"expected": 28709, "found": 8}
    assert report["official"]["test/happy"] == {"expected": 879, "found": 1}
    what = "the same picture as fer2013.csv, line 3, which is of the class happy and the split train"
    assert report["problems"] == [{"file": "fer2013.csv", "line": 12, "what": what}]
    counts = fer_plus.OFFICIAL["fer2013"]
    assert sum(counts[split] for split in ("train", "validation", "test")) == 35887


@pytest.mark.parametrize("write", [write_fer_plus, write_fer_plus_folders])
def test_votes_of_fer_plus_are_labels_by_either_rule(tmp_path, write):
    given, folder = write(tmp_path), "" if write is write_fer_plus else "FER2013Train/"
    labels = {folder + "fer0000001.png": "happiness", folder + "fer0000002.png": "sadness"}
    labels |= {folder + "fer0000006.png": "contempt"}
    samples = samples_of("fer_plus", **given)
    assert {name: sample.reference.emotion for name, sample in samples.items()} == labels
    assert shows(samples[folder + "fer0000002.png"], noise(3))
    assert samples[folder + "fer0000001.png"].reference.extra == {"votes": {"happiness": 8, "surprise": 1}}
    equal = dict.fromkeys((folder + f"fer000000{number}.png" for number in (0, 3, 5)), "neutral")
    assert emotions_of("fer_plus", labels="most_votes", **given) == labels | equal
    (test,) = samples_of("fer_plus", split="test", **given).values()
    assert test.reference.emotion == "surprise" and shows(test, noise(9))
    file = "FER2013Train/label.csv" if folder else "fer2013new.csv"
    unnamed = [] if folder else [(file, 4, "1 rows from here on have no name of a picture: FER+ has thrown them out")]
    assert [(file, line, what.removesuffix("; left out")) for file, line, what in problems_of("fer_plus", **given)] == [
        (file, 1 if folder else 2, "4 rows from here on have no majority of votes"),
        *unnamed,
    ]


@given(st.lists(st.integers(0, 10), min_size=10, max_size=10))
def test_a_majority_is_more_votes_than_all_others_that_count(counts):
    alone = [
        name
        for index, name in enumerate(fer_plus.FER_PLUS)
        if counts[index] > 1
        and counts[index] > sum(count for other, count in enumerate(counts) if other != index and count != 1)
    ]
    assert fer_plus.majority(counts) == (alone[0] if alone else None) and len(alone) <= 1


def test_copies_of_fer2013_as_people_pass_them_on(tmp_path):
    given = {"directory": str(tmp_path), "labels": "fer2013"}
    texts = [" ".join(map(str, noise(number).ravel())) for number in range(4)]
    rows = [f"{texts[0]},Training,Happy", f"{texts[1]},Training,joy", f"{texts[2]},Training,sleepy"]
    rows += [f"{texts[3]},Holdout,Sad", f"{texts[3].rsplit(' ', 1)[0]} 256,Training,Sad", texts[3][:4000]]
    put(tmp_path / "fer2013.csv", "\n".join([" pixels, Usage, emotion", *rows]))
    assert emotions_of("fer_plus", **given) == {"line_00002": "happy", "line_00003": "happy"}
    problems = problems_of("fer_plus", **given)
    assert [(line, what.partition(";")[0]) for _, line, what in problems] == [
        (4, "the emotion is 'sleepy', not one of 0 to 6"),
        (5, "the Usage is 'Holdout', not Training, PublicTest or PrivateTest"),
        (6, "has 2304 pixels, not 48 x 48 numbers from 0 to 255"),
        (7, "the row is cut: it has 1 cells of 3"),
    ]


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("fer2013.csv", PAGE, "fer2013.csv: a web page"),
        ("fer2013.csv", POINTER, "fer2013.csv: a pointer of Git LFS"),
        ("fer2013.csv", "../../fer2013.csv", "fer2013.csv: the path of another file"),
        ("fer2013.csv", "emotion,image\n0,1.png\n", "fer2013.csv, line 1: there is no column pixels"),
        ("fer2013new.csv", PAGE, "fer2013new.csv: a web page"),
        ("fer2013new.csv", "Usage,Image name\nTraining,a.png\n", "fer2013new.csv, line 1: the columns must be Usage"),
        ("fer2013new.csv", f"{FER_HEADER}\nTraining,a.png,1,2\n", "new.csv, line 2: the row does not have ten counts"),
        ("fer2013new.csv", f"{FER_HEADER}\nPublicTest,a.png{',1' * 10}\n", "line 2: the Usage is 'PublicTest', and"),
        ("fer2013new.csv", None, "fer2013new.csv cannot be read"),
    ],
)
def test_another_file_under_a_name_of_fer2013_is_called_what_it_is(tmp_path, file, content, what):
    given = write_fer_plus(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        put(tmp_path / file, content)
    with pytest.raises(DataError, match=what):
        open_source(config_of("fer_plus", **given))


def test_tables_of_different_length_are_read_as_far_as_both_go(tmp_path):
    given = write_fer_plus(tmp_path)
    table = (tmp_path / "fer2013.csv").read_text().splitlines()
    put(tmp_path / "fer2013.csv", "\n".join(table[:5]))
    assert len(samples_of("fer_plus", **given)) == 2
    what = "has 10 rows, and fer2013.csv 4; what follows the first 4 is left out"
    assert ("fer2013new.csv", None, what) in problems_of("fer_plus", **given)


def test_folders_of_fer_plus_have_rows_and_pictures_that_belong_together(tmp_path):
    given = write_fer_plus_folders(tmp_path)
    put(tmp_path / "FER2013Train/more.png", encoded(noise(1)))
    (tmp_path / "FER2013Train/fer0000002.png").unlink()
    table = (tmp_path / "FER2013Valid/label.csv").read_text()
    put(tmp_path / "FER2013Valid/label.csv", table + table)
    (tmp_path / "FER2013Test/label.csv").unlink()
    found = {(file, line): what for file, line, what in problems_of("fer_plus", **given)}
    assert found[("FER2013Train/more.png", None)] == "no row names it; not used"
    assert found[("FER2013Train/fer0000002.png", None)] == "cannot be read (No such file or directory)"
    assert found[("FER2013Valid/label.csv", 2)] == "fer0000007.png is in line 1 already; left out"
    assert found[("FER2013Test", None)] == "has no label.csv; there is no test part"
    with pytest.raises(DataError, match="has no fer2013.csv, which has the labels of FER2013"):
        open_source(config_of("fer_plus", labels="fer2013", **given))
    with pytest.raises(DataError, match=r"neither fer2013.csv nor FER2013Train/label.csv"):
        open_source(config_of("fer_plus", directory=str(tmp_path / "FER2013Train")))


# AffectNet


def test_the_first_affectnet_is_read_from_its_tables(tmp_path):
    given = write_affectnet(tmp_path)
    samples = samples_of("affectnet", **given)
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        "103/a.jpg": "neutral",
        "103/b.JPG": "happiness",
        "9/c.jpeg": "contempt",
        "9/d.png": "anger",
    }
    assert samples["103/b.JPG"].reference.extra == {"valence": 0.75, "arousal": 0.25, "face": [10, 20, 90, 90]}
    assert samples["9/d.png"].reference.extra == {"valence": -0.6, "arousal": 0.7} and shows(
        samples["9/d.png"], noise(3, 40, 30)
    )
    assert emotions_of("affectnet", split="validation", **given) == {"1/h.jpg": "sadness"}
    assert problems_of("affectnet", **given) == [
        ("training.csv", 5, "1 rows from here on have a face_width or face_height below 1: their faces are not known"),
        *(
            ("training.csv", line, f"1 rows from here on have the expression {word}; left out")
            for line, word in ((6, "none"), (7, "uncertain"), (8, "non-face"))
        ),
        ("validation.csv", 2, "1 rows from here on have the expression non-face; left out"),
    ]
    report = report_of("affectnet", classes=7, **given)
    assert "contempt" not in report["classes"] and report["splits"] == {"train": 3, "validation": 1}
    assert report["official"]["validation"] == {"expected": 3500, "found": 1}
    assert report["official"]["train"]["expected"] == 283901
    assert report_of("affectnet", **given)["official"]["train"]["expected"] == 287651


def test_rows_of_affectnet_that_cannot_be_used_are_named(tmp_path):
    given = write_affectnet(tmp_path)
    table = (tmp_path / "training.csv").read_text().rstrip("\n").splitlines()
    more = [table[1], table[2].replace("b.JPG", "z.jpg").replace(",1,0.75", ",11,0.75"), table[3][:300]]
    put(tmp_path / "Manually_Annotated_file_lists/training.csv", "\n".join(table + more))
    assert [what for _, line, what in problems_of("affectnet", **given) if line and line > 8] == [
        "103/a.jpg is in line 2 already; left out",
        "the expression is 11, not one of 0 to 10; left out",
        "has 6 cells, not 9: the row is cut; left out",
    ]
    assert problems_of("affectnet", **given)[-1] == (
        "validation.csv",
        None,
        "is not there; there is no validation part",
    )
    for content, what in ((PAGE, "a web page"), ("name,label\na.jpg,1\n", "line 1: has 2 cells, not the 9")):
        put(tmp_path / "Manually_Annotated_file_lists/training.csv", content)
        with pytest.raises(DataError, match=f"training.csv.*{what}"):
            open_source(config_of("affectnet", **given))
    with pytest.raises(DataError, match=r"no .*/train_set; data.release says which release of AffectNet"):
        open_source(config_of("affectnet", release="later", **given))


def test_the_later_affectnet_has_values_as_texts_and_numbers(tmp_path):
    given = write_affectnet_later(tmp_path)
    samples = samples_of("affectnet", **given)
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        f"train_set/images/{index}.jpg": label
        for index, label in enumerate(("neutral", "happiness", "contempt", "fear"))
    }
    found = samples["train_set/images/2.jpg"]
    assert found.reference.extra == {"valence": pytest.approx(0.7), "arousal": pytest.approx(-0.35)}
    with Image.open(tmp_path / "train_set/images/2.jpg") as picture:
        assert shows(found, np.asarray(picture))
    assert len(samples_of("affectnet", classes=7, **given)) == 3
    assert emotions_of("affectnet", split="validation", **given) == {"val_set/images/0.jpg": "sadness"}
    data = io.BytesIO()
    np.save(data, np.array([{"a": 1}], object), allow_pickle=True)
    put(tmp_path / "train_set/annotations/1_exp.npy", data.getvalue())
    put(tmp_path / "train_set/annotations/2_exp.npy", PAGE)
    (tmp_path / "train_set/annotations/3_aro.npy").unlink()
    put(tmp_path / "train_set/images/9.jpg", encoded(noise(1), "JPEG"))
    problems = {file: what for file, _, what in problems_of("affectnet", **given)}
    assert "1_exp.npy holds no number (Object arrays cannot be loaded" in problems["train_set/annotations/1_exp.npy"]
    assert "2_exp.npy holds no number" in problems["train_set/annotations/2_exp.npy"]
    assert "3_aro.npy holds no number (No such file or" in problems["train_set/annotations/3_exp.npy"]
    assert problems["train_set/images/9.jpg"] == "has no annotation; not used"
    assert len(problems) == 4 and len(samples_of("affectnet", **given)) == 1


def test_affectnet_plus_says_who_is_shown_and_how_difficult_it_is(tmp_path):
    given = write_affectnet_plus(tmp_path)
    samples = samples_of("affectnet", **given)
    at = "human_annotated/train_set/images"
    assert {name: (sample.reference.emotion, sample.reference.strata) for name, sample in samples.items()} == {
        f"{at}/0.jpg": ("happiness", ("easy", "female", "latino_hispanic", "age_20-39")),
        f"{at}/1.jpg": ("contempt", ("challenging", "male", "white", "age_70_and_over")),
        f"{at}/3.jpg": ("disgust", ("difficult", "male", "white", "age_0-3")),
    }
    extra = samples[f"{at}/0.jpg"].reference.extra
    assert extra["valence"] == 0.5 and "arousal" not in extra and sum(extra["soft_label"].values()) == 1
    (other,) = samples_of("affectnet", split="validation", **given).values()
    assert (other.reference.emotion, other.reference.strata) == ("neutral", ("challenging", "female"))
    annotations = "human_annotated/train_set/annotations"
    put(tmp_path / annotations / "1.json", PAGE)
    put(tmp_path / annotations / "3.json", json.dumps({"human-label": 3, "subset": 4}))
    put(tmp_path / annotations / "4.json", json.dumps({"human-label": 3}))
    put(tmp_path / annotations / "0.json", json.dumps({"soft-label": [1]}))
    put(tmp_path / at / "7.jpg", encoded(noise(7), "JPEG"))
    assert [
        (file.rpartition("/")[2], what.partition(";")[0]) for file, _, what in problems_of("affectnet", **given)
    ] == [
        ("0.json", "has no 'humanlabel'"),
        ("1.json", "a web page that was saved under this name"),
        ("3.json", "the subset is 4, not one of 0 to 2"),
        ("4.json", "0 pictures have its name"),
        ("train_set", "1 pictures have the expression uncertain"),
        ("7.jpg", "has no annotation"),
    ]


# SFEW


@pytest.mark.parametrize(
    "validation",
    ["Val/Val_Aligned_Faces", "Val/Val_Aligned_Faces_new", "Val_Aligned_Faces_new/Val_Aligned_Faces"],
)
def test_sfew_is_read_from_every_folder_that_its_archives_leave(tmp_path, validation):
    given = write_sfew(tmp_path, validation)
    samples = samples_of("sfew", split="validation", **given)
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        f"{validation}/Sad/d.png": "sad",
        f"{validation}/Fear/e.png": "fear",
    }
    assert shows(samples[f"{validation}/Fear/e.png"], noise(101, 181, 143))
    put(tmp_path / "Train/Train_Aligned_Faces/Angry/notes.txt", "x")
    put(tmp_path / "Train/Train_Aligned_Faces/Bored/g.png", encoded(noise(1)))
    put(tmp_path / "Train/Train_Aligned_Faces/Happy/a_2.png", PAGE)
    report = report_of("sfew", **given)
    assert report["splits"] == {"train": 4, "validation": 2}
    assert report["official"]["validation"] == {"expected": 431, "found": 2}
    at = "Train/Train_Aligned_Faces"
    assert [(problem["file"], problem["what"].partition(";")[0]) for problem in report["problems"]] == [
        (f"{at}/Angry/notes.txt", "is no .png"),
        (f"{at}/Bored", "is none of the classes angry, disgust, fear, happy, neutral, sad, surprise"),
        ("Test", "the test part has no labels"),
        (f"{at}/Happy/a_2.png", "a web page that was saved under this name"),
    ]
    with pytest.raises(ConfigError, match="split is 'test'; it must be one of train, validation"):
        config_of("sfew", split="test", **given)
    with pytest.raises(DataError, match="there is no .*Train_Aligned_Faces, and nothing of Val"):
        open_source(config_of("sfew", directory=str(tmp_path / "Train/Train_Aligned_Faces")))


def test_of_two_validation_parts_of_sfew_one_is_read_and_the_other_named(tmp_path):
    write_sfew(tmp_path)
    given = write_sfew(tmp_path, "Val/Val_Aligned_Faces_new")
    assert len(samples_of("sfew", split="validation", **given)) == 2
    what = "not used, beside Val/Val_Aligned_Faces: give only one"
    assert ("Val/Val_Aligned_Faces_new", None, what) in problems_of("sfew", **given)


# FERBench


def test_questions_of_ferbench_have_labels_and_a_stratum_each(tmp_path):
    given = write_ferbench(tmp_path)
    samples = samples_of("ferbench", **given)
    assert Counter((one.reference.strata, one.reference.labels) for one in samples.values()) == {
        ((subset,), labels): 2 for subset, labels in FERBENCH_LABELS.items()
    }
    happy = samples["SFEW-2.0/Val/Val_Aligned_Faces/happy/Bad_1.png"]
    assert happy.reference.emotion == "happy" and shows(happy, noise(31))
    assert emotion_labels(config_of("ferbench", **given)) == (*FERBENCH_LABELS["rafdb"], "contempt")
    report = report_of("ferbench", **given)
    assert report["classes"]["happiness"] == 2 and report["problems"] == []
    assert report["official"]["test"] == {"expected": 11072, "found": 8}
    assert report["official"]["ferplus"] == {"expected": 3573, "found": 2}
    assert report["official"]["sfew_2.0/angry"] == {"expected": 77, "found": 1}
    only = given | {"subsets": ("sfew_2.0",)}
    assert emotion_labels(config_of("ferbench", **only)) == FERBENCH_LABELS["sfew_2.0"]
    assert (
        len(samples_of("ferbench", **only)) == 2
        and report_of("ferbench", **only)["official"]["test"]["expected"] == 431
    )


def test_the_official_questions_are_those_that_are_scored():
    assert {name: (one.size, one.labels) for name, one in scoring.SUBSETS.items()} == {
        subset: (sum(counts.values()), tuple(counts)) for subset, counts in SUBSETS.items()
    }


def test_questions_that_cannot_be_used_are_named(tmp_path):
    given = write_ferbench(tmp_path, each=1) | {"subsets": ("rafdb",)}
    file = tmp_path / "UniFER/eval_rafdb/data/rafdb_qa.json"
    (item,) = json.loads(file.read_text())
    wrong = ({"true_label": "joy"}, {"candidate_labels": None}, {"image_path": "/"})
    put(file, json.dumps([item, item, 5, *(item | change for change in wrong)]))
    assert sorted(samples_of("ferbench", **given)) == [
        "RAF-DB/aligned/test_0_aligned.jpg",
        "RAF-DB/aligned/test_0_aligned.jpg#2",
    ]
    assert [what.partition(";")[0] for _, _, what in problems_of("ferbench", **given)] == [
        "item 2 asks about RAF-DB/aligned/test_0_aligned.jpg again",
        "item 3: is '5', not an object with image_path, true_label and candidate_labels",
        f"item 4: true_label is 'joy', which is none of candidate_labels ({', '.join(FERBENCH_LABELS['rafdb'])})",
        "item 5: candidate_labels is None",
        "item 6: image_path is '/'",
    ]
    put(tmp_path / "images/RAF-DB/aligned/test_0_aligned.jpg", POINTER)
    assert report_of("ferbench", **given)["unreadable"] == 2
    for content, what in (
        (PAGE, "json: a web page"),
        ('[\n{"image_path": "/RA', "json, line 2: this is no JSON"),
        ("{}", "json is no JSON list of questions"),
        (None, "there is no .*UniFER/rafdb_qa.json; data.questions is the folder"),
    ):
        file.unlink()
        if content is not None:
            put(file, content)
        with pytest.raises(DataError, match=what):
            open_source(config_of("ferbench", **given))
    with pytest.raises(ConfigError, match=r"subsets is \('rafdb', 'rafdb'\); it must name each"):
        config_of("ferbench", **given | {"subsets": ("rafdb", "rafdb")})


def ferbench_config(tmp_path, **given):
    config = eval_ferbench.get_config()
    config.data.update(given | {"cache_directory": str(tmp_path / "cache")})
    return read_config(config, EvaluateConfig, "config")


def test_the_config_of_ferbench_plays_all_of_it(tmp_path):
    config = ferbench_config(tmp_path, **write_ferbench(tmp_path, each=3))
    assert len(open_source(config.data)) == 12 and (config.benchmark.name, config.benchmark.protocol) == (
        "ferbench",
        "reference",
    )


@pytest.mark.slow
def test_the_small_policy_answers_questions_of_ferbench(tmp_path):
    given = write_ferbench(tmp_path, each=1)
    for index, path in enumerate(sorted(filter(Path.is_file, (tmp_path / "images").rglob("*")))):
        Image.fromarray(synth_faces.render(synth_faces.face_of("test", index)).image).save(path, "PNG")
    results = evaluate(ferbench_config(tmp_path, **given), "demo", epath.Path(tmp_path / "out"))
    figures, records = results["results"]["normal"], list(read_episodes(tmp_path / "out"))
    assert {name: part["n"] for name, part in figures["subsets"].items()} == dict.fromkeys(FERBENCH_LABELS, 1)
    right = 0
    for record in records:
        (subset,), truth = record["reference"]["strata"], record["reference"]["emotion"]
        labels = record["reference"]["labels"]
        assert tuple(labels) == FERBENCH_LABELS[subset]
        right += scoring.read_answer(record["turns"][-1]["text"], labels, subset, "reference") == truth
    assert len(records) == 4 and figures["overall"]["accuracy"] == right / 4
