"""Training as a person starts it: real processes, killed and started again."""

import dataclasses
import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_line import training_refused
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import read_config
from actfer_jax.episodes.store import read_episodes
from actfer_jax.models import Qwen3VLConfig, demo_checkpoint
from actfer_jax.outputs import OutputError
from actfer_jax.parallel.finite import NotFiniteError
from actfer_jax.parallel.hosts import Interrupted, Termination
from actfer_jax.rl.estimators import ucgrpo as ucgrpo_estimator
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.rollout.engine import RolloutEngine
from actfer_jax.runs.checkpoints import CheckpointError
from actfer_jax.runs.lease import Holder, Lease
from actfer_jax.runs.metrics import WorkdirError, is_timing, read_evaluations, read_metrics
from actfer_jax.training import loop as train
from actfer_jax.training import rl_steps as reinforcement_steps
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.evaluations import Evaluations
from actfer_jax.training.state import StepOutput
from configs import ucgrpo

ROOT = Path(__file__).parents[2]
STEPS = 4
SMALL = {
    "rl": [
        "--config=configs/ucgrpo.py:demo",
        "--config.batch.queries=2",
        "--config.batch.rollouts=4",
        "--config.rollout.fill_rows=4",
        "--config.estimator.forced_arm_rate=0.5",
        "--config.estimator.n_min=0",
        "--config.estimator.ramp=0",
        "--config.logging.episodes_every=2",
    ],
    "sft": [
        "--config=configs/sft.py:demo",
        "--config.batch.queries=4",
        "--config.traces.readings_steps=2",
        "--config.logging.every=1",
    ],
}
# Sends its own process a signal at a chosen place, so that a test neither waits nor guesses.
KILLER = """
import os, runpy, signal, sys
from actfer_jax.runs import checkpoints, metrics
from actfer_jax.rollout import engine
number, place, step = getattr(signal, sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
if number not in (signal.SIGKILL, signal.SIGSTOP):
    signal.signal(number, signal.SIG_DFL)  # ignored where the tests run in the background
cls, name, where = {
    "after_metrics": (metrics.MetricWriter, "write", 0),
    "during_save": (checkpoints.Checkpoints, "save", 0),
    "in_rollout": (engine.RolloutEngine, "_prefill", 4),
}[place]
original = getattr(cls, name)
def method(self, *args, **kwargs):
    result = original(self, *args, **kwargs)
    if args[where] == step:
        os.kill(os.getpid(), number)
    return result
setattr(cls, name, method)
sys.argv[0] = "train"
runpy.run_module("actfer_jax.train", run_name="__main__", alter_sys=True)
"""


def arguments_of(shared: Path, algorithm: str, workdir: Path | str, *extra: str) -> list[str]:
    return [
        *SMALL[algorithm],
        f"--workdir={workdir}",
        f"--config.steps={STEPS}",
        "--config.checkpoint.every=1",
        f"--config.data.cache_directory={shared}/data",
        "--config.data.size=14",
        f"--config.evaluation.data.cache_directory={shared}/data",
        "--config.evaluation.data.size=7",
        "--config.evaluation.queries=7",
        "--config.evaluation.controls=()",
        *extra,
    ]


def begin(
    shared: Path, algorithm: str, workdir: Path | str, *extra: str, killer: list[str] | None = None
) -> subprocess.Popen:
    program = ["-m", "actfer_jax.train"] if killer is None else ["-c", KILLER, *killer]
    command = [sys.executable, *program, *arguments_of(shared, algorithm, workdir, *extra)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{shared}/programs", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of machine code: compiles faster
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)


def end(process: subprocess.Popen) -> subprocess.CompletedProcess:
    with process:
        said = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def start(*arguments, **options) -> subprocess.CompletedProcess:
    return end(begin(*arguments, **options))


@pytest.fixture(scope="module", params=["rl", "sft"])
def undisturbed(request, shared) -> tuple[str, Path]:
    workdir = shared / f"{request.param}-undisturbed"
    run = start(shared, request.param, os.path.relpath(workdir, ROOT))
    assert run.returncode == 0, run.stderr[-3000:]
    assert not (workdir / "lease.json").exists()
    workdir.with_suffix(".out").write_text(run.stdout)
    workdir.with_suffix(".err").write_text(run.stderr)
    return request.param, workdir


@pytest.mark.slow
def test_the_second_step_compiles_nothing(undisturbed):
    compiled = [record["perf/compilations"] for record in read_metrics(undisturbed[1])]
    assert compiled[1] == compiled[0] > 0


def without_timings(workdir: Path) -> list[dict]:
    return [{name: value for name, value in record.items() if not is_timing(name)} for record in read_metrics(workdir)]


def assert_same_run(first: Path, second: Path) -> None:
    weights, others = (load_file(path / "policy" / "model.safetensors") for path in (first, second))
    assert weights.keys() == others.keys()
    for name in weights:
        np.testing.assert_array_equal(weights[name], others[name], err_msg=name)
    assert without_timings(first) == without_timings(second)
    records, others = (
        [(record["id"], record["token_ids"]) for record in read_episodes(path)] for path in (first, second)
    )
    assert records == others


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", ["rl"], indirect=True)
def test_a_killed_run_ends_as_the_run_that_was_not(undisturbed, shared):
    """Killed at one place; benchmarks/disturbed_training.py draws many, for both algorithms. Evaluations while training
    change nothing of it, and are made once."""
    algorithm, expected = undisturbed
    workdir = shared / f"{algorithm}-killed"
    meanwhile = ("--config.evaluation.every=1", "--config.evaluation.size=3")
    killed = start(shared, algorithm, workdir, *meanwhile, killer=["SIGKILL", "during_save", "3"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    done = read_evaluations(workdir)
    assert list(done) == ["before", "step 1", "step 2"]
    resumed = start(shared, algorithm, workdir, *meanwhile)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "continuing after step" in resumed.stderr and "waiting" not in resumed.stderr
    assert not (workdir / "superseded").exists()
    assert_same_run(expected, workdir)
    assert len(list(read_episodes(workdir))) == STEPS * 8
    runs = read_evaluations(workdir)
    assert list(runs) == [*done, "step 3", "after"] and {name: runs[name] for name in done} == done
    assert "evaluated after step 2" in killed.stderr and "evaluated after step 2" not in resumed.stderr
    assert runs["step 3"]["results"]["normal"]["episodes"] == 3
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0}, purge_orphaned_data=False).Reload()
    assert [event.step for event in events.Tensors("evaluation_part/accuracy")] == list(range(STEPS + 1))


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_ends_and_goes_on(undisturbed, shared, monkeypatch):
    """Told again and again, at other places and by other signals, one run ends as the run that was not."""
    algorithm, expected = undisturbed
    rarely = "--config.checkpoint.every=100"
    workdir = shared / f"{algorithm}-told"
    if algorithm == "sft":
        with monkeypatch.context() as patch:
            patch.setenv("ACTFER_STOPPED_STATUS", "143")
            told = start(shared, algorithm, workdir, rarely, killer=["SIGTERM", "in_rollout", "0"])
        assert told.returncode == 143, told.stderr[-3000:]
        assert "told to stop during the evaluation before training" in told.stderr
        assert not (workdir / "evaluation.json").exists()
    stops = {
        "rl": [("SIGTERM", "in_rollout", 4, 3, 0)],
        "sft": [
            ("SIGINT", "after_metrics", 2, 2, -signal.SIGINT),
            ("SIGHUP", "after_metrics", 3, 3, 128 + signal.SIGHUP),
        ],
    }
    kept = []
    for name, place, step, saved, status in stops[algorithm]:
        told = start(shared, algorithm, workdir, rarely, killer=[name, place, str(step)])
        assert told.returncode == status and "Traceback" not in told.stderr, told.stderr[-3000:]
        assert not (workdir / "lease.json").exists()
        assert f"saved step {saved} of {STEPS}" in told.stderr
        assert not (workdir / "policy").exists()
        kept.append(saved)
        assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()) == kept
    resumed = start(shared, algorithm, workdir, rarely)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_same_run(expected, workdir)


@pytest.mark.slow
def test_a_run_goes_on_in_other_pieces_and_with_more_room(undisturbed, shared):
    """And with what may change only because it is allowed, which the manifest then says."""
    algorithm, expected = undisturbed
    if algorithm == "sft":
        pytest.skip("is no different in supervised training")
    workdir = shared / "rl-other-pieces"
    shutil.copytree(expected, workdir, ignore=shutil.ignore_patterns("policy"))
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    pieces = {
        "batch.microbatches": 2,
        "batch.chunk": 64,
        "batch.length": 256,
        "batch.length_buckets": (),
        "rollout.chunk": 5,
        "rollout.fill_rows": 2,
        "rollout.tool_threads": 1,
        "rollout.prompt_tokens": 40,
        "rollout.reply_tokens": 48,
        "rollout.max_length": 256,
        "model.remat": "full",
        "alarms.window": 3,
        "evaluation": None,
    }
    changed = [f"--config.{key}={value}" for key, value in pieces.items()]
    allowed = ["--config.optimizer.weight_decay=1e-9", "--allow_changes=optimizer.weight_decay"]
    run = start(shared, algorithm, workdir, *changed, *allowed)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"continuing after step {STEPS - 1}" in run.stderr
    changes = json.loads((workdir / "manifest.json").read_text())["changes"]
    keys = {change["key"] for change in changes if not change["key"].startswith("evaluation.")}
    assert {*keys, "evaluation"} == {*pieces, "optimizer.weight_decay"}
    assert {"step": STEPS - 1, "key": "optimizer.weight_decay", "old": 0.0, "new": 1e-9} in changes
    last, others = (
        {episode["id"]: episode for episode in read_episodes(path) if episode["id"].startswith(f"{STEPS}-")}
        for path in (expected, workdir)
    )
    assert last.keys() == others.keys() and len(last) == 8
    for name, episode in last.items():
        assert others[name]["token_ids"] == episode["token_ids"]
        np.testing.assert_allclose(others[name]["logprobs"], episode["logprobs"], atol=1e-4)
        assert others[name]["advantage"] == pytest.approx(episode["advantage"], abs=1e-5)
    metrics, others = (without_timings(path)[-1] for path in (expected, workdir))
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.fixture(scope="module")
def again(undisturbed, shared) -> SimpleNamespace:
    """The same run once more, as `run`, and what was in its `workdir` `before`. In reinforcement learning that is the
    workdir of a run whose checkpoints were removed; in supervised training, which is faster, the run stands still until
    a `second` start has ended."""
    algorithm, expected = undisturbed
    workdir = shared / f"{algorithm}-again"
    if algorithm == "rl":
        shutil.copytree(expected, workdir, ignore=shutil.ignore_patterns("checkpoints"))
        before = contents(workdir)
        return SimpleNamespace(workdir=workdir, before=before, run=start(shared, algorithm, workdir))
    first = begin(shared, algorithm, workdir, killer=["SIGSTOP", "after_metrics", "3"])
    assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
    before = contents(workdir)
    second = start(shared, algorithm, workdir)
    meanwhile = contents(workdir)
    first.send_signal(signal.SIGCONT)
    ended = end(first)
    return SimpleNamespace(workdir=workdir, before=before, run=ended, pid=first.pid, second=second, meanwhile=meanwhile)


@pytest.mark.slow
def test_a_second_start_leaves_a_run_alone(undisturbed, again):
    """The first stands still until the second has ended."""
    algorithm, expected = undisturbed
    if algorithm == "rl":
        pytest.skip("is no different in supervised training, which is faster")
    second = again.second
    assert second.returncode == 1 and "Traceback" not in second.stderr
    refusal = rf"is being trained by process {again.pid} on \S+, since 20.* wait until that run ends, stop it there"
    assert re.search(refusal, second.stderr), second.stderr[-3000:]
    assert again.meanwhile == again.before
    assert again.run.returncode == 0, again.run.stderr[-3000:]
    assert_same_run(expected, again.workdir)


@pytest.mark.slow
def test_a_run_whose_checkpoints_were_removed_loses_nothing(undisturbed, again):
    algorithm, expected = undisturbed
    if algorithm == "sft":
        pytest.skip("there are no episodes in supervised training")
    workdir, before, run = again.workdir, again.before, again.run
    assert run.returncode == 0, run.stderr[-3000:]
    aside = workdir / "superseded" / f"steps-1-{STEPS}"
    assert f"steps 1 to {STEPS} goes further than any checkpoint that is left" in run.stderr
    assert str(aside) in run.stderr
    kept = ("episodes/", "policy/", "metrics.jsonl")
    assert {name: data for name, data in contents(aside).items() if name.startswith(kept)} == {
        name: data for name, data in before.items() if name.startswith(kept)
    }
    assert json.loads((aside / "evaluation.json").read_text()).keys() == {"after"}
    assert json.loads((workdir / "evaluation.json").read_text()).keys() == {"before", "after"}
    assert_same_run(expected, workdir)
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0}, purge_orphaned_data=False).Reload()
    assert [event.step for event in events.Tensors("time/seconds, step")] == list(range(1, STEPS + 1))
    assert [event.step for event in events.Tensors("evaluation/accuracy")] == [0, STEPS]


def contents(directory: Path) -> dict[str, bytes]:
    """What is in the files of a run, but for the lease and compiled programs."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "lease.json"}


@pytest.mark.slow
def test_a_seed_gives_one_run(undisturbed, again):
    """And a table that says of each evaluation what it was of."""
    algorithm, expected = undisturbed
    assert again.run.returncode == 0, again.run.stderr[-3000:]
    assert_same_run(expected, again.workdir)
    evaluations = json.loads((expected / "evaluation.json").read_text())
    assert evaluations.keys() == {"before", "after"}
    printed = expected.with_suffix(".out").read_text()
    *_, before, after, _ = printed[: printed.index("---")].splitlines()
    given = os.path.relpath(expected, ROOT)
    for name, line, step in (("before", before, 0), ("after", after, STEPS)):
        assert list(evaluations[name]) == ["provenance", "step", "unreadable", "results"]
        assert line.startswith(f"{name}: synth_faces test, 7 samples | {given}, step {step} | actfer_jax ")
    assert "accuracy" in printed


@pytest.mark.slow
def test_an_evaluation_of_an_older_version_still_stands_in_the_table(undisturbed, tmp_path, capsys):
    evaluations = json.loads((undisturbed[1] / "evaluation.json").read_text())
    del evaluations["before"]["provenance"]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluations))
    config = read_config(ucgrpo.get_config("demo"), TrainConfig, "config")
    config = dataclasses.replace(config, steps=STEPS)
    workdir = epath.Path(tmp_path)
    agent = SimpleNamespace(engine=lambda **options: None)
    Evaluations(config, agent, workdir, Termination(), Lease(workdir)).after(None)
    before, after, *table = capsys.readouterr().out.splitlines()
    assert before == "before: made by an older version, which did not keep where it comes from"
    assert after.startswith("after: synth_faces test, 7 samples | ") and len(table) == 6


@pytest.mark.slow
def test_metrics_say_what_happened(undisturbed):
    algorithm, workdir = undisturbed
    records = read_metrics(workdir)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    if algorithm == "sft":
        assert records[-1]["sft/loss"] > 0
        return
    for record in records:
        # The demo's rate rises over its first three updates, and a step is one.
        assert record["learning_rate"] == pytest.approx(8e-4 * min(record["step"] - 1, 3) / 3)
        # On policy the trainer's ratio is 1: sampler and trainer are one model.
        assert record["mismatch/logp_abs_diff_max"] < 1e-4
        assert abs(record["policy/ratio_max"] - 1) < 1e-3
    # Rewards and lengths in the metrics are those of the episodes.
    for record in records:
        episodes = [one for one in read_episodes(workdir) if one["id"].startswith(f"{record['step']}-")]
        totals = [episode["reward"]["total"] for episode in episodes]
        assert np.mean(totals) == pytest.approx(record["reward/total"], abs=1e-6)
        replied = [mask[mask.index(1) :].count(0) for mask in (episode["loss_mask"] for episode in episodes)]
        assert np.mean(replied) == pytest.approx(record["length/tool_tokens"])


@pytest.mark.slow
def test_the_canary_of_a_run_that_sees_its_crops_is_quiet(undisturbed):
    """Sampler and trainer see the same, by programs that have nothing in common but the model."""
    algorithm, workdir = undisturbed
    if algorithm == "sft":
        pytest.skip("there are no episodes in supervised training")
    first, *others = read_metrics(workdir)
    assert first["vision/sensitivity_sampler"] > 0.01
    assert first["vision/sensitivity_trainer"] == pytest.approx(first["vision/sensitivity_sampler"], rel=1e-3)
    assert not any("vision/" in name for record in others for name in record)
    log = workdir.with_suffix(".err").read_text()
    assert "vision/sensitivity" not in log
    assert " | mismatch/logp_abs_diff " in log and " | policy/skipped_updates 0" in log


@pytest.fixture
def compiled(undisturbed, shared, monkeypatch) -> Iterator[None]:
    """A run in this process takes the programs that the undisturbed one has compiled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{shared}/programs")
    jax.config.update("jax_compilation_cache_dir", f"{shared}/programs")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_whatever_breaks_in_a_run_sets_off_its_alarm(undisturbed, shared, compiled, tmp_path, monkeypatch, caplog):
    """One thing after the other breaks. Meanwhile no step holds the pixels of the one before."""
    if undisturbed[0] == "sft":
        pytest.skip("there are no episodes in supervised training")
    raw_config = ucgrpo.get_config("demo")
    del raw_config.evaluation
    raw_config.data.cache_directory, raw_config.data.size, raw_config.steps = f"{shared}/data", 14, 20
    raw_config.batch.queries, raw_config.batch.rollouts, raw_config.rollout.fill_rows = 2, 4, 4
    raw_config.checkpoint.every, raw_config.logging.every = 1, 5  # alarms do not wait for a record
    raw_config.logging.records_every = 0  # a thread writes them, and holds the episodes until then
    raw_config.alarms.update({"window": 2, "trend_steps": 2, "format": 0.8, "kl": 5.0, "skipped_in_a_row": 3})
    break_a_run(monkeypatch, raw_config.steps)
    with (
        caplog.at_level("WARNING"),
        pytest.raises(NotFiniteError, match="step 9: .* 3 steps skipped .*--allow_changes="),
    ):
        train.train(read_config(raw_config, TrainConfig, "config"), epath.Path(tmp_path), raw_config, Termination())
    lines = [re.match(r"step (\d+): (\S+) (was|is|rose|fell) ", record.getMessage()) for record in caplog.records]
    found = {line[2]: int(line[1]) for line in lines if line}
    assert any(name.startswith("zoom_rate/class/") for name in found)
    assert {name: step for name, step in found.items() if not name.startswith("zoom_rate/")} == {
        "vision/sensitivity_trainer": 1,
        "mismatch/logp_abs_diff": 1,
        "tool/align_face/success": 3,
        "tool/zoom/success": 3,
        "reward/format": 3,
        "policy/skipped_updates": 3,
        "policy/kl": 4,
        "length/truncated": 4,
        "length/no_answer": 4,
        "reward/frac_zero_std": 5,
        "policy/entropy": 6,
    }
    # The last checkpoint is that of the last sound step.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["7", "8"]


def break_a_run(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """In step 1 the update loses its crops. In 2 and 3 images are grey, no face is found, and gradients are not finite;
    the scenes of 4 are grey too, since they are made during the step before. From 4 on weights are noise, from 6 on
    they are large, from 7 on gradients are not finite again."""
    now, pixels, rng = [0], [], np.random.default_rng(0)

    def broken(owner: object, name: str, steps: range, change: Callable[..., object]) -> None:
        original = getattr(owner, name)

        def function(*args, **options):
            return change(original, *args, **options) if now[0] in steps else original(*args, **options)

        monkeypatch.setattr(owner, name, function)

    def without_crops(make_batch, *args, **options):
        batch = make_batch(*args, **options)
        return batch._replace(views=jax.tree.map(np.zeros_like, batch.views))

    def noisy(x: jax.Array) -> jax.Array:
        value = np.asarray(x)
        return jax.device_put(value + np.std(value) * rng.standard_normal(value.shape).astype(value.dtype))

    def watched(run, *args, **options):
        if options.get("tokens") is not None:  # the canary, which compares with the step's own episodes
            return run(*args, **options)
        gc.collect()
        assert not any(view() for view in pixels)
        result = run(*args, **options)
        pixels[:] = [weakref.ref(view) for group in result.rollouts for rollout in group for view in rollout.views]
        return result

    def no_numbers(function, *args, **options):
        return np.nan * function(*args, **options)

    broken(reinforcement_steps, "make_batch", range(1, 2), without_crops)
    broken(ViewEncoder, "__call__", range(2, 4), lambda call, self, pixels: call(self, np.full_like(pixels, 128)))
    broken(Toolbox, "faces", range(2, 4), lambda *_: ())
    broken(ucgrpo_estimator, "token_advantages", range(2, 4), no_numbers)
    broken(ucgrpo_estimator, "token_advantages", range(7, steps), no_numbers)
    broken(RolloutEngine, "run", range(1, steps), watched)
    make_steps = train.rl_steps

    def broken_steps(*args):
        step_function = make_steps(*args)
        changes = {4: noisy, 6: lambda x: 3 * x}

        def step(state, number):
            now[0] = number
            if number in changes:
                params = jax.tree.map(changes[number], state.train.params)
                state = state._replace(train=state.train._replace(params=params))
            return step_function(state, number)

        return step

    monkeypatch.setattr(train, "rl_steps", broken_steps)


@pytest.mark.slow
def test_tensorboard_shows_episodes_with_what_they_looked_at(undisturbed):
    algorithm, workdir = undisturbed
    if algorithm == "sft":
        pytest.skip("there are no episodes in supervised training")
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0}).Reload()
    shown, said = events.Tensors("episodes/worst"), events.Tensors("episodes/worst, text")
    assert [event.step for event in shown] == [event.step for event in said] == [2, 4]
    width, height, picture = make_ndarray(shown[0].tensor_proto)
    assert Image.open(io.BytesIO(picture)).size == (int(width), int(height))
    for event in said:
        played = [one for one in read_episodes(workdir) if one["id"].startswith(f"{event.step}-")]
        worst = min(episode["reward"]["total"] for episode in played)
        assert make_ndarray(event.tensor_proto).item().decode().endswith(f"reward: {worst:.2f}")
    # TensorBoard takes a name for what it first was.
    for name in ("episodes/worst", "episodes/at random"):
        assert name in events.PluginTagToContent("images")
        assert f"{name}, text" in events.PluginTagToContent("text")
    assert "learning/advantages of a step" in events.PluginTagToContent("histograms")


@pytest.mark.slow
def test_a_run_does_not_become_shorter(undisturbed, shared, monkeypatch):
    arguments = arguments_of(shared, *undisturbed, f"--config.steps={STEPS - 1}")
    assert f"has trained {STEPS}" in training_refused(monkeypatch, *arguments)


def documented_metrics() -> list[str]:
    """Patterns of the names in docs/metrics.md: `{a,b}` is one of these, `{emotion}` any word."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    choices = [re.sub(r"\{(\w+(?:,\w+)+)\}", lambda found: f"({found[1].replace(',', '|')})", name) for name in names]
    return [re.sub(r"\{\w+\}", r"\\w+", name) for name in choices]


@pytest.mark.slow
def test_every_metric_is_documented(undisturbed):
    _, workdir = undisturbed
    patterns = documented_metrics()
    assert len(patterns) > 30
    names = set().union(*read_metrics(workdir)) - {"step"}
    assert [name for name in sorted(names) if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


@pytest.mark.slow
def test_every_part_of_the_loss_at_once(shared):
    """A reference, several updates a batch, the trainer's own ratio, sequence ratios: one short run, and the same
    with the reference in host memory."""
    workdir = shared / "rl-all"
    changes = {
        "steps": 2,
        "loss.kl": 0.05,
        "loss.ratio": "sequence_token",
        "loss.importance_cap": 2.0,
        "loss.entropy_bonus": 0.01,
        "batch.updates": 3,
        "batch.microbatches": 2,
        "rollout.temperature": 0.8,
        "optimizer.learning_rate": 1e-3,
        "optimizer.eps": 1e-8,
        "estimator.credit": "decision",
    }
    arguments = [f"--config.{key}={value}" for key, value in changes.items()]
    run = start(shared, "rl", workdir, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    offloaded = start(shared, "rl", shared / "rl-offloaded", *arguments, "--config.loss.reference_offload=True")
    assert offloaded.returncode == 0, offloaded.stderr[-3000:]
    assert without_timings(workdir) == without_timings(shared / "rl-offloaded")
    first = read_metrics(workdir)[0]
    assert first["vision/sensitivity_trainer"] == pytest.approx(first["vision/sensitivity_sampler"], rel=1e-3)
    for record in read_metrics(workdir):
        assert record["mismatch/logp_abs_diff_max"] < 1e-4
        # The third update of a batch is no longer at the policy that sampled it, nor at the reference.
        assert abs(record["policy/ratio_max"] - 1) > 1e-4
        assert record["policy/kl"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", ["sft"], indirect=True)
def test_an_update_that_overflows_stops_the_run_before_anything_is_written(undisturbed, shared):
    algorithm = undisturbed[0]
    workdir = shared / f"{algorithm}-overflow"
    changes = ["learning_rate=3.4e38", "weight_decay=1", "warmup_steps=0", "schedule=constant"]
    run = start(shared, algorithm, workdir, *(f"--config.optimizer.{change}" for change in changes))
    assert run.returncode == 1
    assert re.search(r"error: step 1: the update left \d+ of \d+ arrays .*\(params/.*_norm is \d", run.stderr)
    assert "Traceback" not in run.stderr
    assert read_metrics(workdir) == [] and not list((workdir / "checkpoints").iterdir())
    assert not (workdir / "policy").exists() and list(read_episodes(workdir)) == []


def test_a_checkpoint_that_is_not_finite_is_not_trained_on(tmp_path, monkeypatch):
    raw_config = ucgrpo.get_config("demo")
    del raw_config.evaluation
    raw_config.data.cache_directory, raw_config.checkpoint.every, raw_config.steps = str(tmp_path / "data"), 1, 1
    config = read_config(raw_config, TrainConfig, "config")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # else train() sets one for the whole process
    monkeypatch.setattr(train, "open_source", lambda config: [])

    def spoil(state, step):
        moments = jax.tree.map(lambda x: x * np.nan if x.ndim > 2 else x, state.train.opt_state)
        return StepOutput(state._replace(train=state.train._replace(opt_state=moments)), {})

    monkeypatch.setattr(train, "rl_steps", lambda *_: spoil)
    workdir = epath.Path(tmp_path / "run")
    train.train(config, workdir, raw_config, Termination())
    with pytest.raises(NotFiniteError, match=r"run/checkpoints/1: \d+ arrays are not finite \(train/opt_state/.*move"):
        train.train(config, workdir, raw_config, Termination())


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(undisturbed, shared, monkeypatch):
    before = contents(undisturbed[1])
    said = training_refused(monkeypatch, *arguments_of(shared, *undisturbed, "--config.seed=7"))
    assert "seed (0 there, 7 here)" in said
    assert contents(undisturbed[1]) == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"before": 3}', '{"before": {"step": 0}}', '{"before": {"step": 0, "results": {"a": {}}}}'],
)
def test_a_damaged_evaluation_is_named(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"evaluation\.json cannot be read .*move it away"):
        read_evaluations(tmp_path)


@pytest.fixture
def run_stubbed(tmp_path, monkeypatch) -> Callable[[Path, Termination, Callable[[int], object]], None]:
    """Trains in this process, with a function of the step in place of what a step does."""
    raw_config = ucgrpo.get_config("demo")
    del raw_config.evaluation
    raw_config.data.cache_directory = str(tmp_path / "data")
    config = read_config(raw_config, TrainConfig, "config")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # else train() sets one for the whole process
    monkeypatch.setattr(train, "open_source", lambda config: [])

    def run(workdir: Path, stop: Termination, do: Callable[[int], object]) -> None:
        def make_step(*_):
            return lambda state, step: do(step) or StepOutput(state, {"loss": 1 / step})

        monkeypatch.setattr(train, "rl_steps", make_step)
        train.train(config, epath.Path(workdir), raw_config, stop)

    return run


# Orbax leaves threads behind when it cannot write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_said_to_be_saved_is(tmp_path, run_stubbed, caplog):
    """A run that is told to stop, with no room for its checkpoint; then with room; then before its first step ends, and
    before it begins."""
    told = Termination()

    def tell(step: int) -> None:
        told.noticed = signal.SIGTERM

    def stopped(workdir: Path, do: Callable[[int], object] = tell) -> None:
        told.noticed = 0
        caplog.clear()
        run_stubbed(workdir, told, do)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="step 1 could not be saved.*the disk is full"):
            stopped(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "told to stop" not in caplog.text
    with pytest.raises(Interrupted):
        stopped(tmp_path / "run")
    assert "told to stop: saved step 1 of 160" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()

    with pytest.raises(Interrupted):
        stopped(tmp_path / "other", lambda step: tell(step) or told.check())
    assert "told to stop before the first step was done" in caplog.text and "saved" not in caplog.text
    assert list((tmp_path / "other" / "checkpoints").iterdir()) == []
    with pytest.raises(Interrupted):
        run_stubbed(tmp_path / "another", told, tell)
    assert "told to stop while loading; the same command starts again" in caplog.text


# Orbax leaves threads behind when it may not commit.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("also_told", [False, True])
def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path, run_stubbed, also_told):
    other = Holder("a", "worker-7", 4321, "2026-01-01 09:30:00+00:00", "another boot", "17")
    lease, told, before = tmp_path / "run" / "lease.json", Termination(), {}

    def take_over(step: int) -> None:
        if step == 3:
            lease.write_bytes(other.written())
            before.update(contents(tmp_path / "run"))
            if also_told:
                told.noticed = signal.SIGTERM
                told.check()

    with pytest.raises(WorkdirError, match="was taken over by process 4321 on worker-7.*writes nothing more"):
        run_stubbed(tmp_path / "run", told, take_over)
    after = contents(tmp_path / "run")
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    assert {name for name in after if before.get(name) != after[name] and "tfevents" not in name} == set()
    assert lease.read_bytes() == other.written()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda policy: policy.write_text("mine"), "policy is a file, not a directory"),
        (lambda policy: policy.symlink_to("nowhere"), "policy is a link to nowhere, which is not there"),
        (lambda policy: policy.symlink_to("."), "policy is the workdir of the run"),
        (lambda policy: policy.symlink_to("checkpoints"), "policy lies among the files of the run"),
        (lambda policy: (policy.mkdir(), (policy / "model.safetensors").touch()), "policy holds files that are not of"),
    ],
)
def test_what_is_in_the_way_of_the_policy_is_said_at_the_start(tmp_path, monkeypatch, make, words):
    make(tmp_path / "policy")
    raw_config = ucgrpo.get_config("demo")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # else train() sets one for the whole process
    monkeypatch.setattr(train, "load_agent", None)  # not reached
    with pytest.raises(OutputError, match=words):
        train.train(read_config(raw_config, TrainConfig, "config"), epath.Path(tmp_path), raw_config, Termination())
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.fixture
def own_programs(monkeypatch):
    """A start in this process keeps its compiled programs in its workdir, and only until the test ends."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_at_an_update_nothing_else_is_in_memory(undisturbed, shared, tmp_path, monkeypatch, own_programs):
    """Neither the key-value cache, nor the weights of the rollout, nor what was loaded before a checkpoint was."""
    if undisturbed[0] == "sft":
        pytest.skip("has no rollout")
    raw_config = ucgrpo.get_config("demo")
    del raw_config.evaluation
    raw_config.checkpoint.every = 1
    raw_config.data.cache_directory, raw_config.data.size = f"{shared}/data", 14
    raw_config.batch.queries, raw_config.batch.rollouts, raw_config.rollout.fill_rows = 2, 4, 4
    raw_config.loss.kl = 0.0
    make_policy_update, live, events = reinforcement_steps.make_policy_update, [], []

    def listen(event: str, **details: str | int) -> None:
        events.append(event)

    def make_watched(*args, **options):
        update = make_policy_update(*args, **options)

        def watched(state, batch):
            gc.collect()
            live.append(Counter(array.shape for array in jax.live_arrays() if id(array) not in known))
            return update(state, batch)

        return watched

    monkeypatch.setattr(reinforcement_steps, "make_policy_update", make_watched)
    model = Qwen3VLConfig.from_json(Path(demo_checkpoint()) / "config.json").text
    jax.monitoring.register_event_listener(listen)
    for raw_config.steps in (1, 2):
        before = jax.live_arrays()  # kept, so that none of them goes meanwhile
        known = set(map(id, before))
        events.clear()
        config = read_config(raw_config, TrainConfig, "config")
        train.train(config, epath.Path(tmp_path / "run"), raw_config, Termination())
        cache = (model.num_hidden_layers, 8, model.num_key_value_heads, config.rollout.max_length, model.head_dim)
        # Of every parameter: itself, and the two moments of the optimizer.
        assert live[-1][model.vocab_size, model.hidden_size] == 3
        assert cache not in live[-1]
        card = tmp_path / "run" / "policy" / "README.md"
        assert raw_config.steps == 1 or card.read_text() == "A model card."
        card.write_text("A model card.")
    assert len(live) == 2
    # The second start took programs from the workdir.
    assert any((tmp_path / "run" / "compilation_cache").iterdir())
    assert "/jax/compilation_cache/cache_hits" in events
    jax.monitoring.unregister_event_listener(listen)
