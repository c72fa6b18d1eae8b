"""The benchmark FEA-20K against an independent writing of its rules, and BP4D and FEA-20K played by their configs."""

import json
import re
from typing import Any

import numpy as np
import pytest
from data_fixtures import BP4D_EVALUATED, FEA_SOURCES, bp4d_code, fea_description, write_bp4d, write_fea_20k
from scripted_episodes import ScriptedAgent, small_toolbox

from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.config import ConfigError, read_config
from actfer_jax.evaluation import run as evaluating
from actfer_jax.evaluation.benchmarks import BenchmarkConfig, fea_20k
from actfer_jax.evaluation.items import Answer
from actfer_jax.evaluation.metrics import Outcome
from tests.evaluation.test_shards import command

WORDS = "brow brows fall falls lip lips part parts".split()
SOURCES = {"BP4D": (1, 6, 30), "FABA": (1, 4, 12), "FER2013": ()}


def items(seed: int, count: int = 60) -> list[Outcome]:
    """Answers with and without tags, in several words, with action units that their source does not have."""
    rng = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, 9)))

    found = []
    for _ in range(count):
        source = str(rng.choice([*SOURCES]))
        aus = frozenset(au for au in SOURCES[source] if rng.random() < 0.5)
        named = " ".join(f"(AU{au})" for au in (1, 4, 6, 12, 30) if rng.random() < 0.4)
        label = str(rng.choice(["fear", "anger", "Fear", "fear, anger", " anger ", ""]))
        text = str(rng.choice([f"<think>{words()} {named}</think> AU12 <answer>{label}</answer>", f"{label} {named}"]))
        found.append(
            Outcome(
                labels=("fear", "anger"),
                emotion=None if source == "BP4D" else str(rng.choice(["fear", "anger"])),
                predicted=None,
                answered=True,
                aus=aus - {30} if SOURCES[source] else None,
                predicted_aus=None,
                strata=(source,),
                inspected=False,
                regions=(),
                calls=(),
                turns=1,
                truncated=False,
                response=text,
                extra={"description": words() if rng.random() < 0.8 else "", "other_aus": sorted(aus & {30})},
            )
        )
    return found


def by_hand(outcomes: list[Outcome]) -> dict[str, float]:
    right = [
        (re.split(r"[,\s]+", re.sub(r"(?s).*<answer>(.*)</answer>.*", r"\1", one.response).strip()) + [""])[0]
        == one.emotion
        for one in outcomes
        if one.emotion
    ]
    true = [{(one.strata, au) for au in (one.aus or set()) | {*one.extra["other_aus"]}} for one in outcomes]
    occurring = set().union(*true)
    thoughts = [one.response.partition("</think>")[0] for one in outcomes]
    named = [
        {(one.strata, int(au)) for au in re.findall(r"AU(\d+)", thought)} & occurring
        for one, thought in zip(outcomes, thoughts, strict=True)
    ]

    def f1(*aus: int) -> float:
        t = [{pair for pair in there if pair[1] in aus} for there in true]
        n = [{pair for pair in there if pair[1] in aus} for there in named]
        return 2 * sum(len(a & b) for a, b in zip(t, n, strict=True)) / (sum(map(len, t)) + sum(map(len, n)))

    units = sorted({au for _, au in occurring})
    described = [one for one in outcomes if one.extra["description"]]
    return {
        "accuracy": float(np.mean(right)),
        "au_micro_f1": f1(*units),
        "au_macro_f1": float(np.mean([f1(au) for au in units])),
        "rouge_l": float(np.mean([rouge_l(one.response, one.extra["description"]) for one in described])),
    }


def rouge_l(response: str, description: str) -> float:
    """The longest common subsequence of words, of which stemming takes the plural's ending."""
    one, other = (
        [re.sub("s$", "", word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]
        for text in (response, description)
    )
    best = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, word in enumerate(one):
        for j, there in enumerate(other):
            best[i + 1, j + 1] = best[i, j] + 1 if word == there else max(best[i, j + 1], best[i + 1, j])
    return 2 * best[-1, -1] / (len(one) + len(other))


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_the_rules_by_hand(seed):
    outcomes = items(seed)
    found = fea_20k.measure(outcomes, config=fea_20k.Config(), seed=0)
    assert {key: found[key]["value"] for key in by_hand(outcomes)} == pytest.approx(by_hand(outcomes))
    of_one = [one for one in outcomes if one.strata == ("FABA",)]
    part = found["strata"]["FABA"]
    assert part["episodes"] == len(of_one)
    assert {key: part[key]["value"] for key in by_hand(of_one)} == pytest.approx(by_hand(of_one))
    assert found["strata"]["FER2013"]["au_micro_f1"]["value"] is found["strata"]["BP4D"]["accuracy"]["value"] is None
    text = fea_20k.report({"normal": found})
    assert f"{100 * found['rouge_l']['value']:.1f} ±" in text and "37.3" in text.partition("published")[2]


def test_answers_are_reread_for_comparisons():
    text = "<think>lips part (AU25)</think><aus>AU4</aus><answer>fear, anger</answer>"
    answer = Answer("fea_20k", "a", ("fear", "anger"), "fear", None, text, frozenset({4}), frozenset({4}))
    read = fea_20k.reread(answer, fea_20k.Config())
    assert (read.predicted, read.predicted_aus) == ("fear", {25})
    assert fea_20k.reread(answer, fea_20k.Config(aus_in="aus")).predicted_aus == {4}


def test_a_missing_package_is_named_before_anything_is_played(monkeypatch):
    monkeypatch.setattr(fea_20k, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"benchmark.name is 'fea_20k', .* pip install 'actfer_jax\[rouge\]'"):
        read_config({"name": "fea_20k"}, BenchmarkConfig, "benchmark")


def played(monkeypatch, tmp_path, benchmark: str, script, *arguments: str, **given: str) -> dict[str, Any]:
    """The figures of `python -m actfer_jax.evaluate --config=configs/eval/BENCHMARK.py`, played by a script."""
    agent = ScriptedAgent(small_toolbox(), lambda query, treatment: [script(query)])
    monkeypatch.setattr(evaluating, "load_policy", lambda *_: (agent, PolicyCard((), ("somewhere",), {}, {})))
    keys = {**given, "cache_directory": str(tmp_path / "cache")}
    data = [f"--config.data.{key}={value}" for key, value in keys.items()]
    out = tmp_path / "out"
    command(
        monkeypatch,
        *(f"--config=configs/eval/{benchmark}.py", "--config.controls=()", *data, *arguments),
        *("--checkpoint=a/policy", f"--out={out}"),
    )
    return json.loads((out / "results.json").read_text())["results"]["normal"]


def test_the_config_of_fea_20k_plays_its_test_items(monkeypatch, tmp_path):
    def response(description: str) -> str:
        return description.replace("AU12", "AU15").replace("<answer>", "<aus>AU12</aus>\n<answer>")

    for aus_in, named in (("think", 14), ("aus", 12)):
        given = write_fea_20k(tmp_path / aus_in)
        found = played(
            monkeypatch,
            tmp_path,
            "fea_20k",
            lambda query: response(query.reference.extra["description"]),
            f"--config.benchmark.aus_in={aus_in}",
            **given,
        )
        assert (found["items"], found["labelled"], found["accuracy"]["value"]) == (3, 2, 1.0)
        # AU12 and AU14 of BP4D, of which one is named. AU15 is none of BP4D's, and AU12 none that occurs in the others.
        assert found["au_micro_f1"]["value"] == pytest.approx(2 / 3) and found["au_macro_f1"]["value"] == 0.5
        assert found["aus"][f"AU{named}"]["f1"] == 1.0
        truths = [fea_description(*last) for *_, last in FEA_SOURCES.values()]
        assert found["rouge_l"]["value"] == pytest.approx(np.mean([rouge_l(response(one), one) for one in truths]))


def test_the_config_of_bp4d_plays_every_tenth_frame(monkeypatch, tmp_path):
    people = ["F007", "F003", "F001"]
    given = write_bp4d(tmp_path, tasks=1, frames=12, people=people)
    found = played(
        monkeypatch,
        tmp_path,
        "bp4d",
        lambda query: "<think></think>\n<aus>AU4 AU12 AU23</aus>",
        **given,
    )
    assert (found["frames"], found["subjects"], [*found["folds"]]) == (6, 3, ["1", "2", "3"])
    by_fold = [expected(person) for person in people]
    assert found["f1_folds"]["value"] == pytest.approx(np.mean(by_fold))
    assert [part["f1"] for part in found["folds"].values()] == pytest.approx(by_fold)
    assert found["f1"]["value"] == pytest.approx(expected(*people))


def expected(*people: str) -> float:
    """The mean F1 of one who always names AU4, AU12 and AU23."""
    scores = []
    for au in BP4D_EVALUATED:
        codes = [bp4d_code(person, 1, au, frame) for person in people for frame in (95, 105)]
        scores.append(2 * sum(codes) / (sum(codes) + len(codes)) if au in (4, 12, 23) else 0.0)
    return float(np.mean(scores))
