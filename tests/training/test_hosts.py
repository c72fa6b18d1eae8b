"""Training as it is started on several devices and hosts, in real processes, against one device."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actfer_jax.rollout.programs import row_keys
from actfer_jax.rollout.sampling import sample
from actfer_jax.runs.metrics import read_metrics
from benchmarks.equal_training import compare, ends, episodes, is_tie, log_of, metrics, start

pytestmark = pytest.mark.slow

TWO = {"processes": 2, "devices": 2}
MESHES = ["--config.mesh.update=(1,4,1)", "--config.mesh.rollout=(2,1,2)"]
# Runs the training with something changed: a signal that the process sends itself as it begins the rollout of a step or
# after some seconds, an order of the devices, queries that are told to answer at once, or arguments of its own.
CHANGED = """
import dataclasses, json, os, runpy, sys, threading
import numpy as np
from actfer_jax.parallel import sharding
from actfer_jax.rollout import engine
change = json.loads(sys.argv.pop(1))
sys.argv += change.get("arguments", [])
prefill, run, mesh = engine.RolloutEngine._prefill, engine.RolloutEngine.run, sharding.mesh_utils.create_device_mesh
def with_signal(self, *args):
    result = prefill(self, *args)
    if args[-1] == change["step"]:
        os.kill(os.getpid(), change["signal"])
    return result
def with_answers(self, params, queries, **options):
    queries = [dataclasses.replace(query, answer_now=query.index in change["answer_now"]) for query in queries]
    return run(self, params, queries, **options)
def in_order(shape, devices, **options):
    order = change["order"] if len(devices) == len(change["order"]) else range(len(devices))
    return np.array([devices[index] for index in order]).reshape(shape)
if "after" in change:
    timer = threading.Timer(change["after"], os.kill, (os.getpid(), change["signal"]))
    timer.daemon = True  # a run that is faster than that ends by itself
    timer.start()
elif "signal" in change:
    engine.RolloutEngine._prefill = with_signal
if "answer_now" in change:
    engine.RolloutEngine.run = with_answers
if "order" in change:
    sharding.mesh_utils.create_device_mesh = in_order
sys.argv[0] = "train"
runpy.run_module("actfer_jax.train", run_name="__main__", alter_sys=True)
"""


def exit_codes(
    shared: Path,
    algorithm: str,
    workdir: Path,
    *extra: str,
    processes: int = 1,
    devices: int = 1,
    changes: dict[int, dict] | None = None,
) -> list[int]:
    """Runs the processes of a training; `changes` are those of each process."""
    arguments = [f"--config=tests/hosts_config.py:{algorithm}", f"--config.data.cache_directory={shared}/data", *extra]
    programs = {index: ("-c", CHANGED, json.dumps(change)) for index, change in (changes or {}).items()}
    return ends(start(workdir, arguments, processes=processes, devices=devices, programs=programs), seconds=400)


def logs(workdir: Path) -> list[str]:
    return [path.read_text() for path in sorted(workdir.parent.glob(f"{workdir.name}-[01].log"))]


def run(shared: Path, algorithm: str, name: str, *extra: str, **options) -> Path:
    workdir = shared / name
    codes = exit_codes(shared, algorithm, workdir, *extra, **options)
    assert set(codes) == {0}, "\n".join(log[-3000:] for log in logs(workdir))
    return workdir


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "policy" / "model.safetensors")


def assert_same_training(workdir: Path, expected: Path) -> None:
    """What one process with one device did, to rounding."""
    found = compare(workdir, expected)
    assert not found.differences and not found.ties
    assert found.steps == len(metrics(expected)) == 3


def assert_same_bits(workdir: Path, expected: Path) -> None:
    assert metrics(workdir) == metrics(expected)
    assert episodes(workdir) == episodes(expected)
    found, others = weights(workdir), weights(expected)
    assert found.keys() == others.keys()
    for name, value in others.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    """Programs of several CPU devices are compiled at every start: with fewer optimizations of machine code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="module")
def alone(shared) -> Path:
    return run(shared, "rl", "alone")


@pytest.fixture(scope="module")
def taught(shared) -> Path:
    return run(shared, "sft", "taught")


@pytest.fixture(scope="module")
def together(shared, alone) -> Path:
    return run(shared, "rl", "together", *MESHES, **TWO)


def test_two_processes_train_as_one(alone, together):
    assert len(episodes(alone)) == 3 * 8
    assert any(turn["reply"] and turn["view"] for episode in episodes(alone).values() for turn in episode["turns"])
    assert_same_training(together, alone)
    hosts = {path.name.rsplit("-", 1)[1] for path in (together / "episodes").glob("*.jsonl")}
    assert hosts == {"host0.jsonl", "host1.jsonl"}
    assert all("waiting for 1 of 2 processes at 127.0.0.1:" in log for log in logs(together))


def test_four_devices_learn_from_traces_as_one(shared, taught):
    assert_same_training(run(shared, "sft", "taught-on-four", "--config.mesh.update=(2,1,2)", devices=4), taught)


def test_nothing_compiles_once_a_step_was_saved(together):
    compiled = [record["perf/compilations"] for record in read_metrics(together)]
    assert compiled[1] == compiled[2] > 0


def change_metric(workdir: Path, name: str, by: float) -> str:
    path = workdir / "metrics.jsonl"
    records = read_metrics(workdir)
    records[1][name] += by
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"step 2, {name} by "


def change_episode(workdir: Path, changed: str, change: Callable[[Any], Any]) -> str:
    (path,) = (workdir / "episodes").glob("step-00000002-*.jsonl")
    first, *others = path.read_text().splitlines()
    episode = json.loads(first)
    episode[changed] = change(episode[changed])
    path.write_text("\n".join([json.dumps(episode), *others]) + "\n")
    return f"episode {episode['id']}"


def change_weight(workdir: Path) -> str:
    values = weights(workdir)
    name = max(values)
    save_file(values | {name: values[name] * np.float32(1 + 2e-5)}, workdir / "policy" / "model.safetensors")
    return f"{name} by 2e-05"


@pytest.mark.parametrize(
    "change",
    [
        partial(change_metric, name="policy/loss", by=5e-5),
        partial(change_metric, name="policy/entropy", by=5e-4),
        change_weight,
        partial(change_episode, changed="advantage", change=lambda advantage: advantage + 2e-5),
        partial(change_episode, changed="token_ids", change=lambda ids: [*ids[:-1], ids[-1] + 1]),
        partial(change_episode, changed="forced", change=lambda forced: f"not {forced}"),
    ],
)
def test_the_comparison_notices(alone, tmp_path, change):
    workdir = tmp_path / "changed"
    shutil.copytree(alone, workdir, ignore=shutil.ignore_patterns("checkpoints", "compilation_cache"))
    assert not compare(workdir, alone).differences
    noticed = change(workdir)
    found = compare(workdir, alone)
    assert len(found.differences) == 1 and found.differences[0].startswith(noticed)
    assert not found.ties


def test_a_tie_is_told_from_a_difference():
    """The sampler draws from logits that are changed until another token is drawn."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 50)).astype(np.float32)
    options = {"temperature": 0.8, "banned_V": np.zeros(50, bool)}
    keys, place = row_keys(7, 3, [5], 2)[1:], 4

    def episode(logits: np.ndarray) -> dict[str, Any]:
        token, log_prob, _ = sample(logits, keys, np.array([place]), np.array([-1]), **options)
        drawn = {"token_ids": [1] * place + [int(token[0])], "logprobs": [0.0] * place + [float(log_prob[0])]}
        return {"id": "3-5-1", "loss_mask": [0] * place + [1], **drawn}

    first = episode(logits)
    rival = (first["token_ids"][-1] + 1) % 50

    def raised(by: float) -> dict[str, Any]:
        return episode(logits + np.float32(by) * (np.arange(50) == rival))

    low, high = 0.0, 50.0
    while high - low > 2e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if raised(middle)["token_ids"][-1] == rival else (middle, high)
    before, after, long_after = raised(low), raised(high), raised(high + 1e-3)
    assert before["token_ids"] != after["token_ids"] == long_after["token_ids"]
    sampling = {"seed": 7, "rollouts": 2, "vocabulary": 50}
    assert is_tie(before, after, **sampling)
    assert not is_tie(before, long_after, **sampling)
    assert not is_tie(before, after, **sampling | {"seed": 8})
    assert not is_tie(before, after | {"loss_mask": [0] * (place + 1)}, **sampling)


def test_the_first_process_speaks_for_all(together):
    first, second = logs(together)
    assert "step 3/3" in first and "the policy is in" in first
    assert "step 3/3" not in second and "the policy is in" not in second
    manifest = json.loads((together / "manifest.json").read_text())
    assert manifest["devices"]["processes"] == 2 and manifest["devices"]["count"] == 4


def test_told_to_stop_killed_and_started_again(shared, together):
    """One of two is told to stop, later one is killed: what was saved goes on, bit for bit."""
    workdir = shared / "disturbed"
    told = {1: {"signal": signal.SIGTERM, "step": 2}}
    assert exit_codes(shared, "rl", workdir, *MESHES, **TWO, changes=told) == [0, 0], logs(workdir)
    # Where it is started by `tpu_scripts`, every host must say it.
    assert all("told to stop: saved step 1 of 3" in log for log in logs(workdir))
    assert not (workdir / "policy").exists()

    killed = {1: {"signal": signal.SIGKILL, "step": 3}}
    first, second = exit_codes(shared, "rl", workdir, *MESHES, **TWO, changes=killed)
    assert second == -signal.SIGKILL and first != 0
    assert "continuing after step 1" in logs(workdir)[0]

    run(shared, "rl", "disturbed", *MESHES, **TWO)
    # After step 2, if its save in the background was complete.
    assert "continuing after step" in logs(workdir)[0]
    assert_same_bits(workdir, together)


def test_processes_of_another_config_end_together(shared, together):
    workdir = shared / "other"
    other = ["--config.seed=1", f"--workdir={together}"]
    assert exit_codes(shared, "rl", workdir, *MESHES, *other, **TWO) == [1, 1]
    assert all("seed (0 there, 1 here)" in log and "Traceback" not in log for log in logs(workdir))


def test_a_process_that_saves_at_other_steps_is_named(shared):
    """Steps and checkpoints may differ from those of an earlier start, but not between processes."""
    workdir = shared / "rarely"
    rarely = {0: {}, 1: {"arguments": ["--config.checkpoint.every=2"]}}
    assert exit_codes(shared, "rl", workdir, *MESHES, **TWO, changes=rarely) == [1, 1]
    assert all("checkpoint.every (1 there, 2 here)" in log and "Traceback" not in log for log in logs(workdir))


every_mesh = pytest.mark.skipif("ACTFER_MESHES" not in os.environ, reason="takes minutes: set ACTFER_MESHES=1")


@pytest.fixture(scope="module")
def seconds(together) -> float:
    """What the undisturbed run took, imports aside."""
    return log_of(together, 0).stat().st_mtime - (together / "manifest.json").stat().st_mtime


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=every_mesh)])
def test_killed_at_any_instant(shared, together, seconds, seed):
    """One of two, or both, are killed at an instant drawn over the time that a whole run takes after its imports;
    benchmarks/disturbed_training.py draws many."""
    chance = random.Random(seed)
    workdir = shared / f"killed-{seed}"
    kill = {"signal": signal.SIGKILL, "after": chance.uniform(0, seconds)}
    victims = chance.choice([(0,), (1,), (0, 1)])
    codes = exit_codes(shared, "rl", workdir, *MESHES, **TWO, changes=dict.fromkeys(victims, kill))
    assert set(codes) == {0} or any(codes[victim] == -signal.SIGKILL for victim in victims), logs(workdir)
    run(shared, "rl", workdir.name, *MESHES, **TWO)
    assert_same_bits(workdir, together)


@every_mesh
def test_two_processes_learn_from_traces_as_one(shared, taught):
    assert_same_training(run(shared, "sft", "taught-together", *MESHES, **TWO), taught)


@every_mesh
def test_two_processes_train_adapters_as_one(shared):
    expected = run(shared, "lora", "adapters-alone")
    learned = load_file(expected / "policy" / "adapter_model.safetensors")
    assert all(np.abs(value).max() > 0 for value in learned.values())
    assert_same_training(run(shared, "lora", "adapters-together", *MESHES, **TWO), expected)


@every_mesh
@pytest.mark.parametrize(
    ("update", "rollout", "order"),
    [
        ((2, 2, 1), (2, 1, 2), [2, 0, 1, 3]),  # both processes in every group of "tensor"
        ((1, 2, 2), (1, 1, 4), [0, 1, 2, 3]),  # one group of "tensor" over both
        ((4, 1, 1), (1, 2, 2), [3, 1, 0, 2]),
    ],
)
def test_meshes_of_two_processes(shared, alone, update, rollout, order):
    name = "-".join(map(str, (*update, *rollout, *order)))
    meshes = [f"--config.mesh.update={update}", f"--config.mesh.rollout={rollout}"]
    changes = dict.fromkeys(range(2), {"order": order})
    assert_same_training(run(shared, "rl", name, *meshes, **TWO, changes=changes), alone)


@every_mesh
def test_a_run_goes_on_on_fewer_hosts_and_another_mesh(shared, alone):
    workdir = shared / "moved"
    told = {1: {"signal": signal.SIGTERM, "step": 2}}
    assert exit_codes(shared, "rl", workdir, *MESHES, **TWO, changes=told) == [0, 0], logs(workdir)
    run(shared, "rl", "moved", "--config.mesh.update=(2,1,1)", "--config.mesh.rollout=(1,1,2)", devices=2)
    assert "continuing after step 1 of 3" in logs(workdir)[0]
    assert_same_training(workdir, alone)


@every_mesh
@pytest.mark.parametrize("queries", [[0], [1], [0, 1]])
def test_a_process_whose_rows_call_no_tools_and_end_in_one_turn(shared, queries):
    name = "answers-" + "-".join(map(str, queries))
    changes = dict.fromkeys(range(2), {"answer_now": queries})
    alone = run(shared, "rl", f"{name}-alone", changes=changes)
    ended = [
        len(episode["turns"]) for episode in episodes(alone).values() if int(episode["id"].split("-")[1]) in queries
    ]
    assert set(ended) == {1}
    assert_same_training(run(shared, "rl", name, *MESHES, **TWO, changes=changes), alone)
