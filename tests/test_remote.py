"""`gs://` paths, by the clients that really read and write them, against a stand-in for Google's side (`bucket`)."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import moments
import numpy as np
import pytest
import skimage.data
from etils import epath
from PIL import Image
from safetensors.numpy import load, load_file
from scripted_episodes import ScriptedAgent, answer, small_toolbox
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.data.sources import DataConfig
from actfer_jax.episodes.store import EpisodeWriter, picture_name, read_episodes, read_index, read_record
from actfer_jax.evaluation import analysis as analyze
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.reading import Policy
from actfer_jax.evaluation.run import evaluation_output
from actfer_jax.models import demo_checkpoint, load_pretrained, local_directory, logits, save_pretrained
from actfer_jax.outputs import MARKER, OutputError, check_directory
from actfer_jax.runs.checkpoints import CheckpointError, Checkpoints
from actfer_jax.runs.manifest import check_workdir
from actfer_jax.runs.metrics import MetricWriter, WorkdirError, is_timing, read_metrics
from actfer_jax.training.config import LoggingConfig
from actfer_jax.training.export import export
from actfer_jax.training.profiling import Profiler
from actfer_jax.training.rewind import rewind
from tests import bucket as stand_in
from tests.episodes.test_records import make_record, picture
from tests.runs.test_checkpoints import assert_restores, save_steps
from tests.training.test_train import KILLER

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, stand_in.serve(tmp_path_factory.mktemp("certificate")) as bucket:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield bucket
    assert not Path("gs:").exists()


def train(shared: Path, workdir: epath.PathLike, killer: list[str] | None = None) -> subprocess.CompletedProcess:
    program = ["-m", "actfer_jax.train"] if killer is None else ["-c", KILLER, *killer]
    small = ["--config=tests/hosts_config.py:sft", "--config.steps=2", "--config.traces.readings_steps=0"]
    command = [sys.executable, *program, *small, f"--workdir={workdir}", f"--config.data.cache_directory={shared}/data"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{shared}/programs", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles faster
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_training_in_a_bucket(bucket, shared):
    """Killed while it saves and started again, it ends as a local one does; its policy loads, and so does what is
    exported of it after its newest checkpoint was damaged."""
    expected, workdir = shared / "run", epath.Path("gs://bucket/run")
    local = train(shared, expected)
    assert local.returncode == 0, local.stderr[-3000:]
    killed = train(shared, workdir, killer=["SIGKILL", "during_save", "2"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = train(shared, workdir)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "continuing after step 1 of 2" in resumed.stderr
    assert "waiting" not in resumed.stderr and "run/lease.json" not in bucket.objects

    records, others = (
        [{name: value for name, value in record.items() if not is_timing(name)} for record in read_metrics(path)]
        for path in (workdir, expected)
    )
    assert records == others and len(records) == 2
    weights = load(bucket.objects["run/policy/model.safetensors"])
    others = load_file(expected / "policy" / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, value in others.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    agent, card = load_policy("gs://bucket/run/policy", "float32")
    assert card == PolicyCard.load(expected / "policy")
    for name, value in load_policy(str(expected / "policy"), "float32")[0].params.flat_state():
        np.testing.assert_array_equal(dict(agent.params.flat_state())[name][...], value[...], err_msg=str(name))

    newest = [name for name in bucket.objects if name.startswith("run/checkpoints/2/state")]
    name = max(newest, key=lambda name: len(bucket.objects[name]))
    bucket.put(name, bucket.objects[name][:-1] + b"?")
    assert export(workdir, epath.Path("gs://bucket/exported")) == 1
    assert load_policy("gs://bucket/exported", "float32")[0].model_config == agent.model_config
    # Whoever exports leaves the run, which may go on, as it is.
    assert not any(name.startswith("run/checkpoints/damaged/") for name in bucket.objects)
    assert name in bucket.objects


def test_what_cannot_be_written_is_named(bucket):
    with pytest.raises(WorkdirError, match="gs://elsewhere/run cannot be written"):
        check_workdir("gs://elsewhere/run", {})
    with pytest.raises(OutputError, match="gs://elsewhere/out cannot be written"):
        check_directory("gs://elsewhere/out", evaluation_output(()))
    with pytest.raises(CheckpointError, match="gs://elsewhere/checkpoints"):
        Checkpoints("gs://elsewhere/checkpoints", keep=1)
    with pytest.raises(ValueError, match="on a disk of each host"):
        DataConfig(cache_directory="gs://bucket/data")


def test_metrics_are_whole_after_every_step(bucket, tmp_path):
    workdir = epath.Path("gs://bucket/metrics")
    workdir.mkdir()
    with MetricWriter(workdir) as writer:
        for step in range(1, 4):
            writer.write(step, {"loss": step / 3})
            assert [record["step"] for record in read_metrics(workdir)] == list(range(1, step + 1))
    rewind(workdir, 2, explained=3)
    with MetricWriter(workdir) as writer:
        writer.write(3, {"loss": 7})
    assert [record["loss"] for record in read_metrics(workdir)] == [1 / 3, 2 / 3, 7]

    shown = []
    for name in sorted(bucket.objects):
        if name.startswith("metrics/events.out.tfevents"):
            (tmp_path / name.rsplit("/", 1)[1]).write_bytes(bucket.objects[name])
            events = EventAccumulator(str(tmp_path / name.rsplit("/", 1)[1]), size_guidance={"tensors": 0}).Reload()
            shown += [event.step for event in events.Tensors("loss")]
    assert sorted(shown) == [1, 2, 3]


def test_episodes_and_their_pictures(bucket):
    workdir = epath.Path("gs://bucket/episodes")
    workdir.mkdir()
    writer = EpisodeWriter(workdir)
    pictures = [picture(seed) for seed in range(40)]
    writer.write(1, [(make_record(str(index)), pictures[index:]) for index in range(3)])
    writer.write(2, [(make_record("later"), pictures[:1])])
    assert [len(record["images"]) for record in read_episodes(workdir)] == [40, 39, 38, 1]
    for view in pictures:
        png = bucket.objects[f"episodes/{picture_name(view)}"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), view.pixels)
    lines = list(read_index(workdir))
    assert [read_record(workdir, line)["id"] for line in lines] == ["0", "1", "2", "later"]
    EpisodeWriter(workdir).drop_after(1)
    assert [record["id"] for record in read_episodes(workdir)] == ["0", "1", "2"]


def test_a_model_in_a_bucket(bucket):
    url = "gs://bucket/models/demo"
    bucket.put("models/demo/more/file", b"not of a model")
    with pytest.raises(FileNotFoundError, match="gs://bucket/models/demo: there is no config.json"):
        load_pretrained(url)
    model = load_pretrained(demo_checkpoint())
    objects = dict(bucket.objects)
    with pytest.raises(OutputError, match="gs://bucket/models/demo holds files that are not of a policy"):
        save_pretrained(model, url)
    assert bucket.objects == objects

    # Written before there were markers, in shards.
    for name in ("actfer.json", "config.json", "model-00001-of-00002.safetensors", "README.md"):
        bucket.put(f"models/demo/{name}", b"{}")
    save_pretrained(model, url)
    names = {name.removeprefix("models/demo/") for name in bucket.objects if name.startswith("models/demo/")} - {""}
    assert names == {path.name for path in Path(demo_checkpoint()).iterdir()} | {"more/file", MARKER}
    assert bucket.objects["models/demo/README.md"] == b"{}" and bucket.objects["models/demo/more/file"]

    tokens_BxL = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(logits(load_pretrained(url), tokens_BxL), logits(model, tokens_BxL))


def test_a_kill_leaves_the_old_model_or_the_new_or_one_that_is_not_loaded(bucket, tmp_path, monkeypatch):
    """At any moment of a replacement in a bucket, where nothing can be renamed."""
    url, config = "gs://bucket/models/replaced", "models/replaced/config.json"
    old, new = load_pretrained(demo_checkpoint()), load_pretrained(demo_checkpoint(), dtype=jnp.bfloat16)
    monkeypatch.setattr("actfer_jax.models.huggingface._SHARD_BYTES", 2_000_000)
    save_pretrained(old, url)
    monkeypatch.undo()
    bucket.put("models/replaced/README.md", b"A model card.")
    monkeypatch.setattr(bucket, "objects", moments.Recorded(bucket.objects))
    save_pretrained(new, url)

    def model_files(objects):
        return {
            name: content
            for name, content in objects.items()
            if name.startswith("models/replaced/") and not name.rsplit("/", 1)[1].startswith(".actfer_")
        }

    states = bucket.objects.states
    before, after = model_files(states[0]), model_files(states[-1])
    assert any("-of-" in name for name in before) and not any("-of-" in name for name in after)
    assert all(state["models/replaced/README.md"] == b"A model card." for state in states)
    assert all(model_files(state) in (before, after) for state in states if config in state)

    incomplete = [state for state in states if config not in state]
    monkeypatch.setattr(bucket, "objects", incomplete[len(incomplete) // 2])
    with pytest.raises(FileNotFoundError, match="gs://bucket/models/replaced is not complete: .*give that command"):
        load_pretrained(url)
    save_pretrained(new, url)
    assert model_files(bucket.objects) == after


def test_a_model_is_copied_once_and_again_when_it_has_changed(bucket, monkeypatch):
    url = "gs://bucket/models/small"
    bucket.put("models/small/config.json", b'{"model_type": "llama"}')
    with monkeypatch.context() as patch:  # judged before anything is copied
        patch.setattr(type(epath.Path(url)), "copy", None)
        with pytest.raises(ValueError, match="gs://bucket/models/small/config.json: model_type is 'llama'"):
            local_directory(url)
    bucket.put("models/small/config.json", (Path(demo_checkpoint()) / "config.json").read_bytes())
    first = local_directory(url)
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(url)), "copy", None)
        assert local_directory(url) == first
    bucket.put("models/small/tokenizer.json", b"[]")
    second = local_directory(url)
    assert [path.name for path in sorted(second.iterdir())] == ["config.json", "tokenizer.json"]
    assert [path.name for path in first.iterdir()] == ["config.json"]

    def changes(self, *args, **options):
        bucket.put("models/small/chat_template.jinja", b"")
        return copy(self, *args, **options)

    copy, copies = type(epath.Path(url)).copy, set(first.parent.iterdir())
    bucket.put("models/small/tokenizer.json", b"[1]")
    monkeypatch.setattr(type(epath.Path(url)), "copy", changes)
    with pytest.raises(OSError, match="changed while it was copied"):
        local_directory(url)
    assert set(first.parent.iterdir()) == copies


@pytest.mark.slow
def test_only_whole_steps_are_restored(bucket):
    directory = "gs://bucket/checkpoints"
    save_steps(directory, [1, 2, 3, 4, 5], keep=4)
    assert not any(name.startswith("checkpoints/1/") for name in bucket.objects)
    assert assert_restores(directory) == 5

    # Killed between the checksums and the marker that commits a step: it is removed.
    del bucket.objects["checkpoints/5/commit_success.txt"]
    assert assert_restores(directory) == 4
    assert not any(name.startswith("checkpoints/5/") for name in bucket.objects)

    # Changed, or with a part missing, as after a kill while it was deleted: it is set aside.
    for step, change in ((4, lambda data: data[:-1] + bytes([data[-1] ^ 1])), (3, None)):
        name = next(name for name in bucket.objects if name.startswith(f"checkpoints/{step}/state/ocdbt.process_0/d/"))
        content = bucket.objects.pop(name)
        if change:
            bucket.put(name, change(content))
        assert assert_restores(directory) == step - 1
        assert f"checkpoints/damaged/{step}/checksums.json" in bucket.objects

    save_steps(directory, [3], keep=4)
    assert assert_restores(directory) == 3

    # The same of a step that is not the newest: the next save deletes the rest.
    bucket.objects.pop(
        next(name for name in bucket.objects if name.startswith("checkpoints/2/state/ocdbt.process_0/d/"))
    )
    save_steps(directory, [4], keep=2)
    assert assert_restores(directory) == 4
    assert not any(name.startswith("checkpoints/2/") for name in bucket.objects)


def test_a_profile_is_traced(bucket):
    config = LoggingConfig(profile_start=2, profile_steps=9, memory_profile_step=1)
    # The run ends within the window.
    with Profiler(config, epath.Path("gs://bucket/profiled")) as profiler:
        for number in range(1, 4):
            with profiler.step(number):
                jax.block_until_ready(jnp.ones(3) + number)
    assert "profiled/profile/memory.prof" in bucket.objects
    assert [name for name in bucket.objects if name.startswith("profiled/profile/") and name.endswith(".xplane.pb")]


def test_an_analysis_into_a_bucket(bucket, tmp_path, monkeypatch):
    agent = ScriptedAgent(small_toolbox(), lambda query, treatment: [answer("happiness", "AU6 AU12", "A smile.")])
    monkeypatch.setattr(
        analyze, "load_policy", lambda *_: Policy(agent, PolicyCard(("happiness",), (), {}, {}), "a/policy")
    )
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "portrait.png")
    out = epath.Path("gs://bucket/analysis")
    assert analyze.analyze([str(tmp_path / "portrait.png")], "a/policy", out, "float32") == 0
    record = json.loads(bucket.objects["analysis/episodes.jsonl"])
    assert record["prediction"]["emotion"] == "happiness"
    assert all(f"analysis/{name}" in bucket.objects for name in record["images"])
    assert b"portrait.png" in bucket.objects["analysis/index.html"]
    assert not any(name.startswith("analysis/episodes/") for name in bucket.objects)
