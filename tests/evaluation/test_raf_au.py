"""The benchmark RAF-AU against counting picture by picture."""

import numpy as np
import pytest

from actfer_jax.evaluation.benchmarks import figures_of, raf_au
from actfer_jax.evaluation.metrics import Outcome

OCCURRING, NAMED_ONLY = (1, 4, 12, 16, 25), (43,)


def outcome(aus, predicted_aus) -> Outcome:
    return Outcome(
        labels=(),
        emotion=None,
        predicted=None,
        answered=predicted_aus is not None,
        aus=aus,
        predicted_aus=predicted_aus,
        strata=(),
        inspected=False,
        regions=(),
        calls=(),
        turns=1,
        truncated=False,
    )


def outcomes(seed: int) -> list[Outcome]:
    """AU16 is never named, AU43 never coded; some pictures have no action unit, and some no answer."""
    rng = np.random.default_rng(seed)

    def some(aus) -> frozenset[int]:
        return frozenset(au for au in aus if rng.random() < 0.4)

    played = [
        outcome(some(OCCURRING), some((1, 4, 12, 25, *NAMED_ONLY)) if rng.random() < 0.9 else None) for _ in range(80)
    ]
    return [*played, outcome(frozenset(), frozenset({4})), outcome(None, frozenset({1}))]


@pytest.mark.parametrize("seed", range(3))
def test_units_that_occur_are_counted_and_others_ignored(seed):
    played = outcomes(seed)
    found = raf_au.measure(played, config=raf_au.Config(), seed=0)
    coded = [(one.aus, one.predicted_aus or frozenset()) for one in played if one.aus is not None]
    hits = {au: sum(au in true and au in named for true, named in coded) for au in OCCURRING}
    claims = {au: sum((au in true) + (au in named) for true, named in coded) for au in OCCURRING}
    by_hand = {f"AU{au}": 2 * hits[au] / claims[au] for au in OCCURRING}
    assert {au: entry["f1"] for au, entry in found["aus"].items()} == pytest.approx(by_hand)
    assert by_hand["AU16"] == 0.0 < by_hand["AU12"]
    assert found["f1"]["value"] == pytest.approx(np.mean([*by_hand.values()]))
    assert found["f1_micro"]["value"] == pytest.approx(2 * sum(hits.values()) / sum(claims.values()))
    assert found["f1"]["low"] < found["f1"]["value"] < found["f1"]["high"]
    assert (found["pictures"], found["resampled"]) == (81, "samples")
    assert set(figures_of(raf_au, found)) == {"f1", "f1_micro"}


def test_the_report_has_a_row_for_each_unit_and_published_figures_apart():
    summaries = {
        control: raf_au.measure(outcomes(seed), config=raf_au.Config(), seed=0)
        for seed, control in enumerate(("normal", "no_tools"))
    }
    measured, _, published = raf_au.report(summaries).partition("published, not measured here")
    (row,) = [line.split() for line in measured.splitlines() if line.startswith("AU12 ")]
    entry = summaries["normal"]["aus"]["AU12"]
    occurs = entry["true_positives"] + entry["false_negatives"]
    f1s = [f"{100 * summary['aus']['AU12']['f1']:.1f}" for summary in summaries.values()]
    assert row == ["AU12", "lip", "corner", "puller", str(occurs), *f1s]
    (facial_r1,) = [line for line in published.splitlines() if line.startswith("Facial-R1 ")]
    assert "70.2" in facial_r1 and "FEA-20K" in facial_r1 and "2511.10254" in facial_r1
    only_null = raf_au.measure([outcome(frozenset(), frozenset({4}))], config=raf_au.Config(), seed=0)
    assert only_null["f1"]["value"] is None and only_null["f1_micro"]["value"] is None and only_null["aus"] == {}
