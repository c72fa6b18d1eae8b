"""UF1 and UAR of micro-expressions against counting by hand, and runs that each left one subject out as one."""

import csv
import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl import flags
from etils import epath

from actfer_jax import table
from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import disfa, micro
from actfer_jax.evaluation.items import Answer, to_json
from actfer_jax.evaluation.metrics import Outcome
from actfer_jax.evaluation.pool import pool
from actfer_jax.evaluation.results import Results, read_results

LABELS = ("negative", "positive", "surprise")
OWN, ZERO = micro.Config(name="micro"), micro.Config(name="micro", absent_class="zero")


def clip(subject: str, truth: str, answer: str | None, *strata: str, labels: tuple[str, ...] = LABELS) -> Outcome:
    return Outcome(
        labels=labels,
        emotion=truth,
        predicted=answer,
        answered=answer is not None,
        aus=None,
        predicted_aus=None,
        strata=strata,
        inspected=False,
        regions=(),
        calls=(),
        turns=1,
        truncated=False,
        subject=subject,
    )


# Of subject b no clip is a surprise, of c none is positive.
FOLDS = [
    *(clip("a", truth, answer, "casme2") for truth, answer in (("negative", "negative"), ("positive", "positive"))),
    *(clip("a", truth, answer, "casme2") for truth, answer in (("surprise", "negative"), ("negative", "negative"))),
    *(clip("b", truth, answer, "casme2") for truth, answer in (("negative", "positive"), ("positive", "positive"))),
    *(clip("c", truth, answer, "samm") for truth, answer in (("surprise", "surprise"), ("negative", None))),
]


def test_a_class_that_is_absent_in_a_fold_counts_by_all_folds_together():
    found = micro.measure(FOLDS, config=OWN, seed=0)
    # negative: 2 of 4 found, and named once more; positive: 2 of 2, once more; surprise: 1 of 2.
    f1s, recalls = {"negative": 4 / 7, "positive": 4 / 5, "surprise": 2 / 3}, {"negative": 1 / 2, "positive": 1}
    recalls |= {"surprise": 1 / 2}
    assert {label: one["f1"] for label, one in found["classes"].items()} == pytest.approx(f1s)
    assert {label: one["recall"] for label, one in found["classes"].items()} == pytest.approx(recalls)
    assert found["uf1"]["value"] == pytest.approx(np.mean([*f1s.values()]))
    assert found["uar"]["value"] == pytest.approx(2 / 3)
    assert (found["clips"], found["subjects"], found["resampled"], found["absent"]) == (8, 3, "subjects", [])
    # In SAMM no clip is positive, and no answer either.
    samm = found["sets"]["samm"]
    assert samm["absent"] == ["positive"] and samm["classes"]["positive"] == {"clips": 0, "f1": None, "recall": None}
    assert (samm["uf1"]["value"], samm["uar"]["value"], samm["clips"], samm["subjects"]) == (0.5, 0.5, 2, 1)
    zero = micro.measure(FOLDS, config=ZERO, seed=0)
    assert zero["uf1"]["value"] == found["uf1"]["value"]
    assert zero["sets"]["samm"]["uf1"]["value"] == pytest.approx(1 / 3) == zero["sets"]["samm"]["uar"]["value"]
    assert "No clip of samm is positive." in micro.report({"normal": found})


def test_a_class_that_is_absent_in_all_is_left_out_with_a_warning_or_counts_as_zero(caplog):
    never = [clip("a", "negative", "negative"), clip("b", "positive", "negative"), clip("b", "positive", "positive")]
    found, zero = (micro.measure(never, config=config, seed=0) for config in (OWN, ZERO))
    assert "no clip is of the class surprise" in caplog.text
    assert found["uf1"]["value"] == pytest.approx(2 / 3) and found["uar"]["value"] == pytest.approx(3 / 4)
    assert zero["uf1"]["value"] == pytest.approx(4 / 9) and zero["uar"]["value"] == pytest.approx(1 / 2)
    # Named without being there, it has an F1, which is 0, and still no recall.
    named = micro.measure([*never, clip("c", "negative", "surprise")], config=OWN, seed=0)
    assert named["uf1"]["value"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert named["uar"]["value"] == pytest.approx(1 / 2) and named["absent"] == ["surprise"]


def by_counting(clips: list[Outcome], labels: tuple[str, ...]) -> tuple[float, float]:
    """UF1 and UAR of clips in which every class occurs."""
    f1s, recalls = [], []
    for label in labels:
        right = sum(one.emotion == label == one.predicted for one in clips)
        true, named = (sum(getattr(one, key) == label for one in clips) for key in ("emotion", "predicted"))
        f1s.append(2 * right / (true + named))
        recalls.append(right / true)
    return float(np.mean(f1s)), float(np.mean(recalls))


def random_clips(seed: int, labels: tuple[str, ...]) -> list[Outcome]:
    rng, answers = np.random.default_rng(seed), [*labels, None]
    return [
        clip(f"s{n % 7}", labels[n % len(labels)], answers[rng.integers(len(answers))], f"set{n % 2}", labels=labels)
        for n in range(210)
    ]


@pytest.mark.parametrize("labels", [LABELS, ("disgust", "happiness", "others", "repression", "surprise")])
def test_figures_and_intervals_equal_counting(labels):
    clips = random_clips(len(labels), labels)
    found = micro.measure(clips, config=OWN, seed=3)
    assert (found["uf1"]["value"], found["uar"]["value"]) == pytest.approx(by_counting(clips, labels))
    for name, part in found["sets"].items():
        of_set = [one for one in clips if name in one.strata]
        assert (part["uf1"]["value"], part["uar"]["value"]) == pytest.approx(by_counting(of_set, labels))
    drawn = [
        by_counting([one for one in clips for _ in range(counts[int(one.subject[1:])])], labels)
        for counts in np.random.default_rng(3).multinomial(7, [1 / 7] * 7, size=1000)
    ]
    for figure, values in zip(("uf1", "uar"), zip(*drawn, strict=True), strict=True):
        low, high = np.quantile(values, (0.025, 0.975))
        assert (found[figure]["low"], found[figure]["high"]) == pytest.approx((low, high))


def test_figures_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    clips = random_clips(0, LABELS)
    found = micro.measure(clips, config=OWN, seed=3)
    truth, named = [one.emotion for one in clips], [one.predicted or "none" for one in clips]
    f1 = metrics.f1_score(truth, named, labels=LABELS, average="macro", zero_division=0)
    assert found["uf1"]["value"] == pytest.approx(f1)
    assert found["uar"]["value"] == pytest.approx(metrics.recall_score(truth, named, labels=LABELS, average="macro"))


@pytest.fixture
def run(tmp_path) -> Callable[..., Results]:
    """Writes the results of an evaluation, and reads them."""

    def write(name: str, clips: list[Outcome], config: Any = OWN, benchmark: Any = micro) -> Results:
        folder = epath.Path(tmp_path / name)
        folder.mkdir()
        made = {"dataset": name[:5], "split": "test", "size": len(clips), "policy": name}
        config = {"benchmark": vars(config), "faces": {"steps": ["hog"]}}
        summary = {} if benchmark is not micro else micro.measure(clips, config=OWN, seed=0)
        results = {"provenance": made, "config": config, "results": {"normal": summary}}
        (folder / "results.json").write_text(json.dumps(results))
        lines = [
            Answer(name, f"{n}", one.labels, one.emotion, one.predicted, "", strata=one.strata, subject=one.subject)
            for n, one in enumerate(clips)
        ]
        (folder / "answers.jsonl").write_text("".join(json.dumps(to_json(line)) + "\n" for line in lines))
        return read_results(folder)

    return write


def test_runs_that_left_one_subject_out_are_pooled(run, monkeypatch, capsys):
    runs = [run(f"fold_{who}", [one for one in FOLDS if one.subject == who]) for who in "abc"]
    together, whole = pool(runs), micro.measure(FOLDS, config=OWN, seed=0)
    assert together.summaries["normal"] == whole
    assert np.mean([one.summaries["normal"]["uf1"]["value"] for one in runs]) != whole["uf1"]["value"]
    monkeypatch.setattr(
        flags, "FLAGS", SimpleNamespace(pool=True, compare=False, strata=False, format="csv", metrics=[])
    )
    table.main(["table", *(str(one.directory) for one in runs)])
    shown, paper = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert shown["n"] == "8" and shown["UF1"].startswith(f"{100 * whole['uf1']['value']:.2f} ±")
    assert shown["samm UAR"] == "50.00" and (paper["UF1"], paper["source"][:10]) == ("92.84", "published,")
    with pytest.raises(UserError, match="fold_a/0 is in 2 of the runs; each sample is to be tested once"):
        pool([*runs, runs[0]])
    with pytest.raises(UserError, match="other was measured by .*zero"):
        pool([runs[0], run("other", FOLDS[-2:], config=ZERO)])
    with pytest.raises(UserError, match="runs of the benchmark 'disfa' are not pooled; those of micro are"):
        pool([run("frames", [], disfa.Config(name="disfa"), disfa)])
