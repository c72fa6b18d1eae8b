"""Metrics files that survive kills, alarms, progress, and workdirs that refuse another run."""

import json
import resource
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from actfer_jax.runs.metrics import (
    Goodput,
    MetricWriter,
    Progress,
    ResourceMeter,
    compilations_told,
    is_timing,
    read_metrics,
)
from actfer_jax.training.rewind import rewind


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
        writer.write_board({"seed": 0, "model.layers": 4})
        writer.write(3, {"reward/total": 0.25})
        writer.write_histograms(3, {"rewards": np.array([0.0, 0.25, 1.0])})
        writer.write_images(3, {"episode": np.full((8, 6, 3), 200, np.uint8)})
        writer.write_texts(3, {"said": "<think>hm</think>"})
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert set(events.Tags()["tensors"]) >= {"learning/reward", "learning/rewards of a step", "episode", "said"}
    (start,) = (
        HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content).session_start_info
        for tag in events.PluginTagToContent("hparams")
        if "session_start" in tag
    )
    assert start.hparams["model.layers"].number_value == 4 and start.hparams["seed"].number_value == 0
    (total,) = events.Tensors("learning/reward")
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


def test_a_program_is_named_as_it_compiles(caplog):
    def _prefill(x):
        return x + 1

    caplog.set_level("INFO")
    program, inputs = jax.jit(_prefill), [jnp.asarray(np.ones(n, np.float32)) for n in (3, 4)]
    with compilations_told():
        for value, lines in ((inputs[0], 1), (inputs[0], 1), (inputs[1], 2)):
            program(value)
            assert caplog.messages == ["compiling prefill (once per shape)"] * lines


def test_the_peak_of_the_fullest_device(monkeypatch):
    meter = ResourceMeter()
    assert "perf/hbm_peak" not in meter.metrics()  # CPU devices do not say it
    stats = [{"bytes_in_use": 9, "peak_bytes_in_use": peak} for peak in (5, 7, 6)]
    devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in [*stats, None]]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert meter.metrics()["perf/hbm_peak"] == 7
    meter.close()


def test_progress_leaves_out_the_step_that_compiles():
    times = iter([100.0, 102.0, 104.0])
    progress = Progress(4000, clock=lambda: next(times))
    progress.count(11)
    assert progress.tell() == "step 11/4000"
    progress.count(12)
    progress.count(13)
    line = progress.tell({"reward/total": 0.123456})
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
