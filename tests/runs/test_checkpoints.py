"""Checkpoints: bit-identical, and never a wrong one, whatever is killed, damaged or full."""

import contextlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from actfer_jax.parallel import hosts
from actfer_jax.runs.checkpoints import CheckpointError, Checkpoints, read_checkpoint
from actfer_jax.runs.metrics import WorkdirError
from benchmarks.damages import DAMAGES, files, flip_a_bit
from benchmarks.equal_training import free_port

# Real second processes, forked from one that has imported everything and started nothing.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["optax", "orbax.checkpoint"])


def make_state(step: int, size: int = 40):
    """A state that is a function of its step, of every kind of leaf that training has."""
    kernel = np.random.default_rng(step).normal(size=(size, 33))
    weights = {"kernel": jnp.asarray(kernel, jnp.float32), "half": jnp.asarray(kernel[:, :5], jnp.bfloat16)}
    return {
        "weights": weights,
        "optimizer": optax.adamw(1e-3).init(weights),
        "calibration": (jnp.float32(step / 3), jnp.asarray(np.arange(step, step + 7), jnp.int32)),
        "key": jax.random.key(step),
        "raw_key": jax.random.key_data(jax.random.key(step + 1)),
        "count": step,
    }


def make_extra(step: int):
    return {"position": step * 8, "seed": 2**63 - 1, "rate": 0.1 * step, "name": "zoom in – très près"}


def bits(tree) -> list:
    def leaf_bits(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
        if isinstance(leaf, jax.Array):
            return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
        return type(leaf), leaf

    return [(jax.tree_util.keystr(path), leaf_bits(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def assert_restores(directory, *, at_least: int = 0, keep: int = 2) -> int:
    """Restores and compares with the state that the step must have; returns the step, -1 for none."""
    with Checkpoints(directory, keep=keep) as checkpoints:
        restored = checkpoints.restore_latest(make_state(0))
    step = -1
    if restored is not None:
        step, state, extra = restored
        assert bits(state) == bits(make_state(step))
        assert jax.tree.structure(state) == jax.tree.structure(make_state(step))
        assert extra == make_extra(step)
    assert step >= at_least
    return step


def save_steps(directory, steps, keep: int = 2) -> None:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step), make_extra(step))


def start(target, *args) -> processes.Process:
    process = processes.Process(target=target, args=args)
    process.start()
    return process


def test_restores_every_bit_and_keeps_the_newest(tmp_path):
    assert_restores(tmp_path / "ckpt", at_least=-1)
    save_steps(tmp_path / "ckpt", (1, 5, 10))
    assert assert_restores(tmp_path / "ckpt") == 10
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == ["10", "5"]


def test_saving_a_step_again_leaves_it(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.save(3, make_state(3), make_extra(3))
        assert not checkpoints.save(3, make_state(4), make_extra(4))
    assert assert_restores(tmp_path) == 3


@pytest.mark.parametrize(("keep", "best"), [(1, 1), (2, 1), (1, 3)])
def test_the_best_steps_outlive_newer_ones(tmp_path, keep, best):
    """Over starts of the run, and over steps that lack the metric or have it as no number."""
    scores = [0.2, 0.9, None, None, float("nan"), 0.6, 0.1, 0.55, 0.05, 0.3]
    starts, kept = [range(3), range(3, 4), range(4, 10)], []
    for steps in starts:
        with Checkpoints(tmp_path, keep=keep, best=best, best_metric="accuracy") as checkpoints:
            assert checkpoints.steps() == kept
            for step in steps:
                metrics = {"loss": np.float32(1)} | (
                    {} if scores[step] is None else {"accuracy": jnp.array(scores[step])}
                )
                checkpoints.save(step, make_state(step), make_extra(step), metrics)
                ranked = sorted(
                    [*kept, step],
                    key=lambda step: -1 if scores[step] is None or math.isnan(scores[step]) else scores[step],
                )
                kept = sorted({*[*kept, step][-keep:], *ranked[-best:]})
                assert checkpoints.steps() == kept
    assert 1 in kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, kept))
    with Checkpoints(tmp_path, keep=keep, best=best, best_metric="accuracy") as checkpoints:
        assert bits(checkpoints.restore(1, make_state(0))[0]) == bits(make_state(1))


def test_a_damaged_metric_of_an_older_step(tmp_path):
    """Orbax reads the metrics of all steps as it starts."""
    with Checkpoints(tmp_path, keep=2, best_metric="reward") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), make_extra(step), {"reward": float(step)})
    os.truncate(tmp_path / "1" / "metrics" / "metrics", 5)
    with Checkpoints(tmp_path, keep=2, best_metric="reward") as checkpoints:
        assert checkpoints.steps() == [2]
    assert (tmp_path / "damaged" / "1").is_dir()
    assert assert_restores(tmp_path) == 2


def test_a_metric_that_there_is_not_is_refused_at_the_first_save(tmp_path):
    with Checkpoints(tmp_path, keep=1, best_metric="accurracy") as checkpoints:
        for metrics, known in (({"reward/total": 1.0, "accuracy": 0.5}, "accuracy, reward/total"), (None, "none")):
            with pytest.raises(CheckpointError, match=f"'accurracy', but step 1 has no such metric; it has: {known}"):
                checkpoints.save(1, make_state(1), make_extra(1), metrics)
        assert checkpoints.steps() == []


def test_a_step_is_committed_only_while_the_directory_is_this_runs(tmp_path):
    """Otherwise what lies there stays as it is: it may be what another run is saving."""
    owned = [True]

    def confirm() -> None:
        if not owned[0]:
            raise WorkdirError("taken over")

    with pytest.raises(WorkdirError, match="taken over"):
        with Checkpoints(tmp_path, keep=2, confirm=confirm) as checkpoints:
            checkpoints.save(1, make_state(1), make_extra(1))
            checkpoints.wait()
            owned[0] = False
            checkpoints.save(2, make_state(2), make_extra(2))
            checkpoints.wait()
    left = {path.name for path in tmp_path.iterdir()}
    assert "1" in left and "2" not in left and len(left) == 2
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.cut_off == 2 and checkpoints.steps() == [1]


def test_donating_the_state_while_it_is_saved(tmp_path):
    update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = update({str(index): jnp.full((512, 2048), index, jnp.float32) for index in range(8)})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, state, {})
        for _ in range(4):
            state = update(state)
        restored = checkpoints.restore_latest(state)
    assert restored is not None
    for name, leaf in restored[1].items():
        np.testing.assert_array_equal(leaf, int(name) + 1)


def test_another_model_is_refused_by_name(tmp_path):
    save_steps(tmp_path, [1])
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for change in (lambda k: k[:-1], lambda k: k.astype(jnp.bfloat16)):
            state = make_state(1)
            state["weights"]["kernel"] = change(state["weights"]["kernel"])
            with pytest.raises(CheckpointError, match=r"\['weights'\]\['kernel'\] \(float32\[40,\s33\] saved"):
                checkpoints.restore_latest(state)
        with pytest.raises(CheckpointError, match=r"\['raw_key'\].*absent wanted"):
            checkpoints.restore_latest({k: v for k, v in make_state(1).items() if k != "raw_key"})


def test_extra_that_is_not_json_is_refused(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for bad in ({"x": float("nan")}, {"x": jnp.ones(2)}):
            with pytest.raises(CheckpointError, match="must be JSON"):
                checkpoints.save(1, make_state(1), bad)
        assert checkpoints.steps() == []


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "ckpt").write_text("")
    with pytest.raises(CheckpointError, match="ckpt"):
        Checkpoints(tmp_path / "ckpt", keep=1)


def save_forever(directory, reports, operations: int | None) -> None:
    """Resumes, checks what it resumed from, and saves step after step until it is killed; reports completed steps.

    With `operations` it kills itself before that many-th time that it makes, opens, renames or removes a file there.
    """
    left = itertools.count(operations or -1, -1)
    changes = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

    def kill_in_time(event, arguments):
        if event in changes and str(arguments[0]).startswith(str(directory)) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with Checkpoints(directory, keep=1) as checkpoints:
        restored = checkpoints.restore_latest(make_state(0))
        step = -1
        if restored is not None:
            step, state, extra = restored
            assert bits(state) == bits(make_state(step)) and extra == make_extra(step)
        sys.addaudithook(kill_in_time)
        while True:
            step += 1
            checkpoints.save(step, make_state(step), make_extra(step))
            if step % 3 == 0:
                checkpoints.wait()
                reports.send(step)


@pytest.mark.slow
def test_killed_at_any_instant(tmp_path):
    chance = random.Random(0)
    complete = step = -1
    for operations in (None, *chance.sample(range(20, 140), 8), None, None):
        reports, child_end = processes.Pipe(duplex=False)
        process = start(save_forever, tmp_path, child_end, operations)
        child_end.close()
        if operations is None:
            complete = reports.recv()
            process.join(timeout=chance.uniform(0, 0.15))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):
            while True:
                complete = reports.recv()
        # What was reported complete is not lost, and no step is taken for damaged because it was half deleted.
        step = assert_restores(tmp_path, at_least=max(complete, step), keep=1)
        assert not (tmp_path / "damaged").exists()
    assert step > 3


@pytest.fixture(scope="module")
def sound_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound")
    save_steps(directory, (1, 2))
    return directory


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_set_aside(seed, damage, sound_directory, tmp_path, caplog):
    directory = shutil.copytree(sound_directory, tmp_path / "ckpt")
    newest = directory / "2"
    assert {"_CHECKPOINT_METADATA", "commit_success.txt", "checksums.json"} < {path.name for path in files(newest)}
    damage(random.Random(seed), newest)
    with caplog.at_level(logging.ERROR):
        step = assert_restores(directory)
    assert step == 1
    assert (directory / "damaged" / "2").is_dir()
    assert str(newest) in caplog.text
    # The step can be saved again, and damaged again, without losing the first.
    if seed == 0:
        save_steps(directory, [2])
        assert assert_restores(directory) == 2
        (directory / "2" / "checksums.json").unlink()
        assert assert_restores(directory) == 1
        assert (directory / "damaged" / "2-2").is_dir()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_killed_right_after_a_commit(sound_directory, tmp_path, name):
    """What the commit wrote has no checksums yet: it must be there, and from the next start on it is compared."""
    directory = shutil.copytree(sound_directory, tmp_path / "ckpt")
    checksums = directory / "2" / "checksums.json"
    complete = json.loads(checksums.read_text())
    before = {key: value for key, value in complete["files"].items() if "/" in key}
    assert len(before) == len(complete["files"]) - 2
    checksums.write_text(json.dumps(complete | {"files": before}))
    assert assert_restores(directory) == 2
    assert json.loads(checksums.read_text()) == complete

    checksums.write_text(json.dumps(complete | {"files": before}))
    (directory / "2" / name).unlink()
    assert assert_restores(directory) == 1
    if name == "_CHECKPOINT_METADATA":
        checksums = directory / "1" / "checksums.json"
        complete = json.loads(checksums.read_text())
        del complete["files"][name]
        checksums.write_text(json.dumps(complete))
        (directory / "1" / name).write_text("{")
        assert assert_restores(directory, at_least=-1) == -1


def test_steps_under_each_others_names(sound_directory, tmp_path):
    directory = shutil.copytree(sound_directory, tmp_path / "ckpt")
    (directory / "1").rename(directory / "3")
    assert assert_restores(directory) == 2


def contents(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def test_reading_changes_nothing(sound_directory, tmp_path, caplog):
    """Beside a save that is under way, a damaged step is passed over and everything stays where it is."""
    directory = shutil.copytree(sound_directory, tmp_path / "ckpt")
    shutil.copytree(directory / "1", directory / "3.orbax-checkpoint-tmp")
    flip_a_bit(random.Random(0), directory / "2" / "notes")
    before = contents(directory)
    step, state, extra = read_checkpoint(directory, make_state(0))
    assert step == 1 and bits(state) == bits(make_state(1)) and extra == make_extra(1)
    assert f"{directory / '2'} is damaged" in caplog.text
    with pytest.raises(CheckpointError, match="no checkpoint that can be used; there are: 1, 2"):
        read_checkpoint(directory, make_state(0), step=2)
    with pytest.raises(CheckpointError, match="no checkpoint of step 3; there are: 1, 2"):
        read_checkpoint(directory, make_state(0), step=3)
    assert contents(directory) == before
    with pytest.raises(CheckpointError, match="nowhere has no checkpoint that can be used; there is none"):
        read_checkpoint(tmp_path / "nowhere", make_state(0))
    assert not (tmp_path / "nowhere").exists()


def test_reading_a_part(sound_directory):
    unread = jax.tree.map(lambda leaf: ..., make_state(0))
    wanted = unread | {"weights": make_state(0)["weights"]}
    _, state, _ = read_checkpoint(sound_directory, wanted, step=2)
    assert bits(state["weights"]) == bits(make_state(2)["weights"])
    assert bits(state | {"weights": None}) == bits(unread | {"weights": None})
    del wanted["count"]
    with pytest.raises(CheckpointError, match=r"\['count'\] \(int saved, absent wanted\)"):
        read_checkpoint(sound_directory, wanted)


def test_a_step_that_goes_while_it_is_read(sound_directory, tmp_path, monkeypatch):
    directory = shutil.copytree(sound_directory, tmp_path / "ckpt")

    def check(step_directory):
        shutil.rmtree(step_directory)
        return ""

    monkeypatch.setattr("actfer_jax.runs.checkpoints._damage", check)
    with pytest.raises(CheckpointError, match="ckpt/1 was deleted by its run while it was read"):
        read_checkpoint(directory, make_state(0), step=1)


def on_devices(devices: int, directory, restore: int, save: int) -> None:
    """In a process with several devices: restores a step that others saved, and saves one, divided over a mesh."""
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def place(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        axes = ["data" if size % devices == 0 else None for size in leaf.shape]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes[:1])))

    with Checkpoints(directory, keep=9) as checkpoints:
        abstract = jax.tree.map(place, make_state(0))
        state, extra = checkpoints.restore(restore, abstract)
        assert bits(state) == bits(make_state(restore)) and extra == make_extra(restore)
        kernel = state["weights"]["kernel"]
        assert kernel.sharding == abstract["weights"]["kernel"].sharding
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(40 // devices, 33)}
        checkpoints.save(save, jax.tree.map(place, make_state(save)), make_extra(save))


def test_on_other_devices(tmp_path):
    """What was saved on four devices is restored on two and on one, and the other way round."""
    save_steps(tmp_path, [1])
    for devices, restore, save in ((4, 1, 2), (2, 2, 3)):
        process = start(on_devices, devices, tmp_path, restore, save)
        process.join()
        assert process.exitcode == 0
    assert assert_restores(tmp_path) == 3


def as_one_of_two(index: int, address: str, directory, divided: bool, restored: int, saved: list[int]) -> None:
    """In one of two processes: restores the newest step, of an array that is divided over both or that both hold whole,
    and saves others."""
    hosts.connect(address, 2, index)
    spec = PartitionSpec("data") if divided else PartitionSpec()
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), spec)

    def table(step):
        rows = np.random.default_rng(step).normal(size=(8 if divided else 3, 5)).astype(np.float32)
        return {"rows": jax.make_array_from_callback(rows.shape, sharding, lambda part: rows[part])}

    def own_part(state) -> list[bytes]:
        return [np.asarray(shard.data).tobytes() for shard in state["rows"].addressable_shards]

    with Checkpoints(directory, keep=9) as checkpoints:
        found = checkpoints.restore_latest(table(0))
        assert (found[0] if found else 0) == restored
        assert found is None or own_part(found[1]) == own_part(table(restored))
        for step in saved:
            checkpoints.save(step, table(step), {})


def in_two_processes(*arguments) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = [start(as_one_of_two, index, address, *arguments) for index in range(2)]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]


def test_two_processes_check_what_each_other_wrote(tmp_path):
    in_two_processes(tmp_path, True, 0, [1, 2, 3])
    names = json.loads((tmp_path / "3" / "checksums.json").read_text())["files"].keys()
    assert names == {path.relative_to(tmp_path / "3").as_posix() for path in files(tmp_path / "3")} - {"checksums.json"}
    for step, index in ((3, 1), (2, 0)):
        flip_a_bit(random.Random(step), tmp_path / str(step) / "state" / f"ocdbt.process_{index}")
    in_two_processes(tmp_path, True, 1, [2])
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "3"]
    in_two_processes(tmp_path, True, 2, [])


def test_a_process_that_has_nothing_to_write(tmp_path):
    in_two_processes(tmp_path, False, 0, [1])
    assert not (tmp_path / "1" / "state" / "ocdbt.process_1").exists()
    in_two_processes(tmp_path, False, 1, [])


def test_all_steps_damaged_is_a_fresh_start(sound_directory, tmp_path):
    directory = shutil.copytree(sound_directory, tmp_path / "ckpt")
    for step in ("1", "2"):
        (directory / step / "checksums.json").write_text("[]")
    assert assert_restores(directory, at_least=-1) == -1
    assert sorted(path.name for path in (directory / "damaged").iterdir()) == ["1", "2"]


def save_too_much(directory, limit: int | None, reports) -> None:
    """Saves a small step, then one for which there is no room; reports the messages."""
    save_steps(directory, [1])
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    big = {**make_state(2), "big": jax.random.normal(jax.random.key(0), (1500, 1000))}
    try:
        with Checkpoints(directory, keep=1) as checkpoints:
            checkpoints.save(2, big, make_extra(2))
            checkpoints.wait()
    except CheckpointError as error:
        reports.send(str(error))
    reports.close()


def assert_full_disk_is_clear(directory, limit) -> None:
    reports, child_end = processes.Pipe(duplex=False)
    process = start(save_too_much, directory, limit, child_end)
    child_end.close()
    message = reports.recv()
    process.join()
    assert process.exitcode == 0
    assert "step 2" in message and str(directory) in message
    assert "the disk is full; free some space" in message and "resumes from step 1" in message
    assert assert_restores(directory, keep=1) == 1
    assert not (directory / "damaged").exists()
    assert not list(directory.glob("2*"))


def test_no_room_for_a_file(tmp_path):
    assert_full_disk_is_clear(tmp_path, limit=2_000_000)


def test_disk_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        assert_full_disk_is_clear(disk, limit=None)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


FULL = """
import resource, sys
import jax
from actfer_jax import cli
from actfer_jax.runs.checkpoints import Checkpoints
def main(argv):
    state = {f"array {i}": jax.random.normal(jax.random.key(i), (500, 400)) for i in range(20)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    with Checkpoints(argv[1], keep=2) as checkpoints:
        checkpoints.save(1, state, {})
cli.run(main, arguments=True)
"""


def test_a_command_says_of_a_full_disk_one_line(tmp_path):
    """And nothing of what Orbax, asyncio and TensorStore have to say about it."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: step 1 could not be saved under {tmp_path}: the disk is full; free some space, then the same command "
        "starts again\n"
    )


@pytest.mark.parametrize("other", ["20", "(none)"])
def test_a_copy_with_zeros_before_its_name_is_named(tmp_path, other):
    """Orbax takes it for the step."""
    save_steps(tmp_path, (10, 20))
    shutil.copytree(tmp_path / "20", tmp_path / "0020")
    shutil.copytree(tmp_path / "20", tmp_path / "20 (copy)")
    if other == "(none)":
        shutil.rmtree(tmp_path / "20")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="0020 has no name of a checkpoint, which would be 20: move it"):
        Checkpoints(tmp_path, keep=2)
    newest = 10 if other == "(none)" else 20
    assert read_checkpoint(tmp_path, make_state(0))[0] == newest
    assert contents(tmp_path) == before
    shutil.rmtree(tmp_path / "0020")
    assert assert_restores(tmp_path) == newest
