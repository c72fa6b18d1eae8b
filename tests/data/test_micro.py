"""Data sets of micro-expressions: what is read from each layout, as onset and apex, and what is said of it."""

import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from data_fixtures import (
    CASME2_ROWS,
    SAMM_ROWS,
    config_of,
    frame,
    problems_of,
    put,
    report_of,
    samples_of,
    write_casme2,
    write_casme3,
    write_dfme,
    write_four_dme,
    write_mmew,
    write_samm,
    write_smic,
    write_workbook,
)

from actfer_jax import facs
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.datasets import casme2, samm, smic
from actfer_jax.data.micro import COMPOSITE
from actfer_jax.data.sources import DataError, emotion_labels, open_source
from actfer_jax.evaluation.command import read_card
from actfer_jax.evaluation.run import EvaluateConfig
from actfer_jax.models import demo_checkpoint
from configs.eval import micro as eval_micro


def shown(sample, clip: str, *numbers: int) -> bool:
    """Whether a sample shows these frames of a clip, in this order."""
    pictures = [np.broadcast_to(frame(clip, number)[..., None], (24, 20, 3)) for number in numbers]
    return len(pictures) == len(sample.images) and all(map(np.array_equal, sample.images, pictures))


def test_clips_of_casme2_are_their_onset_and_their_apex(tmp_path):
    given = write_casme2(tmp_path)
    samples = samples_of("casme2", **given)
    assert sorted(samples) == sorted(f"sub{subject}/{clip}" for subject, clip, *_ in CASME2_ROWS)
    assert shown(samples["sub01/EP02_01f"], "EP02_01f", 46, 59)
    assert shown(samples["sub01/EP03_02"], "EP03_02", 131, 146)
    assert shown(samples["sub05/EP13_04f"], "EP13_04f", 10, 9)
    raw = samples_of("casme2", pictures="raw", **given)
    assert raw.keys() == samples.keys() and shown(raw["sub02/EP09_10"], "raw EP09_10", 51, 76)
    found = {name[6:]: sample.reference for name, sample in samples.items()}
    assert {name: one.emotion for name, one in found.items()} == {row[1]: row[6] for row in CASME2_ROWS}
    assert found["EP02_01f"].aus == {4, 12} and found["EP02_01f"].known_aus is None
    assert found["EP02_01f"].extra == {"subject": "sub01", "sides": {"AU12": "L"}}
    assert found["EP03_02"].aus == {4} and found["EP01_11f"].aus is None
    assert all("casme2" in one.strata for one in found.values())
    assert problems_of("casme2", **given) == [
        ("CASME2-coding-20140508.xlsx", 3, "there is no apex: the middle frame 146 of 131 to 162 is shown"),
        ("CASME2-coding-20140508.xlsx", 8, "the apex 9 is not between onset 10 and offset 30; shown as written"),
    ]


def test_the_composite_has_three_classes_and_counts_what_it_leaves_out(tmp_path):
    given = write_casme2(tmp_path / "casme2") | {"classes": "composite"}
    report = report_of("casme2", **given)
    assert report["classes"] == {"negative": 2, "positive": 1, "surprise": 1}
    book = "CASME2-coding-20140508.xlsx"
    assert [(problem["line"], problem["what"]) for problem in report["problems"]] == [
        (6, "sub04/EP12_01f is not in the composite; left out"),
        (3, "1 rows from here on have the emotion 'others', which is in no class; left out"),
        (8, "1 rows from here on have the emotion 'sadness', which is in no class; left out"),
    ] and {problem["file"] for problem in report["problems"]} == {book}
    given = write_samm(tmp_path / "samm") | {"classes": "composite"}
    assert report_of("samm", **given)["classes"] == {"negative": 3, "positive": 1, "surprise": 1}
    assert report_of("smic", **write_smic(tmp_path / "smic"))["classes"] == dict.fromkeys(COMPOSITE, 1)
    # The published sums: 442 clips, of which 250, 109 and 83.
    published = [module.OFFICIAL for module in (casme2, samm, smic)]
    assert sum(counts["all"] for counts in published) == 442
    assert [sum(counts[f"all/{label}"] for counts in published) for label in COMPOSITE] == [250, 109, 83]
    five = emotion_labels(config_of("samm", **given | {"classes": "five"}))
    assert five == ("anger", "contempt", "happiness", "other", "surprise")


def test_one_subject_is_left_out(tmp_path):
    given = write_casme2(tmp_path)
    people = {name: sample.reference.extra["subject"] for name, sample in samples_of("casme2", **given).items()}
    for who in set(people.values()):
        test, train = (samples_of("casme2", subject=who, split=split, **given) for split in ("test", "train"))
        assert test.keys() == {name for name, subject in people.items() if subject == who}
        assert train.keys() == people.keys() - test.keys()
    with pytest.raises(ConfigError, match=r"data\.subject is empty; say whose clips are test, as split is 'test'"):
        config_of("casme2", split="test", **given)
    with pytest.raises(DataError, match=r"data\.subject is '01'; .* has sub01, sub02, sub04, sub05"):
        open_source(config_of("casme2", subject="01", split="test", **given))


def test_samm_has_lines_above_its_header_and_words_of_several_meanings(tmp_path):
    given = write_samm(tmp_path)
    samples, everything = samples_of("samm", **given), frozenset(facs.AU_NAMES)
    assert shown(samples["006_1_2"], "006_1_2", 562, 565) and shown(samples["007_6_5"], "007_6_5", 40, 45)
    found = {name: (one.reference.aus, one.reference.known_aus) for name, one in samples.items()}
    assert found == {
        "006_1_2": ({12, 15}, None),
        "006_1_3": ({15}, everything - {6, 12}),
        "007_3_1": ({43}, everything - {7}),
        "007_6_5": ({12}, None),
        "011_1_1": ({14}, None),
        "011_2_1": ({9}, None),
        "011_3_1": ({4}, {4}),
    }
    assert samples["011_1_1"].reference.extra["intensities"] == {"AU14": "A"}
    assert samples["007_6_5"].reference.emotion == samples["011_1_1"].reference.emotion == "other"
    assert [(line, what) for _, line, what in problems_of("samm", **given)] == [
        (17, "the apex 20 is not between onset 16 and offset 19; shown as written"),
        (18, "there is no apex: the middle frame 45 of 40 to 51 is shown"),
        (16, "1 rows from here on have '(R6 or R12)' among their action units, which is not read"),
        (17, "1 rows from here on have 'ref(7B)' among their action units, which is not read"),
        (20, "1 rows from here on have 'M58' among their action units, which is not read"),
        (21, "1 rows from here on have '?' among their action units, which is not read"),
    ]
    assert len(samples) == len(SAMM_ROWS)


@pytest.mark.parametrize("folders", [False, True])
def test_clips_of_casme3_are_known_by_their_onset_too(tmp_path, folders):
    samples = samples_of("casme3", **write_casme3(tmp_path, folders))
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        "spNO.1_a_355": "disgust",
        "spNO.1_a_700": "surprise",
        "spNO.2_b_1": "happy",
        "spNO.2_c_21": "others",
    }
    assert shown(samples["spNO.1_a_700"], "spNO.1 a", 700, 705)


def test_smic_has_no_apex_and_other_sets_name_their_columns(tmp_path):
    given = write_smic(tmp_path / "smic")
    samples = samples_of("smic", **given)
    assert shown(samples["s1/s1_ne_01"], "s1_ne_01", 100, 103) and shown(samples["s20/s20_po_01"], "s20_po_01", 7, 7)
    assert samples["s1/s1_sur_02"].reference.emotion == "surprise" and not samples["s1/s1_sur_02"].reference.has_aus
    assert ("HS", None, "3 clips have no apex: the middle frame is shown") in problems_of("smic", **given)

    given = write_dfme(tmp_path / "dfme")
    samples = samples_of("dfme", **given)
    assert shown(samples["sub0001_02_500"], "sub0001_02_500", 3, 30)
    assert samples["sub0001_01_200"].reference.aus == {4, 38} and samples["sub0001_02_500"].reference.aus == {12}
    assert emotion_labels(config_of("dfme", classes="composite", **given)) == ("negative", "positive", "surprise")
    numbers = {"subject": "0", "clip": "1", "onset": "2", "apex": "3", "offset": "", "aus": "", "emotion": "5"}
    others = samples_of("dfme", columns=numbers, emotions=("others", "disgust"), **given)
    assert {name: one.reference.emotion for name, one in others.items()} == {
        "sub0001_01_200": "disgust",
        "sub0671_02_200": "others",
    }

    samples = samples_of("mmew", **write_mmew(tmp_path / "mmew"))
    assert shown(samples["S13-02-002"], "S13-02-002", 5, 15)
    assert samples["S02-06-001"].reference.extra["subject"] == "S02"


def test_clips_of_4dme_have_one_emotion_and_what_a_coder_doubts_is_not_known(tmp_path):
    given = write_four_dme(tmp_path / "few")
    samples, book = samples_of("four_dme", **given), "4DME_Labelling_Micro_release v1.xlsx"
    assert {name: sample.reference.emotion for name, sample in samples.items()} == {
        "sub1/clip_000": "negative",
        "sub2/clip_001": "positive",
        "sub3/clip_002": "surprise",
        "sub2/clip_004": "repression",
    }
    doubted = samples["sub1/clip_000"].reference
    assert doubted.aus == {7} and doubted.known_aus == facs.AU_NAMES.keys() - {4}
    assert shown(samples["sub3/clip_002"], "clip_002", 12, 16)
    assert shown(samples_of("four_dme", pictures="raw", **given)["sub3/clip_002"], "raw clip_002", 12, 16)
    assert problems_of("four_dme", **given) == [
        (book, 2, "1 rows from here on have 'AU4(k)' among their action units, which is not read"),
        (book, 5, "1 rows from here on have the emotion 'negative+surprise', which is in no class; left out"),
    ]
    assert report_of("four_dme", classes="composite", **given)["classes"] == dict.fromkeys(COMPOSITE, 1)
    # In the whole workbook two rows, by their place, have each other's labels.
    whole = write_four_dme(tmp_path / "whole", clips=150)
    samples = samples_of("four_dme", **whole)
    assert samples["sub1/clip_144"].reference.emotion == "negative" and samples["sub1/clip_144"].reference.aus == {7}
    assert samples["sub2/clip_145"].reference.emotion == "repression"
    assert (book, 146, "has the labels of row 147, and that row has its own: exchanged") in problems_of(
        "four_dme", **whole
    )


def test_pictures_that_are_not_there_or_broken_are_named(tmp_path):
    given = write_casme2(tmp_path)
    clips = tmp_path / "Cropped"
    (clips / "sub01/EP02_01f/reg_img59.jpg").unlink()
    (clips / "sub02/EP09_10").rename(clips / "sub02/other")
    put(clips / "sub02/EP01_11f/reg_img46.jpg", "<!DOCTYPE html>")
    report = report_of("casme2", **given)
    found = {problem["line"]: problem["what"] for problem in report["problems"]}
    assert found[2] == "Cropped/sub01/EP02_01f has no picture of frame 59; left out"
    assert found[5] == "there are no pictures in Cropped/sub02/EP09_10; left out"
    assert "reg_img46.jpg, which is shown with it: a web page" in found[None] and report["unreadable"] == 1
    assert report["records"] == len(CASME2_ROWS) - 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("<!DOCTYPE html><title>Sign in</title>", "a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (b"PK\x03\x04 and no more", "cannot be read as an Excel workbook"),
        (
            [("Subject", "Filename"), ("01", "x")],
            "no sheet has a row with the columns 'Subject', .* 'Subject', 'Filename'",
        ),
        (None, "cannot be read"),
    ],
)
def test_another_file_under_the_name_of_the_workbook_is_called_what_it_is(tmp_path, content, what):
    given = write_samm(tmp_path)
    book = tmp_path / samm.BOOK
    book.unlink()
    if isinstance(content, list):
        write_workbook(book, content)
    elif content is not None:
        put(book, content)
    with pytest.raises(DataError, match=f"{samm.BOOK}.*{what}"):
        open_source(config_of("samm", **given))


def test_without_openpyxl_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    given = write_mmew(tmp_path)
    assert openpyxl is sys.modules["openpyxl"]
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match="MMEW_Micro_Exp.xlsx is an Excel workbook, .*: pip install openpyxl"):
        open_source(config_of("mmew", **given))


def test_the_config_of_the_benchmark_pools_the_sets_of_the_composite(tmp_path):
    raw = eval_micro.get_config()
    for name, write in (("casme2", write_casme2), ("samm", write_samm), ("smic", write_smic)):
        raw.data.parts[name].directory = write(tmp_path / name)["directory"]
    config = read_config(raw, EvaluateConfig, "config")
    source = open_source(config.data)
    assert len(source) == 4 + 5 + 3 and emotion_labels(config.data) == ("negative", "positive", "surprise")
    assert {source.strata(index) for index in range(len(source))} == {(name,) for name in ("casme2", "samm", "smic")}
    # A policy that was trained on single pictures gets room for two.
    _, views, trained = read_card(Path(demo_checkpoint()))
    _, _, evaluated = read_card(Path(demo_checkpoint()), config.images)
    assert (trained.images, evaluated.images) == (1, 2)
    assert evaluated.prompt_tokens - trained.prompt_tokens > views.scene_max_tokens
