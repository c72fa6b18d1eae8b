"""Figures of an evaluation against counting by hand, one episode after the other."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scripted_episodes import answer, call

from actfer_jax.agent.episode import Episode, Reference, Reply
from actfer_jax.evaluation import plots, tables
from actfer_jax.evaluation.metrics import Outcome, outcome, summarise

LABELS = ("neutral", "happiness", "fear")
OTHER_LABELS = ("happiness", "contempt")
AUS = (1, 4, 6, 12, 25)


def random_outcomes(seed: int, count: int) -> list[Outcome]:
    """Episodes of two data sets with labels of their own, which have one in common, and with strata that overlap."""
    rng = np.random.default_rng(seed)

    def some_aus() -> frozenset[int]:
        return frozenset(int(au) for au in AUS if rng.random() < 0.4)

    outcomes = []
    for _ in range(count):
        labels = LABELS if rng.random() < 0.7 else OTHER_LABELS
        answered = rng.random() < 0.9
        regions = tuple(str(region) for region in rng.choice(["mouth", "brows", "bbox"], rng.integers(3)))
        outcomes.append(
            Outcome(
                labels=labels,
                emotion=str(rng.choice(labels)) if rng.random() < 0.95 else None,
                predicted=str(rng.choice(labels)) if answered and rng.random() < 0.9 else None,
                answered=answered,
                aus=some_aus() if rng.random() < 0.9 else None,
                predicted_aus=some_aus() if answered else None,
                strata=[("subtle",), ("plain",), ("female", "subtle"), ()][rng.integers(4)],
                inspected=bool(regions),
                regions=regions,
                calls=tuple(("zoom", True) for _ in regions) + (("align_face", bool(rng.random() < 0.8)),),
                turns=int(rng.integers(1, 5)),
                truncated=not answered,
            )
        )
    return outcomes


def share(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def f1(true: int, false: int, missed: int) -> float | None:
    return 2 * true / (2 * true + false + missed) if true + false + missed else None


@pytest.mark.parametrize("seed", range(8))
def test_every_figure_equals_counting(seed):
    outcomes = random_outcomes(seed, 3 + 17 * seed)
    found = summarise(outcomes, resamples=3)

    labelled = [one for one in outcomes if one.emotion is not None]
    assert found["episodes"] == len(outcomes)
    assert found["accuracy"]["value"] == pytest.approx(share([one.predicted == one.emotion for one in labelled]))

    class_f1 = []
    classes = found["confusion"]["labels"]
    assert sorted(classes) == sorted({label for one in outcomes for label in one.labels})
    strata = {name for one in outcomes for name in one.strata}
    assert set(found["strata"]) == strata
    for row, label in enumerate(classes):
        members = [one for one in labelled if one.emotion == label]
        for column, other in enumerate((*classes, None)):
            expected = sum(one.predicted == other for one in members)
            assert found["confusion"]["counts"][row][column] == expected
        hits = sum(one.predicted == label for one in members)
        answers = sum(one.predicted == label for one in labelled)
        values = found["classes"][label]
        assert values["episodes"] == len(members)
        assert values["recall"] == (pytest.approx(hits / len(members)) if members else None)
        assert values["precision"] == (pytest.approx(hits / answers) if answers else None)
        class_f1.append(f1(hits, answers - hits, len(members) - hits))
        assert values["f1"] == (None if class_f1[-1] is None else pytest.approx(class_f1[-1]))
        assert values["zoom_rate"] == share([one.inspected for one in members])
        for name in strata:
            assert values["zoom_rate_in"][name] == share([one.inspected for one in members if name in one.strata])
    defined = [value for value in class_f1 if value is not None]
    assert found["macro_f1"]["value"] == pytest.approx(sum(defined) / len(defined))

    annotated = [one for one in outcomes if one.aus is not None]
    per_au = []
    for au in AUS:
        true = sum(au in one.aus and au in (one.predicted_aus or ()) for one in annotated)
        false = sum(au not in one.aus and au in (one.predicted_aus or ()) for one in annotated)
        missed = sum(au in one.aus and au not in (one.predicted_aus or ()) for one in annotated)
        if true + false + missed == 0:
            assert f"AU{au}" not in found["aus"]
            continue
        entry = found["aus"][f"AU{au}"]
        assert (entry["true_positives"], entry["false_positives"], entry["false_negatives"]) == (true, false, missed)
        assert entry["f1"] == pytest.approx(f1(true, false, missed))
        if true + missed:
            per_au.append(entry["f1"])
    assert found["au_f1_pooled"]["value"] == pytest.approx(np.mean(per_au))
    within = []
    for one in annotated:
        both = len(one.aus) + len(one.predicted_aus or ())
        agreed = len(one.aus & (one.predicted_aus or frozenset()))
        within.append(0.0 if one.predicted_aus is None else 2 * agreed / both if both else 1.0)
    assert found["au_f1_sample"]["value"] == pytest.approx(np.mean(within))

    for name in strata:
        inside = [one for one in outcomes if name in one.strata]
        outside = [one for one in outcomes if one.strata and name not in one.strata]
        values, known = found["strata"][name], [one.predicted == one.emotion for one in inside if one.emotion]
        assert values["episodes"] == len(inside)
        assert values["accuracy"]["value"] == (pytest.approx(share(known)) if known else None)
        rate, other_rate = (share([one.inspected for one in part]) for part in (inside, outside))
        assert values["zoom_rate"]["value"] == pytest.approx(rate)
        assert values["zoom_gap"]["value"] == (None if other_rate is None else pytest.approx(rate - other_rate))
        gaps, sizes = [], []
        for label in classes:
            here, there = ([one.inspected for one in part if one.emotion == label] for part in (inside, outside))
            if here and there:
                gaps.append(share(here) - share(there))
                sizes.append(len(here) + len(there))
        expected = np.average(gaps, weights=sizes) if gaps else None
        gap = values["zoom_gap_within_class"]["value"]
        assert gap == (None if expected is None else pytest.approx(expected))
    assert found["zoom"]["rate"]["value"] == pytest.approx(share([one.inspected for one in outcomes]))
    assert found["zoom"]["regions"]["mouth"] == pytest.approx(np.mean([one.regions.count("mouth") for one in outcomes]))
    assert found["tools"]["align_face"]["calls"] == len(outcomes)
    assert found["tools"]["success"] == pytest.approx(share([ok for one in outcomes for _, ok in one.calls]))
    assert found["no_answer"] == pytest.approx(share([not one.answered for one in outcomes]))
    assert found["truncated"] == pytest.approx(share([one.truncated for one in outcomes]))
    assert found["turns"] == pytest.approx(np.mean([one.turns for one in outcomes]))
    json.dumps(found, allow_nan=False)


def test_interval_has_the_width_that_theory_gives():
    right = Outcome(LABELS, "fear", "fear", True, None, frozenset(), (), False, (), (), 1, False)
    wrong = Outcome(LABELS, "fear", "neutral", True, None, frozenset(), (), False, (), (), 1, False)
    outcomes = [right] * 320 + [wrong] * 80
    first, again = (summarise(outcomes, seed=1)["accuracy"] for _ in range(2))
    assert first == again
    assert first != summarise(outcomes, seed=2)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert first["value"] == 0.8
    assert first["low"] == pytest.approx(0.8 - half, abs=0.15 * half)
    assert first["high"] == pytest.approx(0.8 + half, abs=0.15 * half)


@pytest.mark.parametrize("people", [("ann", "bob", "cid", "dee"), ("ann", "bob", "")])
def test_intervals_resample_people_with_all_of_their_samples(people):
    """Against samples that are written out as often as their person, or a sample of nobody known, was drawn."""
    outcomes = [replace(one, subject=people[number % len(people)]) for number, one in enumerate(random_outcomes(7, 40))]
    units = {one.subject or number: [] for number, one in enumerate(outcomes)}
    for number, one in enumerate(outcomes):
        units[one.subject or number].append(one)
    found, seed, resamples = summarise(outcomes, seed=5, resamples=50), 5, 50
    assert found["resampled"] == "subjects"
    rng, drawn = np.random.default_rng(seed), {}
    for counts in rng.multinomial(len(units), [1 / len(units)] * len(units), size=resamples):
        repeated = [one for count, group in zip(counts, units.values(), strict=True) for one in group * int(count)]
        once = summarise(repeated, resamples=0)
        for name in ("accuracy", "macro_f1", "au_f1_pooled"):
            drawn.setdefault(name, []).append(once[name]["value"])
        drawn.setdefault("zoom", []).append(once["zoom"]["rate"]["value"])
    for name, values in drawn.items():
        figure = found["zoom"]["rate"] if name == "zoom" else found[name]
        assert (figure["low"], figure["high"]) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))


def test_one_person_says_nothing_about_others():
    outcomes = [replace(one, subject="ann") for one in random_outcomes(3, 30)]
    assert summarise(outcomes)["accuracy"]["low"] is None
    alone = [replace(one, subject="") for one in outcomes]
    assert summarise(alone)["resampled"] == "samples" and summarise(alone)["accuracy"]["low"] is not None


def test_figures_without_any_episode_are_null_and_not_numbers():
    found = summarise([Outcome(LABELS, None, None, False, None, None, (), False, (), (), 1, True)])
    alone = summarise([Outcome(LABELS, None, None, False, None, None, ("dim",), False, (), (), 1, True)])["strata"][
        "dim"
    ]
    for part in (found["accuracy"], found["au_f1_sample"], alone["accuracy"], alone["zoom_gap"]):
        assert part == {"value": None, "low": None, "high": None}
    assert found["tools"] == {"calls": 0, "success": None}
    json.dumps(found, allow_nan=False)
    assert tables.controls_table({"": {"normal": found}}).splitlines()[2].split()[1:3] == ["-", "-"]
    assert plots.png(plots.zoom_figure(found), "x").startswith(b"\x89PNG")
    assert plots.png(plots.aus_figure({"normal": found}), "x").startswith(b"\x89PNG")


def test_plots_say_what_the_samples_do_not_have():
    """Of action units alone there is no confusion, and of labels alone no bar."""
    aus_alone = outcome(Episode.from_texts(answer("", "AU4")), Reference((), aus=frozenset({4})))
    labels_alone = outcome(Episode.from_texts(answer("fear")), Reference(("fear",), "fear"))
    for one, draw, words in (
        (aus_alone, plots.confusion_figure, "no labels"),
        (labels_alone, lambda summary: plots.aus_figure({"normal": summary}), "none is known"),
    ):
        figure = draw(summarise([one, one]))
        assert words in figure.axes[0].get_title(loc="left") and plots.png(figure, "x").startswith(b"\x89PNG")


def test_refuses_what_cannot_be_summarised():
    with pytest.raises(ValueError, match="no episodes"):
        summarise([])


def test_outcome_reads_an_episode():
    reference = Reference(
        labels=("Happy", "Afraid"),
        emotion="Happy",
        aus=frozenset({6, 12}),
        known_aus=frozenset({1, 6, 12}),
        strata=("female", "subtle"),
        extra={"subject": "ann"},
    )
    replies = (
        Reply("no face found", ok=False, tool="align_face"),
        Reply("done", ok=True, tool="zoom", region="mouth", inspects=True),
        Reply("unreadable", ok=False),
    )
    texts = [
        call("align_face"),
        call("zoom", region="mouth"),
        "<think></think><tool_call>{</tool_call>",
        answer("JOY", "AU12 AU25 AU1"),
    ]
    read = outcome(Episode.from_texts(*texts, replies=replies), reference)
    assert read == Outcome(
        labels=("happiness", "fear"),
        emotion="happiness",
        predicted="happiness",
        answered=True,
        aus=frozenset({6, 12}),
        predicted_aus=frozenset({1, 12}),
        strata=("female", "subtle"),
        inspected=True,
        regions=("mouth",),
        calls=(("align_face", False), ("zoom", True), ("", False)),
        turns=4,
        truncated=False,
        subject="ann",
        choices=("Happy", "Afraid"),
        response=texts[-1],
        extra={"subject": "ann"},
    )
    assert read.correct
    off_list = outcome(Episode.from_texts(answer("anger", "AU12")), reference)
    assert (off_list.predicted, off_list.answered, off_list.correct) == (None, True, False)
    silent = outcome(Episode.from_texts("I would say happiness."), reference)
    assert (silent.predicted, silent.answered, silent.predicted_aus, silent.au_f1) == (None, False, None, 0.0)
    unknown = replace(reference, aus=frozenset(), known_aus=frozenset())
    assert outcome(Episode.from_texts(answer("fear", "none")), unknown).aus is None
    found = summarise([read, off_list, silent])
    assert found["confusion"]["counts"] == [[1, 0, 2], [0, 0, 0]]
    assert found["tools"]["unreadable"] == {"calls": 1, "success": 0.0}


def test_tables_say_what_the_summaries_say():
    before, after = summarise(random_outcomes(1, 60)), summarise(random_outcomes(2, 80))
    table = tables.controls_table({"before": {"normal": before, "no_tools": before}, "after": {"normal": after}})
    heading, rule, *rows, constant, note = table.splitlines()
    assert constant.startswith(f"majority class ({after['majority']['label']})") and "±" in note
    assert [row.split()[:2] for row in rows] == [
        ["normal", "before"],
        ["after", rows[1].split()[1]],
        ["no_tools", "before"],
    ]
    # Every column ends where its title ends.
    for title, value in (("macro-F1", after["macro_f1"]), ("zoom plain", after["strata"]["plain"]["zoom_rate"])):
        end = heading.index(title) + len(title)
        assert rows[1][:end].split()[-1] == f"{value['value']:.3f}"
    low, high = after["accuracy"]["low"], after["accuracy"]["high"]
    assert f"{after['accuracy']['value']:.3f} ±{(high - low) / 2:.3f}" in rows[1]
    assert len(rule) == len(heading)
    assert "run" not in tables.controls_table({"": {"normal": after}})
    classes = tables.classes_table(after).splitlines()
    assert {line.split()[0] for line in classes[2:]} == {*LABELS, *OTHER_LABELS}
    label, episodes, *_ = classes[2].split()
    assert episodes == str(after["classes"][label]["episodes"])


def test_figures_show_the_counts():
    summary = summarise(random_outcomes(3, 50))
    figure = plots.confusion_figure(summary)
    shown = [int(text.get_text()) for text in figure.axes[0].texts]
    assert shown == [count for row in summary["confusion"]["counts"] for count in row]
    figure = plots.aus_figure({"normal": summary, "no_tools": summary})
    bars = figure.axes[0].patches
    assert sorted({round(bar.get_width(), 6) for bar in bars}) == sorted(
        {round(entry["f1"], 6) for entry in summary["aus"].values()}
    )
    figure.draw_without_rendering()
    (title,) = (text for text in figure.axes[0].get_children() if getattr(text, "get_text", str)() == "Action units")
    assert title.get_window_extent().y0 >= figure.axes[0].get_legend().get_window_extent().y1
    figure = plots.zoom_figure(summary)
    made = "synth_faces test, 700 samples | runs/policy"
    assert plots.png(figure, made).startswith(b"\x89PNG")
    assert figure.get_suptitle() == made


def test_the_commonest_label_scores_as_if_it_were_always_answered():
    outcomes = [one for one in random_outcomes(4, 90) if one.emotion is not None]
    found = summarise(outcomes)
    label = found["majority"]["label"]
    assert Counter(one.emotion for one in outcomes).most_common(1)[0][0] == label
    constant = summarise([replace(one, predicted=label) for one in outcomes])
    for name in ("accuracy", "macro_f1", "uar"):
        assert found["majority"][name] == pytest.approx(constant[name]), name
    recalls = [
        np.mean([one.predicted == emotion for one in outcomes if one.emotion == emotion])
        for emotion in {one.emotion for one in outcomes}
    ]
    assert found["uar"]["value"] == pytest.approx(np.mean(recalls))


def test_the_probability_of_answers_is_compared_with_how_often_they_are_right():
    outcomes = random_outcomes(5, 120)
    chance = np.random.default_rng(0).random(len(outcomes))
    told = [
        replace(one, confidence=float(p) if n % 4 else None)
        for n, (one, p) in enumerate(zip(outcomes, chance, strict=True))
    ]
    found = summarise(told)
    known = [one for one in told if one.confidence is not None and one.emotion is not None]
    expected = 0.0
    for number, part in enumerate(found["calibration"]["bins"]):
        inside = [one for one in known if number / 10 <= one.confidence < (number + 1) / 10]
        assert part["answers"] == len(inside)
        assert part["accuracy"]["value"] == pytest.approx(np.mean([one.correct for one in inside]))
        expected += len(inside) / len(known) * abs(np.mean([one.confidence - one.correct for one in inside]))
    assert found["ece"]["value"] == pytest.approx(expected) and found["calibration"]["answers"] == len(known)
    assert found["ece"]["low"] < found["ece"]["high"]
    assert "not known" in plots.reliability_figure(summarise(outcomes)).axes[0].get_title(loc="left")


def test_bars_of_nothing_are_marked():
    """No fear is seen in the stratum: that is not a rate of 0."""
    rows = [("fear", ()), ("fear", ("dim",)), ("anger", ("bright",))]
    outcomes = [
        Outcome(("fear", "anger"), emotion, emotion, True, None, None, strata, False, (), (), 1, False)
        for emotion, strata in rows
    ]
    texts = [text.get_text() for text in plots.zoom_figure(summarise(outcomes)).axes[0].texts]
    assert texts == ["no samples"] * 2
