"""Training as it is started on several hosts: two real processes with two devices each, against one with one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from actfer_jax.metrics import is_timing, read_metrics
from actfer_jax.records import read_episodes
from tests.test_hosts import free_port

ROOT = Path(__file__).parents[1]
MESHES = ["--config.mesh.update=(1,4,1)", "--config.mesh.rollout=(2,1,2)"]
# Runs the training with something changed: a signal that the process sends itself as it begins the rollout of a step or
# after some seconds, an order of the devices, or queries that are told to answer at once.
CHANGED = """
import dataclasses, json, os, runpy, sys, threading
import numpy as np
from actfer_jax import sharding
from actfer_jax.rollout import engine
change = json.loads(sys.argv.pop(1))
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
    threading.Timer(change["after"], os.kill, (os.getpid(), change["signal"])).start()
elif "signal" in change:
    engine.RolloutEngine._prefill = with_signal
if "answer_now" in change:
    engine.RolloutEngine.run = with_answers
if "order" in change:
    sharding.mesh_utils.create_device_mesh = in_order
sys.argv[0] = "train"
runpy.run_module("actfer_jax.train", run_name="__main__", alter_sys=True)
"""


def start(
    shared: Path,
    algorithm: str,
    workdir: Path,
    *extra: str,
    processes: int = 1,
    devices: int | None = None,
    changes: dict[int, dict] | None = None,
) -> list[subprocess.Popen]:
    """Starts the processes of a run, with as many devices each as there are processes; `changes` are those of each."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(processes):
        change = (changes or {}).get(index)
        program = ["-m", "actfer_jax.train"] if change is None else ["-c", CHANGED, json.dumps(change)]
        arguments = [f"--config=tests/hosts_config.py:{algorithm}", f"--workdir={workdir}", *extra]
        arguments.append(f"--config.data.directory={shared}/data")
        if processes > 1:
            arguments += [f"--coordinator={address}", f"--processes={processes}", f"--process={index}"]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": f"{shared}/programs",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            "PYTHONFAULTHANDLER": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices or processes}",
        }
        with open(f"{workdir}-{index}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, *program, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
                )
            )
    return started


def ends(started: list[subprocess.Popen]) -> list[int]:
    """Exit codes; processes that wait for each other for ever fail the test, and their logs say where they waited."""
    try:
        return [process.wait(timeout=400) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.send_signal(signal.SIGABRT)
        raise
    finally:
        for process in started:
            process.kill()


def logs(workdir: Path) -> list[str]:
    return [path.read_text() for path in sorted(workdir.parent.glob(f"{workdir.name}-[01].log"))]


def run(shared: Path, algorithm: str, name: str, *extra: str, **options) -> Path:
    workdir = shared / name
    codes = ends(start(shared, algorithm, workdir, *extra, **options))
    assert set(codes) == {0}, "\n".join(log[-3000:] for log in logs(workdir))
    return workdir


def records(workdir: Path) -> list[dict]:
    return [{name: value for name, value in record.items() if not is_timing(name)} for record in read_metrics(workdir)]


def episodes(workdir: Path) -> dict[str, dict]:
    """Episodes by their name, without the time that their tools took and rounded numbers."""
    found = {}
    for record in read_episodes(workdir):
        turns = [{key: value for key, value in turn.items() if key != "seconds"} for turn in record["turns"]]
        rounded = {"logprobs", "raw_logprobs", "advantage", "reward"}
        found[record["id"]] = {key: value for key, value in record.items() if key not in rounded} | {"turns": turns}
    return found


def weights(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "policy" / "model.safetensors")


def assert_same_training(workdir: Path, expected: Path) -> None:
    """What one process with one device did, to rounding."""
    assert episodes(workdir) == episodes(expected)
    for record, other in zip(records(workdir), records(expected), strict=True):
        assert record.keys() == other.keys()
        for name, value in other.items():
            # The gap to the sampler is a difference of nearly equal numbers.
            assert record[name] == pytest.approx(value, rel=1e-5, abs=1e-5 if "mismatch" in name else 1e-6), name
    advantages = [{record["id"]: record["advantage"] for record in read_episodes(path)} for path in (workdir, expected)]
    assert advantages[0] == pytest.approx(advantages[1], rel=1e-5, abs=1e-6)
    found, others = weights(workdir), weights(expected)
    assert found.keys() == others.keys()
    for name, value in others.items():
        # Biases begin at zero and are sums of a few small steps.
        tolerance = {"abs": 1e-5} if name.endswith("bias") else {"rel": 1e-5}
        assert np.linalg.norm(found[name]) == pytest.approx(np.linalg.norm(value), **tolerance), name


@pytest.fixture(scope="module")
def alone(shared) -> Path:
    return run(shared, "rl", "alone")


@pytest.fixture(scope="module")
def together(shared, alone) -> Path:
    return run(shared, "rl", "together", *MESHES, processes=2)


def test_two_processes_train_as_one(alone, together):
    assert len(episodes(alone)) == 3 * 8
    assert any(turn["reply"] and turn["view"] for episode in episodes(alone).values() for turn in episode["turns"])
    assert_same_training(together, alone)
    hosts = {path.name.rsplit("-", 1)[1] for path in (together / "episodes").iterdir()}
    assert hosts == {"host0.jsonl", "host1.jsonl"}


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
    assert ends(start(shared, "rl", workdir, *MESHES, processes=2, changes=told)) == [0, 0], logs(workdir)
    # Where it is started by `tpu_scripts`, every host must say it.
    assert all("told to stop: saved step 1 of 3" in log for log in logs(workdir))
    assert not (workdir / "policy").exists()

    killed = {1: {"signal": signal.SIGKILL, "step": 3}}
    first, second = ends(start(shared, "rl", workdir, *MESHES, processes=2, changes=killed))
    assert second == -signal.SIGKILL and first != 0
    assert "continuing after step 1" in logs(workdir)[0]

    run(shared, "rl", "disturbed", *MESHES, processes=2)
    assert "continuing after step 2" in logs(workdir)[0]
    assert records(workdir) == records(together)
    assert episodes(workdir) == episodes(together)
    found, others = weights(workdir), weights(together)
    for name, value in others.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_processes_of_another_config_end_together(shared, together):
    workdir = shared / "other"
    other = ["--config.seed=1", f"--workdir={together}"]
    assert ends(start(shared, "rl", workdir, *MESHES, *other, processes=2)) == [1, 1]
    assert all("seed (0 there, 1 here)" in log and "Traceback" not in log for log in logs(workdir))


every_mesh = pytest.mark.skipif("ACTFER_MESHES" not in os.environ, reason="takes minutes: set ACTFER_MESHES=1")


@pytest.fixture(scope="module")
def seconds(shared, together) -> float:
    """What a whole run takes when its programs are compiled."""
    began = time.monotonic()
    run(shared, "rl", "whole", *MESHES, processes=2)
    return time.monotonic() - began


@every_mesh
@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_instant(shared, together, seconds, seed):
    """One of two, or both, are killed at an instant drawn over the time that a whole run takes, imports included."""
    chance = random.Random(seed)
    workdir = shared / f"killed-{seed}"
    kill = {"signal": signal.SIGKILL, "after": chance.uniform(0, seconds)}
    victims = chance.choice([(0,), (1,), (0, 1)])
    codes = ends(start(shared, "rl", workdir, *MESHES, processes=2, changes=dict.fromkeys(victims, kill)))
    assert set(codes) == {0} or any(codes[victim] == -signal.SIGKILL for victim in victims), logs(workdir)
    run(shared, "rl", workdir.name, *MESHES, processes=2)
    assert records(workdir) == records(together)
    assert episodes(workdir) == episodes(together)
    found, others = weights(workdir), weights(together)
    for name, value in others.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@every_mesh
def test_two_processes_learn_from_traces_as_one(shared):
    alone = run(shared, "sft", "sft-alone")
    assert_same_training(run(shared, "sft", "sft-together", *MESHES, processes=2), alone)


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
    assert_same_training(run(shared, "rl", name, *meshes, processes=2, changes=changes), alone)


@every_mesh
def test_a_run_goes_on_on_fewer_hosts_and_another_mesh(shared, alone):
    workdir = shared / "moved"
    told = {1: {"signal": signal.SIGTERM, "step": 2}}
    assert ends(start(shared, "rl", workdir, *MESHES, processes=2, changes=told)) == [0, 0], logs(workdir)
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
    assert_same_training(run(shared, "rl", name, *MESHES, processes=2, changes=changes), alone)
