"""The windows and limits of alarms, over streams of metrics. Runs set them off in tests/training/test_alarms.py."""

import math

import pytest

from actfer_jax.runs.alarms import AlarmConfig, Alarms


def alarms_of(records, **settings) -> list[tuple[int, str]]:
    """The steps and messages of the alarms that records set off, each (step, metrics)."""
    alarms = Alarms(AlarmConfig(**settings))
    return [(step, message) for step, metrics in records for message in alarms.update(step, metrics)]


def steps_of(name: str, values, **settings) -> list[int]:
    """The steps of the alarms that the values of a metric set off; None is a step without the metric."""
    records = enumerate({} if value is None else {name: value} for value in values)
    return [step for step, _ in alarms_of(records, **settings)]


@pytest.mark.parametrize(
    ("name", "bad", "limit", "good", "key"),
    [
        ("length/truncated", 0.11, 0.1, 0.05, "truncated"),
        ("length/no_answer", 0.51, 0.5, 0.2, "no_answer"),
        ("reward/frac_zero_std", 0.91, 0.9, 0.8, "equal_rewards"),
        ("tool/align_face/success", 0.49, 0.5, 0.6, "tool_success"),
        ("tool/zoom/success", 0.0, 0.5, 1.0, "tool_success"),
        ("zoom_rate/class/fear", 0.01, 0.02, 0.5, "zoom_rate"),
        ("zoom_rate/class/fear", 1.0, 0.97, 0.5, "zoom_rate"),
    ],
)
def test_a_share_is_judged_over_its_window(name, bad, limit, good, key):
    ((step, message),) = alarms_of(enumerate([{name: bad}] * 30))
    assert step == 9 and message.startswith(f"{name} was {bad:.3g} in 10 steps (config.alarms.{key} is ")
    assert steps_of(name, [limit] * 30) == []
    # One value of ten is no evidence: of a class, a step may have one query. Steps without the metric do not count.
    assert steps_of(name, ([bad] + [good] * 9) * 3) == []
    assert steps_of(name, [bad, None] * 15, window=3) == [4]


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("mismatch/logp_abs_diff", 0.11, 0.1),
        ("policy/kl", 10.1, 10.0),
        ("vision/sensitivity_trainer", 0.0, 1e-3),
        ("vision/sensitivity_sampler", 9e-4, 0.2),
    ],
)
def test_what_breaks_a_run_is_said_at_once(name, bad, good):
    assert steps_of(name, [good, good, bad, bad]) == [2]
    assert steps_of(name, [good] * 4) == []


def test_an_alarm_is_repeated_once_its_cause_has_been_away():
    rates = [0.0] * 12 + [0.5] * 12 + [0.0] * 12
    assert steps_of("zoom_rate/class/fear", rates) == [9, 33]
    around = [0.12 if step % 10 else 0.05 for step in range(100)]
    assert steps_of("length/truncated", around, window=1) == [1]
    assert steps_of("length/truncated", around, window=1, quiet_steps=1) == list(range(1, 100, 10))


def test_alarm_when_entropy_halves():
    fast = [(step, {"policy/entropy": 2.0 - step / 40}) for step in range(0, 80, 5)]
    ((step, message),) = alarms_of(fast)
    assert step == 45 and "from 2 at step 0 to 0.875" in message
    assert alarms_of([(step, {"policy/entropy": 2.0 - step / 100}) for step in range(0, 101, 5)]) == []
    assert [step for step, _ in alarms_of(fast, trend_steps=20)] == [65]


def test_alarm_when_only_the_form_is_learned():
    def scores(gain):
        return [(step, {"reward/format": 0.97, "reward/emotion": 0.5 + gain * step}) for step in range(60)]

    ((step, message),) = alarms_of(scores(0.0))
    assert step == 50 and "from 0.500 to 0.500" in message
    assert alarms_of(scores(0.002)) == []
    # Logged now and then.
    assert [step for step, _ in alarms_of(scores(0.0)[::20] + [(120, scores(0.0)[0][1])])] == [120]
    # Data without labels.
    assert alarms_of([(step, {"reward/format": 0.97, "reward/emotion": 0.0}) for step in range(60)]) == []
    # A policy that is right does not rise any more.
    assert alarms_of([(step, {"reward/format": 0.97, "reward/emotion": 0.85}) for step in range(60)]) == []


@pytest.mark.parametrize("name", ["policy/skipped_updates", "sft/skipped_updates"])
def test_alarm_when_skipped_updates_rise(name):
    assert steps_of(name, [3] * 5 + [4] * 20) == []
    assert steps_of(name, [3] * 5 + [4] * 5 + [5] * 20) == [10]
    # The second one long after the first.
    assert steps_of(name, [3] * 5 + [4] * 11 + [5] * 20) == []


def test_what_is_not_finite_is_no_value():
    names = ("policy/entropy", "policy/kl", "mismatch/logp_abs_diff", "zoom_rate/class/fear")
    assert alarms_of([(step, dict.fromkeys(names, math.nan)) for step in range(20)]) == []


def test_a_run_that_goes_on_remembers_what_it_logged():
    """And says again what is still wrong."""
    records = [{"step": step, "length/truncated": 0.5, "policy/kl": None} for step in range(1, 10)]
    assert Alarms(AlarmConfig(), records).update(10, {"length/truncated": 0.5})
    assert not Alarms(AlarmConfig(), records[1:]).update(10, {"length/truncated": 0.5})
    assert Alarms(AlarmConfig(), [*records, *records]).update(11, {"length/truncated": 0.5})
