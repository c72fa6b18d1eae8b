"""FERBench's scores against a second writing of its rules, word for word, and against counting by hand."""

import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from etils import epath
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from actfer_jax import evaluate
from actfer_jax.agent.episode import Episode, Reference, Reply
from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import ferbench as benchmark
from actfer_jax.evaluation.ferbench import Item, read_answer, subset_of, summarise
from actfer_jax.evaluation.metrics import outcome
from actfer_jax.evaluation.predictions import Prediction, read_predictions, score_predictions
from actfer_jax.faces.views import View
from actfer_jax.outputs import OutputError

ROOT = Path(__file__).parents[2]
LABELS = {
    "rafdb": "surprise fear disgust happiness sadness anger neutral".split(),
    "ferplus": "angry contempt disgust fear happy neutral sad surprise".split(),
    "affectnet": "neutral happiness sadness surprise fear disgust anger contempt".split(),
    "sfew_2.0": "angry disgust fear happy neutral sad surprise".split(),
}
SYNONYMS = {
    "rafdb": "anger: angry | disgust: revulsion, repulsion | fear: terror, fright | happiness: joy, happy | "
    "sadness: sad | neutral: normal, calm, blank | surprise: shock, astonishment",
    "ferplus": "angry: anger | contempt: scorn, disdain | disgust: revulsion, repulsion | fear: terror, fright | "
    "happy: joy, happiness | sad: sorrow, unhappy | neutral: normal, calm, blank | surprise: shock, astonishment",
    "affectnet": "anger: angry, mad | contempt: scorn, disdain | disgust: revulsion, repulsion | "
    "fear: terror, fright | happiness: joy, happy | sadness: sad | neutral: normal, calm, blank | "
    "surprise: shock, astonishment",
    "sfew_2.0": "angry: anger, mad | disgust: revulsion, repulsion | fear: terror, fright | happy: joy, happiness | "
    "sad: sorrow, unhappy | neutral: normal, calm, blank | surprise: shock, astonishment",
}
FOLDERS = {"rafdb": "RAF-DB", "ferplus": "FERPlus", "affectnet": "AffectNet", "sfew_2.0": "SFEW-2.0"}


def by_the_rules(response: str, labels: list[str], subset: str, *, sfew_own: bool) -> str:
    if sfew_own and subset == "sfew_2.0":
        match = re.search(r"<answer>\s*(.*?)\s*</answer>", response, re.DOTALL)
    else:
        match = re.search(r"<answer>\s*(.*?)\s*</answer>", response, re.IGNORECASE)
    if match:
        text = match.group(1).lower().strip()
        for label in labels:
            if label == text or label in text:
                return label
    response = response.lower()
    for label in labels:
        if re.search(r"\b" + label + r"\b", response) or label in response:
            return label
    for entry in SYNONYMS[subset].split(" | "):
        label, words = entry.split(": ")
        if any(word in response for word in words.split(", ")):
            return label
    return "unknown"


WORDS = sorted(
    {word for entry in [*SYNONYMS.values(), *map(" ".join, LABELS.values())] for word in re.findall(r"\w+", entry)}
)
PIECES = [
    *WORDS,
    *(word.upper() for word in WORDS[::3]),
    *("unhappiness", "Unhappy", "madly", "not", "ERROR: out of memory", "é", "\u00a0", ".", "İ"),
    *("<think>", "</think>", "<ANSWER>", "</Answer>", "</answer", "answer>"),
    *["\n", " ", "\t", "\r\n", "<answer>", "</answer>"] * 8,
]
ANYTHING = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
RESPONSES = ANYTHING | st.builds("{}<answer>{}</answer>{}".format, ANYTHING, ANYTHING, ANYTHING)


@settings(max_examples=2500, deadline=None)
@given(response=RESPONSES, backwards=st.booleans())
def test_responses_are_read_by_the_reference_rules(response, backwards):
    """In every subset, 10,000 readings by each protocol."""
    for subset, labels in LABELS.items():
        labels = labels[::-1] if backwards else labels
        for protocol, own in (("reference", False), ("reference_sfew_own", True)):
            expected = by_the_rules(response, labels, subset, sfew_own=own)
            assert read_answer(response, labels, subset, protocol) == expected, (subset, protocol)


@pytest.mark.parametrize(
    ("response", "reference", "own", "strict"),
    [
        ("<answer> Happy </answer>", "happy", "happy", "happy"),
        ("sad <ANSWER>happy</ANSWER>", "happy", "happy", "happy"),
        ("angry <ANSWER>happy</ANSWER>", "happy", "angry", "happy"),
        ("angry? <answer>a\nhappy</answer>", "angry", "happy", "unknown"),
        ("angry <answer>a\n<answer>sad</answer>", "sad", "sad", "unknown"),
        ("<answer>unhappy</answer>", "happy", "happy", "unknown"),
        ("<answer>sad or fear</answer>", "fear", "fear", "unknown"),
        ("<answer>sad</answer> <answer>fear</answer>", "sad", "sad", "unknown"),
        ("happy", "happy", "happy", "unknown"),
        ("nomadic calm", "angry", "angry", "unknown"),
        ("<answer></answer>", "unknown", "unknown", "unknown"),
        ("", "unknown", "unknown", "unknown"),
    ],
)
def test_the_protocols_differ_as_they_say(response, reference, own, strict):
    expected = {"reference": reference, "reference_sfew_own": own, "strict": strict}
    found = {protocol: read_answer(response, LABELS["sfew_2.0"], "sfew_2.0", protocol) for protocol in expected}
    assert found == expected


def macro_f1(truths: list[str], answers: list[str], *, without: str | None = None) -> float:
    """The mean over every name that is a truth or an answer; a class that is never right has 0."""
    scores = []
    for name in {*truths, *answers} - {without}:
        right = sum(truth == answer == name for truth, answer in zip(truths, answers, strict=True))
        scores.append(2 * right / (truths.count(name) + answers.count(name)))
    return sum(scores) / len(scores)


def merged(names: list[str]) -> list[str]:
    return [{"angry": "anger", "happy": "happiness", "sad": "sadness"}.get(name, name) for name in names]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protocol", ["reference", "strict"])
def test_figures_equal_counting(protocol, seed):
    draw = random.Random(seed)
    subsets = ["rafdb", "sfew_2.0"] if seed % 2 else list(LABELS)
    items = []
    for _ in range(5 + 40 * seed):
        subset = draw.choice(subsets)
        truth, failed = draw.choice(LABELS[subset][: 2 + seed]), draw.random() < 0.1
        answer = draw.choice([truth, *LABELS[subset], "unknown"])
        items.append(Item(subset, truth, "unknown" if failed else answer, failed))
    found = summarise(items, protocol, seed=0)
    assert list(found["subsets"]) == [name for name in LABELS if any(item.subset == name for item in items)]
    for name, part in {**found["subsets"], "overall": found["overall"]}.items():
        there = [item for item in items if name in ("overall", item.subset)]
        counted = [item for item in there if protocol == "strict" or not item.failed]
        truths, answers = [item.truth for item in counted], [item.answer for item in counted]
        if name == "overall":
            truths, answers = merged(truths), merged(answers)
        assert (part["n"], part["errors"]) == (len(counted), sum(item.failed for item in there))
        assert part["unknown"] == answers.count("unknown")
        right = sum(truth == answer for truth, answer in zip(truths, answers, strict=True))
        assert part["accuracy"] == pytest.approx(right / len(counted))
        without = "unknown" if protocol == "strict" else None
        assert part["macro_f1"] == pytest.approx(macro_f1(truths, answers, without=without))
        rows, columns = part["confusion"]["labels"], part["confusion"]["columns"]
        assert {
            (row, column): part["confusion"]["counts"][r][c]
            for r, row in enumerate(rows)
            for c, column in enumerate(columns)
        } == {
            (row, column): list(zip(truths, answers, strict=True)).count((row, column))
            for row in rows
            for column in columns
        }


def by_counting(items: list[dict], protocol: str) -> dict[str, float]:
    """Accuracy and macro-F1 of each subset and overall, with every rule written anew."""
    read = []
    for item in items:
        if item.get("error") and protocol != "strict":
            continue
        words, labels, subset = item.get("response", ""), item["candidate_labels"], item["subset"]
        if protocol == "strict":
            answers = re.findall("<answer>(.*?)</answer>", words, re.DOTALL | re.IGNORECASE)
            one = answers[0].strip().lower() if len(answers) == 1 and not item.get("error") else ""
            answer = one if one in labels else "unknown"
        else:
            answer = by_the_rules(words, labels, subset, sfew_own=protocol == "reference_sfew_own")
        read.append((subset, item["true_label"], answer))
    without, figures = "unknown" if protocol == "strict" else None, {}
    for name in (*LABELS, "overall"):
        truths, answers = zip(*(pair for subset, *pair in read if name in ("overall", subset)), strict=True)
        if name == "overall":
            truths, answers = merged(truths), merged(answers)
        right = sum(truth == answer for truth, answer in zip(truths, answers, strict=True))
        figures[f"{name} accuracy"] = right / len(truths)
        figures[f"{name} macro-F1"] = macro_f1(list(truths), list(answers), without=without)
    return figures


@settings(max_examples=4, deadline=None, phases=(Phase.generate,))
@given(seed=st.integers(0, 2**32))
def test_scores_equal_a_second_writing_of_the_rules(seed):
    """On 10,000 generated responses in all: synonyms, "unhappy", two labels, cut tags, errors, labels by subset."""
    draw, items = random.Random(seed), []
    for number in range(2500):
        subset = list(LABELS)[number % 4]
        truth = draw.choice(LABELS[subset])
        inside = draw.choice([truth, truth.upper(), f" {truth}\n", "".join(draw.choices(PIECES, k=3)), "unhappy", ""])
        words = "".join(draw.choices(PIECES, k=4)) + f"<answer>{inside}</answer>" * draw.choice([0, 1, 1, 1, 2])
        item = {"image_path": f"{number}.jpg", "true_label": truth, "candidate_labels": LABELS[subset]}
        failed = {"error": True} if number % 13 == 7 else {}
        items.append({**item, "subset": subset, "response": words, **failed})
    predictions = [
        Prediction(
            place="",
            image_path=item["image_path"],
            true_label=item["true_label"],
            candidate_labels=tuple(item["candidate_labels"]),
            response=item["response"],
            failed=item.get("error", False),
            subset=item["subset"],
        )
        for item in items
    ]
    for protocol in ("reference", "reference_sfew_own", "strict"):
        config = benchmark.Config(protocol=protocol)
        found = benchmark.measure_predictions(predictions, config=config, seed=0)
        figures = {
            f"{name} {shown}": part[key]
            for name, part in {**found["subsets"], "overall": found["overall"]}.items()
            for key, shown in (("accuracy", "accuracy"), ("macro_f1", "macro-F1"))
        }
        assert figures == pytest.approx(by_counting(items, protocol))


def test_an_interval_has_the_width_that_theory_gives():
    items = [Item("rafdb", "fear", "fear")] * 320 + [Item("rafdb", "fear", "anger")] * 80
    low, high = summarise(items, "reference", seed=1)["overall"]["accuracy_interval"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (low, high) == (pytest.approx(0.8 - half, abs=0.15 * half), pytest.approx(0.8 + half, abs=0.15 * half))


def test_nothing_but_failures_has_no_figures():
    found = summarise([Item("rafdb", "fear", "unknown", failed=True)], "reference", seed=0)
    assert found["overall"]["n"] == 0 and found["overall"]["errors"] == 1
    assert found["overall"]["accuracy"] is None and found["overall"]["macro_f1_interval"] == [None, None]
    assert "-" in benchmark.report({"reference": found})


@pytest.mark.parametrize("protocol", ["reference", "reference_sfew_own", "strict"])
def test_last_turns_of_played_episodes_are_read_like_responses_from_a_file(protocol):
    draw, outcomes, predictions = random.Random(3), [], []
    for index in range(300):
        subset = draw.choice(list(LABELS))
        labels, truth = tuple(LABELS[subset]), draw.choice(LABELS[subset])
        name = draw.choice([truth, truth.upper(), *labels, *LABELS["rafdb"], "unhappy", "a\nsad"])
        last = draw.choice([f"<aus>AU4</aus>\n<answer>{name}</answer>", name, f"I saw {name}, then <answer>", ""])
        first = '<think>fear</think>\n<tool_call>\n{"name": "zoom", "arguments": {"region": "mouth"}}\n</tool_call>'
        reference = Reference(labels, emotion=truth, strata=("female", subset))
        outcomes.append(outcome(Episode.from_texts(first, last), reference))
        predictions.append(Prediction("here", f"{index}.jpg", truth, labels, last, False, subset))
    config = benchmark.Config(protocol=protocol)
    played = benchmark.measure(outcomes, config=config, seed=0)
    scored = benchmark.measure_predictions(predictions, config=config, seed=0)
    assert set(played["subsets"]) == set(LABELS) and played["overall"]["unknown"] > 0
    for name, part in {**played["subsets"], "overall": played["overall"]}.items():
        other = scored["overall"] if name == "overall" else scored["subsets"][name]
        assert {key: part[key] for key in ("n", "unknown", "accuracy")} == {
            key: other[key] for key in ("n", "unknown", "accuracy")
        }
        assert part["macro_f1"] == pytest.approx(other["macro_f1"])


def test_zooms_are_counted_and_measured_for_each_subset():
    def played(subset: str, *original_pixels: float):
        zooms = [
            Reply("", True, "zoom", View(np.zeros((8, 8, 3), np.uint8), np.diag([pixels] * 2 + [1])[:2] * 1.0, "a"))
            for pixels in original_pixels
        ]
        replies = tuple(replace(zoom, region="mouth", inspects=True) for zoom in zooms)
        call = '<think>a</think>\n<tool_call>\n{"name": "zoom", "arguments": {"region": "mouth"}}\n</tool_call>'
        texts = [call] * len(zooms) + ["<answer>fear</answer>"]
        reference = Reference(("fear", "anger"), emotion="fear", strata=(subset,))
        return outcome(Episode.from_texts(*texts, replies=replies), reference)

    outcomes = [played("rafdb", 0.25, 0.75), played("rafdb", 4.0), played("rafdb"), played("ferplus")]
    found = benchmark.measure(outcomes, config=benchmark.Config(), seed=0)
    zooms = {name: (part["zoom_rate"], part["zoom_pitch"]) for name, part in found["subsets"].items()}
    assert zooms == {"rafdb": (pytest.approx(2 / 3), 0.75), "ferplus": (0.0, None)}
    assert (found["overall"]["zoom_rate"], found["overall"]["zoom_pitch"]) == (0.5, 0.75)
    rows = [line.split() for line in benchmark.report({"normal": found}).splitlines()]
    assert [row[-2:] for row in rows[2:]] == [["0.67", "0.75"], ["0.00", "-"], ["0.50", "0.75"]]


def test_a_played_sample_of_no_subset_is_read_without_synonyms():
    reference = Reference(("fear", "anger"), emotion="fear")
    played = [outcome(Episode.from_texts(text), reference) for text in ("<answer>fear</answer>", "terror")]
    played.append(outcome(Episode.from_texts("fear"), Reference((), aus=frozenset({4}))))
    found = benchmark.measure(played, config=benchmark.Config(), seed=0)
    assert found["subsets"] == {} and (found["overall"]["n"], found["overall"]["unknown"]) == (2, 1)


def test_failed_episodes_are_counted_by_the_protocol():
    reference = Reference(("fear", "anger"), emotion="fear", strata=("rafdb",))
    played = [outcome(Episode.from_texts(f"<answer>{text}</answer>"), reference) for text in ("fear", "fear", "anger")]
    played.append(replace(outcome(Episode(), reference), failed=True))
    for protocol, n in (("reference", 3), ("strict", 4)):
        found = benchmark.measure(played, config=benchmark.Config(protocol=protocol), seed=0)["overall"]
        assert (found["n"], found["errors"], found["accuracy"]) == (n, 1, pytest.approx(2 / n))


@pytest.mark.parametrize(
    ("path", "labels", "subset"),
    [
        ("/RAF-DB/aligned/test_0001_aligned.jpg", ["fear"], "rafdb"),
        ("C:\\AffectNet\\FERPlus\\test\\fer1.png", ["fear"], "ferplus"),
        ("/AffectNet/Manually_Annotated/validation/1/x.jpg", LABELS["rafdb"], "affectnet"),
        ("/SFEW-2.0/Val/Val_Aligned_Faces/Angry/x.png", ["fear"], "sfew_2.0"),
        *(("1.jpg", labels[::-1], name) for name, labels in LABELS.items()),
        ("1.jpg", ["fear", "anger"], None),
    ],
)
def test_the_subset_is_told_by_the_path_or_else_by_the_labels(path, labels, subset):
    assert subset_of(path, labels) == subset


def write_unifer_results(directory: Path, seed: int) -> dict[str, list[dict]]:
    """Files as UniFER's inference leaves them: one list for each subset, without a newline at the end."""
    draw = random.Random(seed)
    written = {}
    for subset, labels in LABELS.items():
        items = []
        for index in range(40):
            item = {
                "image_path": f"/{FOLDERS[subset]}/test/{index}.jpg",
                "true_label": draw.choice(labels),
                "prompt": f"Select from candidate labels: {', '.join(labels)}.",
                "candidate_labels": labels,
                "model_response": "".join(draw.choices(["<answer>", "</answer>", "\n", "joy", "", *labels], k=5)),
            }
            items.append({**item, "model_response": "ERROR: no fear", "error": True} if index % 11 == 3 else item)
        written[subset] = items
        (directory / f"{subset}_unifer_7b_results.json").write_text(json.dumps(items, indent=2))
    return written


def test_unifers_files_are_scored_from_the_command_line(tmp_path):
    written = write_unifer_results(tmp_path, 0)
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "actfer_jax.evaluate"),
            *(f"--predictions={file}" for file in sorted(tmp_path.glob("*_results.json"))),
            *("--benchmark=ferbench", "--protocol=reference_sfew_own", f"--out={tmp_path}/scores"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "actfer_jax.rollout" not in done.stderr and "transformers" not in done.stderr  # They take seconds.
    found = json.loads((tmp_path / "scores" / "results.json").read_text())
    truths, answers = [], []
    for subset, items in written.items():
        valid = [item for item in items if not item.get("error")]
        mine = [by_the_rules(item["model_response"], item["candidate_labels"], subset, sfew_own=True) for item in valid]
        theirs = [item["true_label"] for item in valid]
        part = found["subsets"][subset]
        assert (part["n"], part["errors"], part["unknown"]) == (36, 4, mine.count("unknown"))
        assert part["macro_f1"] == pytest.approx(macro_f1(theirs, mine))
        truths, answers = truths + merged(theirs), answers + merged(mine)
    right = sum(truth == answer for truth, answer in zip(truths, answers, strict=True))
    assert found["overall"]["accuracy"] == pytest.approx(right / len(truths))
    assert found["overall"]["macro_f1"] == pytest.approx(macro_f1(truths, answers))
    by_protocol = {name: figures["accuracy"] for name, figures in found["protocols"].items()}
    assert by_protocol["reference_sfew_own"] == found["overall"]["accuracy"] != by_protocol["strict"]
    moved = 100 * (max(by_protocol.values()) - min(by_protocol.values()))
    assert f"moves accuracy by {moved:.2f} points" in done.stdout
    assert (tmp_path / "scores" / "confusion.png").read_bytes().startswith(b"\x89PNG")


GOOD = {"image_path": "1.jpg", "true_label": "fear", "candidate_labels": ["fear", "anger"], "response": "fear"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(GOOD) + "\n{", "line 2: this is no JSON"),
        ("[\n" + json.dumps(GOOD) + ",\n", "line 3: this is no JSON"),
        ("<!DOCTYPE html>", "line 1: this is no JSON .*one JSON object a line, or one JSON list"),
        (json.dumps([GOOD, 5]), "item 2: this is 5; it must be an object"),
        ("\n\n", "has no predictions"),
        ("[]", "has no predictions"),
        *(
            ("\n" + json.dumps(GOOD | change), f"line 2: .*{words}")
            for change, words in [
                ({"image_path": None}, "image_path is missing"),
                ({"true_label": 3}, "true_label is 3; it must be text"),
                ({"true_label": "joy"}, r"true_label is 'joy', which is none of candidate_labels \(fear, anger\)"),
                ({"candidate_labels": "fear"}, "candidate_labels is 'fear'; it must be a list of labels"),
                ({"candidate_labels": ["fear", ""]}, "candidate_labels"),
                ({"response": None}, "one of response and model_response, and has 0"),
                ({"model_response": "anger"}, "one of response and model_response, and has 2"),
                ({"response": ["fear"]}, r"response is \['fear'\]; it must be text"),
                ({"subset": 1}, "subset is 1; it must be text"),
            ]
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, words):
    file = tmp_path / "predictions.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}.*{words}"):
        read_predictions(epath.Path(file))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "line 1: neither a folder in image_path nor candidate_labels tells the subset; add subset"),
        ({"subset": "disfa"}, "line 1: subset is 'disfa'; it must be one of rafdb, ferplus, affectnet, sfew_2.0"),
    ],
)
def test_what_cannot_be_scored_leaves_nothing_behind(tmp_path, change, words):
    file, out = tmp_path / "predictions.jsonl", tmp_path / "scores"
    file.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=words):
        score_predictions([epath.Path(file)], "ferbench", "strict", epath.Path(out))
    assert not out.exists()
    with pytest.raises(OutputError, match="holds files that are not of scores"):
        score_predictions([epath.Path(file)], "ferbench", "strict", epath.Path(tmp_path))


def test_scores_are_replaced_and_repeated_pictures_told(tmp_path):
    file, out = tmp_path / "predictions.jsonl", epath.Path(tmp_path / "scores")
    lines = [GOOD | {"subset": "RAF-DB"}, GOOD | {"subset": "rafdb", "response": "anger\u2028"}]
    # With a mark of byte order and a separator inside a line, as other programs write them.
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8-sig")
    for protocol, accuracy in (("reference", 0.5), ("strict", 0.0)):
        shown = score_predictions([epath.Path(file)], "ferbench", protocol, out)
        found = json.loads((out / "results.json").read_text())
        assert (found["protocol"], found["overall"]["accuracy"], found["repeated"]) == (protocol, accuracy, 1)
        assert "1 items repeat a picture" in shown
    with pytest.raises(
        UserError, match="protocol is 'lenient'; it must be one of reference, reference_sfew_own, strict"
    ):
        score_predictions([epath.Path(file)], "ferbench", "lenient", out)
    with pytest.raises(UserError, match="'recognition' does not score predictions"):
        score_predictions([epath.Path(file)], "recognition", "reference", out)


@pytest.mark.parametrize(
    ("given_flags", "words"),
    [
        ({"predictions": ["x"]}, "--benchmark is missing"),
        ({"predictions": ["x"], "benchmark": "ferbench"}, "--protocol is missing"),
        (
            {"predictions": ["x"], "benchmark": "ferbench", "protocol": "strict", "checkpoint": "demo"},
            "--checkpoint does not go with --predictions",
        ),
        ({}, "--config is missing"),
        ({"config": {}}, "--checkpoint is missing"),
        ({"config": {}, "checkpoint": "demo", "protocol": "strict"}, "--protocol does not go with --config"),
        ({"config": {}, "endpoint": "http://here/v1"}, "--model is missing"),
        (
            {"config": {}, "endpoint": "http://here/v1", "model": "m", "checkpoint": "demo"},
            "--checkpoint does not go with --endpoint",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_named(monkeypatch, given_flags, words):
    names = dict.fromkeys(("config", "checkpoint", "endpoint", "model", "shard", "merge"))
    names |= dict.fromkeys(("predictions", "benchmark", "protocol"))
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(**names | given_flags))
    with pytest.raises(UserError, match=words):
        evaluate.main([])
