"""Data sets of files: what is read from each layout, and what is said about files that are not as they should be."""

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import (
    config_of,
    picture,
    problems_of,
    put,
    report_of,
    samples_of,
    write_folders,
    write_raf_db,
    write_table,
)
from etils import epath
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from PIL import Image

from actfer_jax.config import ConfigError, read_config
from actfer_jax.data import synth_faces
from actfer_jax.data.check import show
from actfer_jax.data.inventory import class_names, split_subjects
from actfer_jax.data.sources import DataError, emotion_labels, open_source
from actfer_jax.episodes.store import read_episodes
from actfer_jax.evaluation.run import EvaluateConfig, evaluate
from actfer_jax.faces.images import ImageError
from configs.eval import folders

ROOT = Path(__file__).parents[2]


# RAF-DB


def test_raf_db_is_read_in_place(tmp_path):
    given = write_raf_db(tmp_path)
    samples = samples_of("raf_db", **given)
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        "train_00001.jpg": "sadness",
        "train_00002.jpg": "happiness",
        "train_00003.jpg": "surprise",
        "train_00004.jpg": "neutral",
    }
    assert samples["train_00003.jpg"].reference.strata == ("gender_unsure", "asian", "age_20-39")
    assert samples["train_00003.jpg"].images[0].shape == (100, 100, 3)
    assert samples["train_00003.jpg"].reference.aus is None
    original = samples_of("raf_db", split="test", pictures="original", **given)
    assert sorted(original) == ["test_0001.jpg", "test_0002.jpg"]
    assert original["test_0001.jpg"].images[0].shape == (130, 130, 3)


def test_a_list_derived_from_raf_dbs_is_read_or_refused(tmp_path):
    given = write_raf_db(tmp_path)
    path = tmp_path / "basic/EmoLabel/list_patition_label.txt"
    foreign = path.read_text().replace("train_", "C:\\faces\\train_").replace("\n", "\r\n")
    path.unlink()
    path = path.with_name("list_partition_label.txt")
    put(path, foreign + "train_00009.png 3\r\ntrain_00001_aligned.jpg 4\r\ntrain_00010.jpg 8")
    assert len(samples_of("raf_db", **given)) == 4
    file = "basic/EmoLabel/list_partition_label.txt"
    assert problems_of("raf_db", **given) == [
        (file, 1, "names are below 'C:\\\\faces\\\\' from here on, which is not looked at"),
        (file, 7, "is 'train_00009.png 3', not a name and a label; left out"),
        (file, 8, "train_00001.jpg is in line 1 already; left out"),
        (file, 9, "the label is 8, of 7; left out"),
    ]
    put(path, "train_00001.jpg 6\ntrain_00002.jpg 0\n")
    with pytest.raises(DataError, match=r"label.txt, line 2: the label is 0, and RAF-DB counts from 1"):
        open_source(config_of("raf_db", **given))


def test_compound_expressions_have_labels_of_their_own(tmp_path):
    put(tmp_path / "compound/EmoLabel/list_patition_label.txt", "train_0001.jpg 11\ntest_0001.jpg 1\n")
    put(tmp_path / "compound/Image/aligned/train_0001_aligned.jpg", picture(3))
    (sample,) = samples_of("raf_db", directory=str(tmp_path), part="compound").values()
    assert sample.reference.emotion == "disgustedly surprised" and len(sample.reference.labels) == 11
    with pytest.raises(DataError, match=r"there is no .*basic/EmoLabel/list_patition_label.txt; .* must hold"):
        open_source(config_of("raf_db", directory=str(tmp_path)))


def test_what_is_wrong_with_a_copy_of_raf_db_is_said_by_file(tmp_path):
    given = write_raf_db(tmp_path)
    aligned = tmp_path / "basic/Image/aligned"
    put(aligned / "test_0001_aligned.jpg", (aligned / "train_00002_aligned.jpg").read_bytes())
    put(aligned / "train_00001_aligned.jpg", "<!DOCTYPE html><title>Sign in</title>")
    put(aligned / "train_00003_aligned.jpg", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    put(aligned / "train_00099_aligned.jpg", picture(99))
    (aligned / "test_0002_aligned.jpg").unlink()
    put(tmp_path / "basic/Annotation/manual/train_00004_manu_attri.txt", "1\t2\n" * 5 + "1\n7\n1\n")
    report = report_of("raf_db", **given)
    assert report["records"] == 6 and report["splits"] == {"test": 2, "train": 4} and report["unreadable"] == 3
    assert report["classes"]["sadness"] == 1 and list(report["classes"])[0] == "surprise"
    assert report["official"]["train"] == {"expected": 12271, "found": 4}
    assert report["official"]["test/fear"] == {"expected": 74, "found": 1}
    at = "basic/Image/aligned/"
    assert [(p["file"].removeprefix(at), p["what"].partition(";")[0]) for p in report["problems"]] == [
        ("basic/Annotation/manual/train_00004_manu_attri.txt", "the race is 7, of 0 to 2"),
        ("train_00001_aligned.jpg", "a web page that was saved under this name"),
        ("train_00003_aligned.jpg", "a pointer of Git LFS, not the file"),
        ("test_0002_aligned.jpg", "cannot be read (No such file or directory)"),
        (
            "test_0001_aligned.jpg",
            f"the same picture as {at}train_00002_aligned.jpg, which is of the class happiness and the split train",
        ),
        ("train_00099_aligned.jpg", "no row names it"),
    ]
    assert "train: 4, officially 12271" in show(report)
    source = open_source(config_of("raf_db", **given))
    read = Counter()
    for index in range(len(source)):
        try:
            read[source[index].name] += 1
        except ImageError as error:
            read[str(error).partition(": ")[2].partition(";")[0]] += 1
    assert read == Counter(
        ["train_00002.jpg", "train_00004.jpg", "a web page that was saved under this name"]
        + ["a pointer of Git LFS, not the file"]
    )


# A folder per class


def test_folders_are_classes_and_may_be_splits(tmp_path):
    given = write_folders(tmp_path)
    assert emotion_labels(config_of("folders", **given)) == ("angry", "happiness", "neutral")
    train = samples_of("folders", **given)
    assert {name: sample.reference.emotion for name, sample in train.items()} == {
        "train/Angry/a.jpg": "angry",
        "train/Angry/b.JPG": "angry",
        "train/happy/c.jfif": "happiness",
        "train/neutral/d.png": "neutral",
    }
    assert sorted(samples_of("folders", split="test", **given)) == ["Test/angry/e.png", "Test/happiness/f.png"]
    assert len(samples_of("folders", split="all", **given)) == 6
    assert problems_of("folders", **given) == [
        ("train/happy", None, "its pictures are read as the class happiness"),
        ("train/neutral/Thumbs.db", None, "does not end like a picture; left out"),
    ]
    with pytest.raises(DataError, match="has no split 'validation'; it has test, train"):
        open_source(config_of("folders", split="validation", **given))
    put(tmp_path / "more/happy/g.png", picture(1, "PNG"))
    with pytest.raises(DataError, match="has the split Test and the class more beside each other"):
        open_source(config_of("folders", **given))


def test_folders_without_splits_are_read_whole(tmp_path):
    for name in ("joy/a.png", "joy/more/b.png", "fear/c.png"):
        put(tmp_path / name, picture(len(name), "PNG"))
    given = {"directory": str(tmp_path)}
    assert sorted(samples_of("folders", split="all", **given)) == ["fear/c.png", "joy/a.png", "joy/more/b.png"]
    with pytest.raises(DataError, match="has no split 'train'; it has none: give data.split=all"):
        open_source(config_of("folders", **given))
    with pytest.raises(DataError, match="data.size is 4, but all has 3 records"):
        open_source(config_of("folders", split="all", size=4, **given))
    with pytest.raises(ConfigError, match=r"^data\.directory is '.*/nowhere', which is no folder on this machine"):
        config_of("folders", directory=str(tmp_path / "nowhere"))


def test_copies_across_classes_are_found(tmp_path):
    for name in ("joy/a.png", "joy/copy.png", "fear/c.png"):
        put(tmp_path / name, picture(1, "PNG"))
    found = problems_of("folders", directory=str(tmp_path), split="all")
    assert found == [
        (name, None, "the same picture as fear/c.png, which is of the class fear")
        for name in ("joy/a.png", "joy/copy.png")
    ]


# A table


def test_a_table_says_what_is_known_and_what_is_not(tmp_path):
    given = write_table(tmp_path)
    references = {name: sample.reference for name, sample in samples_of("table", **given).items()}
    assert emotion_labels(config_of("table", **given)) == ("anger", "fear", "happy")
    one, two, three, four, five = (references[f"p/{number}.png"] for number in range(1, 6))
    assert (one.emotion, one.aus, one.known_aus, one.strata) == ("happy", {6, 12}, None, ("female",))
    assert one.extra == {"sides": {"AU12": "LR"}, "subject": "ann"}
    assert (two.emotion, two.aus, two.known_aus, two.strata) == ("happy", {1, 4}, {1, 4}, ("male", "outdoor"))
    assert two.extra == {"intensities": {"AU4": "C"}, "subject": "bob"}
    assert (three.emotion, three.aus, three.has_aus) == ("fear", None, False)
    assert (four.emotion, four.aus, four.known_aus, four.has_aus) == (None, frozenset(), {1, 2}, True)
    assert five.extra["intensities"] == {"AU4": "D"}
    assert problems_of("table", **given) == []


def test_json_lines_say_the_same_as_a_table(tmp_path):
    given = write_table(tmp_path)
    rows = [
        {"image": "p/1.png", "emotion": "happy", "AU": ["AU6", "au12L", "AU12R"], "subject": "ann", "strata": "female"},
        {"image": "p/2.png", "emotion": "Happy",
         "AU": "AU4C; AU1", "known_aus": [1, 4], "subject": "bob", "strata": ["male", "outdoor"]},
        {"image": "p/3.png", "emotion": "fear", "AU": None, "subject": "cid"},
        {"image": "p/4.png", "AU": [], "known_aus": "AU1 AU2", "subject": "dee", "strata": "female"},
        {"image": "p/5.png", "emotion": "anger", "AU": "AU4D", "subject": "ann"},
    ]  # fmt: skip
    put(tmp_path / "labels.jsonl", "\n".join(map(json.dumps, rows)))
    table, lines = (samples_of("table", file=file, **given) for file in ("labels.csv", "labels.jsonl"))
    assert {name: sample.reference for name, sample in table.items()} == {
        name: sample.reference for name, sample in lines.items()
    }


def test_rows_that_cannot_be_used_are_left_out_and_named(tmp_path, caplog):
    rows = [
        "image,emotion,aus,known_aus,split,subject,strata",
        "1.png,fear,AU1,,train,ann,",
        ",fear,,,train,,",
        "1.png,fear,,,train,,",
        "2.png,,,,train,,",
        "3.png,fear,AU99,,train,,",
        "4.png,fear,AU1,AU2,train,,",
        "5.png,fear,,,holdout,,",
        "6.png,fear,,,train,,a/b",
        "7.png,fear,,,val,ann,",
        '"8.png',
    ]
    put(tmp_path / "labels.csv", "\n".join(rows[:-1]) + "\n8.png,fe")
    for name in ("1", "7"):
        put(tmp_path / f"{name}.png", picture(int(name), "PNG"))
    found = problems_of("table", directory=str(tmp_path))
    assert [line for _, line, _ in found] == [*range(3, 10), 11, None]
    for part, (_, _, what) in zip(
        (
            "image is empty",
            "the image '1.png' is in line 2 already",
            "neither the emotion nor any action unit is known",
            "aus: 'AU99' is not an action unit",
            "aus has AU1, which known_aus lacks",
            "split is 'holdout'; it must be train, validation or test",
            "strata has 'a/b'",
            "has 2 cells, and the header 7; the row is left out: the file is cut short here",
            "the subject ann is in the splits train, validation",
        ),
        found,
        strict=True,
    ):
        assert part in what
    with caplog.at_level(logging.WARNING):
        assert len(open_source(config_of("table", directory=str(tmp_path)))) == 1
    assert "has 8 problems, the first: labels.csv, line 3: image is empty" in caplog.text


def write_parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    """As `datasets` writes it: pictures as bytes and path, classes as numbers, their names in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path, row_group_size=2)


def test_parquet_files_of_the_hub_are_a_table(tmp_path):
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["anger", "fear"], "_type": "ClassLabel"},
        "aus": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
    }
    pictures = [picture(10 * index, "PNG") for index in range(6)]
    put(tmp_path / "data/beside.png", pictures[3])
    rows = [
        {"image": {"bytes": pictures[0], "path": "0.png"}, "label": 1, "aus": ["AU1", "AU4L"]},
        {"image": {"bytes": pictures[1], "path": None}, "label": 0, "aus": []},
        {"image": {"bytes": pictures[2], "path": None}, "label": -1, "aus": ["AU12"]},
        {"image": {"bytes": None, "path": "beside.png"}, "label": 0, "aus": None},
        {"image": {"bytes": b"<html>", "path": None}, "label": 1, "aus": None},
    ]
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", rows, features)
    write_parquet(
        tmp_path / "data/test-00000-of-00001.parquet",
        [{"image": {"bytes": pictures[5], "path": None}, "label": 1, "aus": None}],
        features,
    )
    given = {"directory": str(tmp_path), "file": "data/*.parquet", "columns": {"emotion": "label"}}
    train = "data/train-00000-of-00001.parquet"
    assert problems_of("table", **given) == [
        (train, 5, "a web page that was saved under this name; get the file itself")
    ]
    source = open_source(config_of("table", **given))
    assert len(source) == 5 and emotion_labels(config_of("table", **given)) == ("anger", "fear")
    samples = {}
    for index in range(5):
        try:
            samples[source[index].name] = source[index]
        except ImageError as error:
            assert f"{train}, row 5: a web page" in str(error)
    found = [samples[f"{train}/{line}"] for line in (1, 2, 3, 4)]
    assert [one.reference.emotion for one in found] == ["fear", "anger", None, "anger"]
    assert [one.reference.aus for one in found] == [{1, 4}, frozenset(), {12}, None]
    assert [int(one.images[0][0, 0, 0]) for one in found] == [0, 10, 20, 30]
    assert list(samples_of("table", split="test", **given)) == ["data/test-00000-of-00001.parquet/1"]


def test_another_file_under_the_name_of_a_parquet_file_is_called_what_it_is(tmp_path):
    write_parquet(
        tmp_path / "whole.parquet", [{"picture": b"x", "label": 7}], {"label": {"names": ["a"], "_type": "ClassLabel"}}
    )
    whole = (tmp_path / "whole.parquet").read_bytes()
    for content, keys, what in (
        (b"version https://git-lfs.github.com/spec/v1\n", {}, "a pointer of Git LFS"),
        (b"<!-- 404 --><html>", {}, "a web page"),
        (b"image,label\n", {}, "a text, not a Parquet file"),
        (b"PK\x03\x04", {}, "a ZIP archive"),
        (b"", {}, "an empty file"),
        (whole[:-9], {}, "a Parquet file that is cut short"),
        (whole[:40] + whole[-4:], {}, "cannot be read as Parquet"),
        (whole, {}, "has no column 'image'; it has 'picture', 'label'"),
        (
            whole,
            {"image": "picture", "emotion": "label"},
            "row 1: label is 7, and the file has names for 0 to 0",
        ),
    ):
        put(tmp_path / "labels.parquet", content)
        with pytest.raises(DataError, match=f"labels.parquet.*{what}"):
            open_source(config_of("table", directory=str(tmp_path), file="labels.parquet", split="all", columns=keys))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<html><body>404</body></html>", "a web page that was saved under this name"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS, not the file"),
        (b"../../annotations/labels.csv", "the path of another file"),
        (b"PK\x03\x04rest", "a ZIP archive or an office document"),
        (b"PAR1\x15\0rest", "a Parquet file"),
        ("image,emotion\n".encode("utf-16"), "a text in UTF-16; save it as UTF-8"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document, such as a server's"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old office document; export it as CSV"),
        (picture(1, "PNG"), "a PNG picture, not a text"),
        ("image,emotion\n1.png,mépris\n".encode("latin-1"), "not a text in UTF-8|line 2: not UTF-8"),
        (b"", "an empty file"),
        (None, "data.file is the name of the table"),
        (b"name,label\n1.png,fear\n", "has no column 'image'; it has 'name', 'label': say with data.columns"),
    ],
)
def test_another_file_under_the_name_of_a_table_is_called_what_it_is(tmp_path, content, what):
    if content is not None:
        put(tmp_path / "labels.csv", content)
    with pytest.raises(DataError, match=f"labels.csv.*({what})"):
        open_source(config_of("table", directory=str(tmp_path)))


def test_subjects_without_splits_are_divided_by_the_seed(tmp_path):
    given = write_table(tmp_path) | {"test_share": 0.25, "validation_share": 0.25}
    by_split = {
        split: {
            sample.reference.extra["subject"] for sample in samples_of("table", **given | {"split": split}).values()
        }
        for split in ("train", "validation", "test")
    }
    assert sorted(map(len, by_split.values())) == [1, 1, 2] and len(set.union(*by_split.values())) == 4


@hypothesis_given(
    st.sets(st.text(max_size=4), max_size=30), st.integers(0, 40), st.integers(0, 60), st.integers(0, 2**32 - 1)
)
def test_a_division_of_subjects_depends_on_nothing_but_the_seed(subjects, validation, test, seed):
    divided = split_subjects(subjects, validation / 100, test / 100, seed)
    assert divided == split_subjects(sorted(subjects, reverse=True), validation / 100, test / 100, seed)
    counts = Counter(divided.values())
    assert counts["test"] == round(test / 100 * len(subjects)) and set(divided) == subjects
    assert abs(counts["validation"] - validation / 100 * len(subjects)) <= 1


def test_words_of_one_emotion_are_one_class():
    assert class_names({"Happy", "happiness", "ANGRY", "awe"}) == {
        "Happy": "happiness",
        "happiness": "happiness",
        "ANGRY": "angry",
        "awe": "awe",
    }


# The command


def test_check_as_a_command_writes_what_it_found(tmp_path):
    write_raf_db(tmp_path / "raf")
    report = tmp_path / "report.json"
    command = (sys.executable, "-m", "actfer_jax.data.check")
    arguments = ("raf_db", f"--data_dir={tmp_path}/raf", "--set=pictures=original", f"--json={report}")
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert set(written) == {"records", "splits", "classes", "unreadable", "official", "copies", "problems"}
    assert written["records"] == 6 and written["unreadable"] == 0 and written["problems"] == []
    assert "records     6 (test 2, train 4)" in done.stdout and "6/6 pictures" in done.stderr


@pytest.mark.slow
def test_the_small_policy_is_evaluated_on_a_folder_of_ones_own_pictures(tmp_path):
    for index in (0, 1):
        face = synth_faces.face_of("test", index)
        put(tmp_path / f"faces/{face.emotion}/{index}.png", b"")
        Image.fromarray(synth_faces.render(face).image).save(tmp_path / f"faces/{face.emotion}/{index}.png")
    config = folders.get_config()
    config.controls = ()
    config.data.directory, config.data.cache_directory = str(tmp_path / "faces"), str(tmp_path / "cache")
    results = evaluate(read_config(config, EvaluateConfig, "config"), "demo", epath.Path(tmp_path / "out"))
    figures = results["results"]["normal"]
    assert figures["episodes"] == 2 and figures["accuracy"]["value"] in (0.0, 0.5, 1.0)
    names = {record["id"] for record in read_episodes(tmp_path / "out")}
    assert len(names) == 2 and all(name.startswith("normal/folders/") for name in names)
