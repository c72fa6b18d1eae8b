"""Metrics files that survive kills, alarms, progress, and workdirs that refuse another run."""

import json
import os
import resource
import subprocess
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from actfer_jax.runs.metrics import (
    Alarms,
    Goodput,
    MetricWriter,
    Progress,
    ResourceMeter,
    WorkdirError,
    check_workdir,
    is_timing,
    manifest_config,
    read_metrics,
    write_manifest,
)
from actfer_jax.training.rewind import rewind


def config(**changes) -> ml_collections.ConfigDict:
    model = {"layers": 4, "path": None}
    defaults = {"seed": 0, "steps": 10, "logging": {"every": 1}, "model": model, "classes": ("fear", "anger")}
    return ml_collections.ConfigDict({**defaults, **changes})


def test_records_are_exact_and_sorted(tmp_path):
    values = {"z": np.float32(0.1), "a": 1e-320, "count": np.int64(7), "ok": True}
    values |= {"m": jnp.float32(1 / 3), "h": jnp.bfloat16(1.5)}
    with MetricWriter(tmp_path) as writer:
        writer.write(0, values)
        writer.write(5, {"loss": float("nan"), "ratio": jnp.inf})
    first, second = read_metrics(tmp_path)
    assert list(first) == ["step", *sorted(values)]
    assert all(first[name] == float(values[name]) for name in values)
    assert isinstance(first["count"], int)
    assert second == {"step": 5, "loss": None, "ratio": None}


def test_tensorboard_shows_all_kinds(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write_hparams(config())
        writer.write(3, {"reward/total": 0.25})
        writer.write_images(3, {"episode": np.full((8, 6, 3), 200, np.uint8)})
        writer.write_texts(3, {"said": "<think>hm</think>"})
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert set(events.Tags()["tensors"]) >= {"reward/total", "episode", "said"}
    (start,) = (
        HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content).session_start_info
        for tag in events.PluginTagToContent("hparams")
        if "session_start" in tag
    )
    assert start.hparams["model.layers"].number_value == 4 and start.hparams["seed"].number_value == 0
    (total,) = events.Tensors("reward/total")
    assert total.step == 3 and make_ndarray(total.tensor_proto) == 0.25


@pytest.mark.parametrize("bad", [np.zeros(2), "0.5", None, 1j])
def test_what_is_not_a_number_is_refused_by_name(bad, tmp_path):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match="reward/total"):
        writer.write(0, {"reward/total": bad})
    assert read_metrics(tmp_path) == []


def test_a_step_is_written_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(2, {"x": 1})
        with pytest.raises(ValueError, match="step 2"):
            writer.write(2, {"y": 1})


@pytest.mark.parametrize("resume_step", [0, 4, 5, 9])
def test_resuming_drops_what_came_after(resume_step, tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(0, 9, 2):
            writer.write(step, {"loss": 1 / (step + 1)})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 10, "lo')
    assert len(read_metrics(tmp_path)) == 5
    rewind(tmp_path, resume_step, explained=10)
    with MetricWriter(tmp_path) as writer:
        kept = [step for step in range(0, 9, 2) if step <= resume_step]
        assert [record["step"] for record in read_metrics(tmp_path)] == kept
        for step in range(0, 9, 2):
            if step not in kept:
                writer.write(step, {"loss": 1 / (step + 1)})
    assert path.read_bytes() == whole


@given(cut=st.integers(0, 10_000))
def test_cut_anywhere_only_the_last_record_is_lost(cut, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cut")
    lines = [json.dumps({"step": step, "loss": 0.1 * step}) + "\n" for step in range(5)]
    text = "".join(lines)[: cut % (len("".join(lines)) + 1)]
    (directory / "metrics.jsonl").write_text(text)
    assert [record["step"] for record in read_metrics(directory)] == list(range(text.count("\n")))


def test_a_damaged_line_is_named(tmp_path):
    for line in ("{", "[]", '{"loss": 1}', '{"step": "1"}'):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0}}\n{line}\n')
        with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
            MetricWriter(tmp_path)


def test_no_room_names_the_file_and_loses_nothing_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricWriter(tmp_path) as writer:
        writer.write(0, {"loss": 0.1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        try:
            with pytest.raises(OSError, match=r"metrics\.jsonl"):
                writer.write(1, {"loss" * 2000: 0.1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 0.1}]


def test_timings_are_told_apart():
    assert all(map(is_timing, ("perf/rollout_s", "perf/host_rss", "tool/zoom/latency_p95")))
    assert not any(map(is_timing, ("tool/zoom/rate", "policy/loss", "mismatch/logp_abs_diff", "uc/ema/class/fear")))


def test_compilations_are_counted():
    double = jax.jit(lambda x: x * 2 + 1)
    inputs = [jnp.asarray(np.ones(n, np.float32)) for n in (3, 4, 5)]
    meter = ResourceMeter()
    counts = []
    for value in (inputs[0], inputs[0], inputs[1]):
        double(value).block_until_ready()
        counts.append(meter.metrics()["perf/compilations"])
    assert counts == [1, 1, 2]
    assert 1e7 < meter.metrics()["perf/host_rss"] < 1e12
    meter.close()
    double(inputs[2])
    assert meter.metrics()["perf/compilations"] == 2


def test_the_peak_of_the_fullest_device(monkeypatch):
    meter = ResourceMeter()
    assert "perf/hbm_peak" not in meter.metrics()  # CPU devices do not say it
    stats = [{"bytes_in_use": 9, "peak_bytes_in_use": peak} for peak in (5, 7, 6)]
    devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in [*stats, None]]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert meter.metrics()["perf/hbm_peak"] == 7
    meter.close()


def test_progress_leaves_out_the_step_that_compiles():
    times = iter([0.0, 100.0, 102.0, 104.0])
    progress = Progress(4000, start_step=10, clock=lambda: next(times))
    assert "100.00 s/step" in progress.update(11)
    progress.update(12)
    line = progress.update(13, {"reward/total": 0.123456})
    assert line == "step 13/4000 | 2.00 s/step | 2 h 12 min left | reward/total 0.1235"


def test_goodput_counts_what_is_kept_over_all_starts():
    first = Goodput(1000.0, clock=lambda: 1100.0)
    first.add(30.0)
    saved = first.productive
    assert first.share() == pytest.approx(0.3)
    first.add(50.0)  # Lost: the machine goes before the next checkpoint.
    second = Goodput(1000.0, saved, clock=lambda: 1300.0)
    second.add(90.0)
    assert second.share() == pytest.approx(120 / 300)


def steps_of_alarms(records) -> list[tuple[int, str]]:
    alarms = Alarms()
    return [(step, message) for step, metrics in records for message in alarms.update(step, metrics)]


def test_alarm_when_a_class_is_never_or_always_zoomed():
    rates = {"zoom_rate/class/fear": 0.01, "zoom_rate/class/anger": 1.0, "zoom_rate/class/neutral": 0.5}
    found = steps_of_alarms((step, rates) for step in range(30))
    assert [step for step, _ in found] == [9, 9]
    assert "class/fear has been 1.0%" in found[0][1] and "class/anger has been 100.0%" in found[1][1]
    # One query of a class a step is no evidence: now all, now none of its rollouts zoom.
    assert steps_of_alarms((step, {"zoom_rate/class/fear": step % 2}) for step in range(30)) == []
    # Set off again after it has been away for a while.
    rates = [0.0] * 12 + [0.5] * 12 + [0.0] * 12
    assert [step for step, _ in steps_of_alarms(enumerate({"zoom_rate/class/fear": rate} for rate in rates))] == [9, 33]


def test_alarm_when_entropy_halves_within_fifty_steps():
    fast = [(step, {"policy/entropy": 2.0 - step / 40}) for step in range(0, 80, 5)]
    ((step, message),) = steps_of_alarms(fast)
    assert step == 45 and "from 2 at step 0 to 0.875" in message
    assert steps_of_alarms((step, {"policy/entropy": 2.0 - step / 100}) for step in range(0, 101, 5)) == []


def test_alarm_when_turns_are_truncated():
    ((step, message),) = steps_of_alarms(enumerate({"length/truncated": share} for share in (0.1, 0.11, 0.2)))
    assert step == 1 and "11.0%" in message


def test_alarm_when_only_the_form_is_learned():
    def scores(gain):
        return [(step, {"reward/format": 0.97, "reward/emotion": 0.5 + gain * step}) for step in range(60)]

    ((step, message),) = steps_of_alarms(scores(0.0))
    assert step == 50 and "from 0.500 to 0.500" in message
    assert steps_of_alarms(scores(0.002)) == []
    # Logged now and then.
    assert [step for step, _ in steps_of_alarms(scores(0.0)[::20] + [(120, scores(0.0)[0][1])])] == [120]
    assert steps_of_alarms([(0, {}), (1, {"policy/entropy": float("nan")})]) == []
    # A policy that is right does not rise any more.
    assert steps_of_alarms((step, {"reward/format": 0.97, "reward/emotion": 0.85}) for step in range(60)) == []


def test_an_alarm_about_a_value_at_its_limit_is_not_repeated():
    around = [(step, {"length/truncated": 0.12 if step % 10 else 0.05}) for step in range(100)]
    assert [step for step, _ in steps_of_alarms(around)] == [1]


def test_manifest_says_what_ran(tmp_path):
    check_workdir(tmp_path / "run", config())
    started = write_manifest(tmp_path / "run", config(checkpoint={"every": 3}), "abc")["started"]
    again = write_manifest(tmp_path / "run", config(checkpoint={"every": 7}), "abc")
    assert again["started"] == started and again["checkpoint_every"] == 3
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["model"]["layers"] == 4 and manifest["seed"] == 0 and manifest["prompts_hash"] == "abc"
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["devices"]["count"] == jax.device_count()
    head = subprocess.run(["git", "-C", os.path.dirname(__file__), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert manifest["git_commit"] in (None, head.stdout.strip())


def test_a_workdir_of_another_config_is_refused_by_key(tmp_path):
    write_manifest(tmp_path, config(seed=3), "abc")
    check_workdir(tmp_path, config())  # nothing was done there
    write_manifest(tmp_path, config(), "abc")
    MetricWriter(tmp_path).close()
    check_workdir(tmp_path, config())
    check_workdir(tmp_path, config(steps=20, logging={"every": 3}))
    # Other hosts and devices, with the data elsewhere on their disks.
    moved = {"mesh": {"update": (2, 1, 1)}, "data": {"cache_directory": "/data"}, "rollout": {"tool_threads": 8}}
    check_workdir(tmp_path, config(**moved, evaluation={"data": {"cache_directory": "/data"}}))
    with pytest.raises(WorkdirError, match=r"another config: rollout.chunk \('absent' there, 8 here\);"):
        check_workdir(tmp_path, config(rollout={"tool_threads": 8, "chunk": 8}))
    with pytest.raises(WorkdirError, match=r"model.layers \(4 there, 6 here\), seed \(0 there, 1 here\)") as error:
        check_workdir(tmp_path, config(seed=1, model={"layers": 6, "path": None}))
    assert " steps" not in str(error.value) and "--workdir" in str(error.value)
    for damaged in ("{", "[]", '{"config": 3}', "{}"):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(WorkdirError, match="manifest.json"):
            check_workdir(tmp_path, config())


def test_a_run_whose_cache_was_called_data_directory_goes_on(tmp_path, caplog):
    def data(**keys) -> dict:
        return {"name": "synth_faces", "split": "train", **keys}

    old = {"data": data(directory="~/faces"), "evaluation": {"data": data(directory="~/faces"), "queries": 7}}
    write_manifest(tmp_path, config(**old), "abc")
    MetricWriter(tmp_path).close()
    keys = {"directory": "", "cache_directory": "~/elsewhere"}
    new = {"data": data(**keys), "evaluation": {"data": data(**keys), "queries": 7}}
    with caplog.at_level("INFO"):
        check_workdir(tmp_path, config(**new))
    assert "data.directory, '~/faces', is read as data.cache_directory" in caplog.text
    assert manifest_config(tmp_path)["evaluation"]["data"] == data(directory="", cache_directory="~/faces")
    with pytest.raises(WorkdirError, match=r"another config: data.split \('train' there, 'test' here\);"):
        check_workdir(tmp_path, config(**(new | {"data": data(**keys) | {"split": "test"}})))
    # Of other data the directory is what it says.
    other = {"data": {"name": "mine", "directory": "/photographs"}}
    write_manifest(tmp_path, config(**other), "abc")
    assert manifest_config(tmp_path)["data"] == other["data"]


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below", "/proc/actfer"):
        with pytest.raises(WorkdirError, match="choose another with --workdir"):
            check_workdir(workdir, config())
    check_workdir(tmp_path / "a" / "b", config())
    assert list((tmp_path / "a" / "b").iterdir()) == []
