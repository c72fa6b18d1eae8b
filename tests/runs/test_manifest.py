"""The manifest says what ran, and a workdir takes only the run that is in it, or one that is told to differ."""

import json
import os
import subprocess

import jax
import ml_collections
import pytest

from actfer_jax.config import ConfigError
from actfer_jax.runs.manifest import check_workdir, date_changes, manifest_config, write_manifest
from actfer_jax.runs.metrics import MetricWriter, WorkdirError


def config(**changes) -> ml_collections.ConfigDict:
    model = {"layers": 4, "path": None}
    defaults = {"seed": 0, "steps": 10, "logging": {"every": 1}, "model": model, "classes": ("fear", "anger")}
    return ml_collections.ConfigDict({**defaults, **changes})


def begun(workdir, config) -> None:
    """Writes what a run leaves that has done its first step."""
    write_manifest(workdir, config, "abc")
    MetricWriter(workdir).close()


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


def test_a_key_that_came_later_is_no_change_where_its_value_was_in_effect(tmp_path):
    begun(tmp_path, config(rollout={"max_turns": 4}))
    check_workdir(tmp_path, config(rollout={"max_turns": 4, "ask_aus": True, "images": 1}))
    with pytest.raises(WorkdirError, match=r"rollout.ask_aus \(True there, False here\)"):
        check_workdir(tmp_path, config(rollout={"max_turns": 4, "ask_aus": False}))


def test_a_workdir_of_another_config_is_refused_by_key(tmp_path):
    write_manifest(tmp_path, config(seed=3), "abc")
    check_workdir(tmp_path, config())  # nothing was done there
    begun(tmp_path, config())
    check_workdir(tmp_path, config())
    check_workdir(tmp_path, config(steps=20, logging={"every": 3}))
    # Other hosts and devices, with the data elsewhere on their disks, and steps in other pieces.
    moved = {"mesh": {"update": (2, 1, 1)}, "data": {"cache_directory": "/data"}}
    moved |= {"rollout": {"tool_threads": 8, "chunk": 8, "fill_rows": 8}, "batch": {"microbatches": 2}}
    check_workdir(tmp_path, config(**moved, evaluation={"data": {"cache_directory": "/data"}, "queries": 3}))
    many = {f"key{n}": n for n in range(20)}
    with pytest.raises(WorkdirError, match=r"model.layers \(4 there, 6 here\), seed \(0 there, 1 here\)") as error:
        check_workdir(tmp_path, config(seed=1, model={"layers": 6, "path": None}, **many))
    said = str(error.value)
    assert " steps" not in said and all(f"key{n} ('absent' there, {n} here)" in said for n in range(20))
    assert said.endswith(
        "or begin a new run from these weights, in another --workdir, with --config.model.path=DIR, "
        f"after `python -m actfer_jax.export --workdir={tmp_path} --out=DIR`"
    )
    (tmp_path / "policy").mkdir()
    with pytest.raises(WorkdirError, match=rf"from these weights.*--config.model.path={tmp_path}/policy$"):
        check_workdir(tmp_path, config(seed=1))
    for damaged in ("{", "[]", '{"config": 3}', "{}"):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(WorkdirError, match="manifest.json"):
            check_workdir(tmp_path, config())


def test_rooms_only_grow(tmp_path):
    def rooms(**rollout) -> ml_collections.ConfigDict:
        return config(rollout={"prompt_tokens": 32, "max_length": 208, "turn_tokens": 32, **rollout})

    begun(tmp_path, rooms())
    check_workdir(tmp_path, rooms(prompt_tokens=40, max_length=256))
    with pytest.raises(WorkdirError, match=r"rollout.max_length \(208 there, 144 here; it may only grow\);"):
        check_workdir(tmp_path, rooms(prompt_tokens=40, max_length=144))
    with pytest.raises(WorkdirError, match=r"another config: rollout.turn_tokens \(32 there, 48 here\);"):
        check_workdir(tmp_path, rooms(prompt_tokens=40, turn_tokens=48))


def test_what_may_change_is_said_by_key_and_kept_with_its_step(tmp_path):
    def learning(rate: float, **changes) -> ml_collections.ConfigDict:
        return config(optimizer={"learning_rate": rate, "b1": 0.9}, **changes)

    def start(raw_config, allowed, step: int) -> list[dict]:
        check_workdir(tmp_path, raw_config, allowed)
        write_manifest(tmp_path, raw_config, "abc")
        date_changes(tmp_path, step)
        return json.loads((tmp_path / "manifest.json").read_text())["changes"]

    begun(tmp_path, learning(1e-6))
    with pytest.raises(WorkdirError, match=r"with --allow_changes=optimizer.learning_rate,seed; or begin a new run"):
        check_workdir(tmp_path, learning(2e-6, seed=1))
    with pytest.raises(WorkdirError, match=r"config: seed .*with --allow_changes=optimizer.learning_rate,seed; or"):
        check_workdir(tmp_path, learning(2e-6, seed=1), ["optimizer.learning_rate"])
    with pytest.raises(ConfigError, match=r"=optimizer.learning_rat: .* did you mean optimizer.learning_rate"):
        check_workdir(tmp_path, learning(2e-6), ["optimizer.learning_rat"])
    # What the refusal advises is taken, for a key that is there no longer too.
    without = config(optimizer={"learning_rate": 1e-6})
    with pytest.raises(WorkdirError, match=r"optimizer.b1 \(0.9 there, 'absent' here\).*--allow_changes=optimizer.b1;"):
        check_workdir(tmp_path, without)
    check_workdir(tmp_path, without, ["optimizer.b1"])

    allowed = ["optimizer.learning_rate"]
    rate = {"step": 40, "key": "optimizer.learning_rate", "old": 1e-6, "new": 2e-6}
    assert start(learning(2e-6), allowed, 40) == [rate]
    # The same command, started again by a script.
    assert start(learning(2e-6), allowed, 60) == [rate]
    steps = {"step": 60, "key": "steps", "old": 10, "new": 100}
    assert start(learning(2e-6, steps=100), [], 60) == [rate, steps]
    # A start that fails before it knows its step, and then one that goes back behind what was done.
    write_manifest(tmp_path, learning(3e-6, steps=100), "abc")
    assert [change["step"] for change in start(learning(3e-6, steps=100), [], 50)] == [40, 50, 50]
    assert [change["step"] for change in start(learning(3e-6, steps=100), [], 0)] == [0, 0, 0]
    assert [change["step"] for change in start(learning(3e-6, steps=100), [], 20)] == [0, 0, 0]


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
