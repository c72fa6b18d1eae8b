"""FEA-20K and UniFER: which picture has which labels and texts, and what is said about files that are odd."""

import json

import pytest
from data_fixtures import (
    FERBENCH_LABELS,
    UNIFER_QUESTION,
    config_of,
    encoded,
    fea_description,
    noise,
    problems_of,
    put,
    report_of,
    samples_of,
    write_fea_20k,
    write_unifer,
)

from actfer_jax.data.datasets import unifer
from actfer_jax.data.sources import DataError, emotion_labels, label_sets

LABELS = ("anger", "fear", "happiness", "neutral")


def test_items_of_fea_20k_know_what_their_source_knows(tmp_path):
    given = write_fea_20k(tmp_path)
    test, train = samples_of("fea_20k", split="test", **given), samples_of("fea_20k", **given)
    assert len(train) == 6 and sorted(test) == ["BP4D/p/2.jpg", "FABA/p/2.jpg", "FER2013/p/2.jpg"]
    read = {name: (one.reference.emotion, one.reference.aus, one.reference.known_aus) for name, one in train.items()}
    known = {"FABA": {1, 4, 12}, "BP4D": {6, 12, 14}}
    assert read == {
        "FABA/p/0.jpg": ("anger", {1, 4}, known["FABA"]),
        "FABA/p/1.jpg": ("happiness", {12}, known["FABA"]),
        "BP4D/p/0.jpg": (None, {6, 12}, known["BP4D"]),
        "BP4D/p/1.jpg": (None, set(), known["BP4D"]),
        "FER2013/p/0.jpg": ("fear", None, None),
        "FER2013/p/1.jpg": ("happiness", None, None),
    }
    assert (test["FABA/p/2.jpg"].reference.aus, test["FABA/p/2.jpg"].reference.emotion) == (set(), "neutral")
    # AU30 is none that an answer of ours can name, but one that the benchmark counts.
    assert train["BP4D/p/0.jpg"].reference.extra["other_aus"] == [30]
    assert train["FABA/p/0.jpg"].reference.extra["description"] == fea_description(["AU1", "AU4"], ["anger"])
    assert [train[f"{source}/p/0.jpg"].reference.labels for source in ("FABA", "BP4D", "FER2013")] == [
        ("anger", "happiness", "neutral"),
        (),
        ("fear", "happiness"),
    ]
    config = config_of("fea_20k", **given)
    assert emotion_labels(config) == LABELS and len(label_sets(config)) == 3
    assert [one.reference.strata for name, one in train.items() if "BP4D" in name] == [("BP4D",), ("BP4D",)]


def test_what_is_odd_in_fea_20k_is_named_with_file_and_line(tmp_path):
    given = write_fea_20k(tmp_path)
    file = tmp_path / "texts/FABA/FABA-Train-stage1.jsonl"
    item = json.loads(file.read_text().splitlines()[0])
    odd = [
        item | {"AUs": ["AU1", "4"]},
        item | {"labels": ["Sadness", "fear"]},
        item | {"labels": "sadness"},
        item | {"dataset": "FA BA"},
        item | {"dataset": "SFEW", "AUs": [], "labels": []},
        [item],
    ]
    put(file, "\n".join([*map(json.dumps, odd), "", '{"id": "FABA_9", "dat']))
    (tmp_path / "texts/FER2013/FER2013-Test.jsonl").unlink()
    report = report_of("fea_20k", split="all", **given)
    problems = [(one["file"].rpartition("/")[2], one["line"], one["what"]) for one in report["problems"]]
    assert [problem for problem in problems if problem[0] == file.name] == [
        (file.name, 1, "AUs is ['AU1', '4']; it must be a list of names such as AU4; left out"),
        (file.name, 2, "has the labels Sadness, fear; the first counts"),
        (file.name, 3, "labels is sadness; it must be a list of words; left out"),
        (file.name, 4, "dataset and image are 'FA BA' and 'p/0.jpg'; they must be a name and a path; left out"),
        (file.name, 6, "is no JSON object; the row is left out"),
        (file.name, 8, next(what for _, line, what in problems if line == 8)),
        (file.name, 5, "has neither action units nor a label; left out"),
    ]
    assert "is no JSON (Unterminated string" in str(problems)
    assert report["official"]["test"] == {"expected": 1688, "found": 2} and report["classes"]["sadness"] == 1
    put(tmp_path / "FABA-Test/p/2.jpg", encoded(noise(7), "PNG"))
    moved = samples_of("fea_20k", split="test", folders={"FABA": "FABA-Test"}, **given)["FABA/p/2.jpg"]
    assert (moved.images[0][..., 0] == noise(7)).all()
    with pytest.raises(DataError, match=r"data.train and data.test are patterns of their names"):
        problems_of("fea_20k", train="*.json", test="*.json", **given)


def test_texts_of_unifer_are_kept_beside_what_they_answer(tmp_path):
    given = write_unifer(tmp_path)
    samples = samples_of("unifer", **given)
    assert len(samples) == 8 and emotion_labels(config_of("unifer", **given))[-1] == "contempt"
    reference = samples["RAF-DB/aligned/test_1_aligned.jpg#2"].reference
    assert (reference.labels, reference.emotion) == (FERBENCH_LABELS["rafdb"], "fear")
    assert reference.strata == ("RAF-DB",) and reference.extra == {
        "prompt": UNIFER_QUESTION.format(", ".join(FERBENCH_LABELS["rafdb"])),
        "description": "<think>The mouth opens.</think>\n<answer>fear</answer>",
    }
    rewarded = samples_of("unifer", part="rlvr", **given)
    assert {name: one.reference.emotion for name, one in rewarded.items()} == {
        "RAF-DB/aligned/test_0_aligned.jpg": "surprise",
        "RAF-DB/aligned/test_1_aligned.jpg": "fear",
        "AffectNet/Manually_Annotated/validation/0/1f2e.jpg": "neutral",
        "AffectNet/Manually_Annotated/validation/1/1f2e.jpg": "happiness",
    }
    assert all(set(one.reference.extra) == {"prompt"} for one in rewarded.values())
    file = tmp_path / "texts" / unifer.FILES["rlvr"]
    item = {"image_path": "/a.jpg", "problem": UNIFER_QUESTION.format("fear, anger"), "solution": "anger"}
    odd = [
        item,
        item | {"problem": "Which expression?"},
        item | {"solution": "<answer>awe</answer>"},
        {"image_path": 1},
    ]
    put(file, json.dumps(odd))
    assert [what.partition(",")[0] for _, _, what in problems_of("unifer", part="rlvr", **given)][:3] == [
        "item 2: problem is 'Which expression?'",
        "item 3: solution answers 'awe'",
        "item 4: is \"{'image_path': 1}\"",
    ]
    put(file, "<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(DataError, match=r"UniFER_RLVR_360K.json: a web page"):
        problems_of("unifer", part="rlvr", **given)
    file.unlink()
    with pytest.raises(DataError, match=r"there is no .*RLVR_360K.json; data.texts is the folder"):
        problems_of("unifer", part="rlvr", **given)
