"""The commands as a person runs them, on a small model with random weights."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import skimage.data
from etils import epath
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file
from scripted_episodes import ScriptedAgent, answer, small_toolbox

import actfer_jax
from actfer_jax import facs
from actfer_jax.agent.episode import Sample
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.datasets.synth_faces.world import DEMO_EMOTIONS
from actfer_jax.episodes.store import read_episodes
from actfer_jax.evaluation import run as evaluating
from actfer_jax.evaluation.analysis import ANALYSIS, analyze
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.run import EvaluateConfig, evaluate, evaluation_output
from actfer_jax.faces.views import ViewConfig
from actfer_jax.models import Qwen3VL, load_pretrained, save_pretrained
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.outputs import OutputError, check_directory
from actfer_jax.rollout.engine import Query, RolloutConfig
from actfer_jax.runs.checkpoints import CheckpointError, Checkpoints
from actfer_jax.runs.manifest import write_manifest
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.demo import write_demo
from actfer_jax.training.export import export
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.state import initial_state
from configs import ucgrpo
from configs.eval import synth_faces
from tests.runs.test_checkpoints import contents

ROOT = Path(__file__).parents[2]
VIEWS = ViewConfig(
    scene_min_pixels=2048, scene_max_pixels=9216, aligned_side=64, zoom_min_pixels=2048, zoom_max_pixels=6144
)
ROLLOUT = RolloutConfig(
    prompt_style="brief", prompt_tokens=32, turn_tokens=16, reply_tokens=48, max_length=160, chunk=8, fill_rows=2
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    source, directory = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("run") / "policy"
    write_demo(source)
    model = Qwen3VL(Qwen3VLConfig.from_json(source / "config.json"), rngs=nnx.Rngs(0))
    model.source = str(source)
    save_pretrained(model, directory)
    PolicyCard(DEMO_EMOTIONS, ("synth_faces",), vars(VIEWS), vars(ROLLOUT)).save(directory)
    return directory


def run_command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"actfer_jax.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_evaluate_writes_table_results_plots_and_records(checkpoint, tmp_path):
    out = tmp_path / "out"
    done = run_command(
        "evaluate",
        "--config=configs/eval/synth_faces.py",
        "--config.data.size=3",
        "--config.queries=2",
        "--config.controls=('no_tools',)",
        f"--config.data.cache_directory={tmp_path / 'data'}",
        f"--checkpoint={checkpoint}",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("control ") :].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["normal", "no_tools"]
    assert "6/6 episodes" in done.stderr
    results = json.loads((out / "results.json").read_text())
    made = results["provenance"]
    assert list(results)[0] == "provenance" and made["policy"] == str(checkpoint) and made["size"] == 3
    assert datetime.fromisoformat(made["date"]).utcoffset() == timedelta(0)
    line = done.stdout[: done.stdout.index("control ")].splitlines()[-1]
    assert line.startswith(f"synth_faces test, 3 samples | {checkpoint} | actfer_jax {actfer_jax.__version__}, ")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert made["git_commit"] in (None, head) and line.endswith(made["date"])
    assert results["trained_on"] == ["synth_faces"] and results["config"]["data"]["size"] == 3
    assert {control: summary["episodes"] for control, summary in results["results"].items()} == {
        "normal": 3,
        "no_tools": 3,
    }
    for name in ("confusion.png", "aus.png", "zoom.png"):
        with Image.open(out / name) as picture:
            picture.verify()
    records = list(read_episodes(out))
    assert len({record["id"] for record in records}) == 6
    assert all(len(record["token_ids"]) == len(record["logprobs"]) for record in records)
    assert all(set(record["reward"]) >= {"total", "format", "emotion"} for record in records)


@pytest.mark.slow
def test_analyze_exits_with_an_error_where_a_picture_cannot_be_read(checkpoint, tmp_path):
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "portrait.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    pictures = [tmp_path / "broken.jpg", tmp_path / "portrait.jpg"]
    done = run_command("analyze", *pictures, f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr and "1 of 2 pictures could not be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert "portrait.jpg" in done.stdout
    (record,) = (json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines())
    assert record["image"].endswith("portrait.jpg") and len(record["images"]) >= 1
    assert "data:image/jpeg" in (tmp_path / "out" / "index.html").read_text()


def card(**changes: object) -> str:
    return json.dumps({"labels": ["joy"], "trained_on": [], "views": {}, "rollout": {}} | changes)


def damage(checkpoint: Path, tmp_path: Path, name: str, content: str | None) -> Path:
    """A copy of a checkpoint in which one file is other, or not there."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoint.iterdir():
        if path.name != name:
            (copy / path.name).symlink_to(path)
    if content is not None:
        (copy / name).write_text(content)
    return copy


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("actfer.json", "{", r"actfer\.json cannot be read"),
        ("actfer.json", "", r"actfer\.json cannot be read"),
        ("actfer.json", "[]", r"actfer\.json cannot be read .*a section"),
        ("actfer.json", "{}", r"actfer\.json cannot be read .*labels is missing"),
        ("actfer.json", card(labels="joy"), r"actfer\.json cannot be read .*labels is .*it must be a tuple"),
        ("actfer.json", card(views=None), r"actfer\.json cannot be read .*views is .*it must be a section"),
        ("actfer.json", card(views={"size": 1}), r"actfer\.json: .*size"),
        ("actfer.json", card(rollout={"chunk": 0}), "chunk is 0"),
        ("actfer.json", card(rollout={"chunk": "8"}), r"rollout\.chunk is .*it must be int"),
        ("tokenizer.json", None, "there is no tokenizer; copy"),
        ("tokenizer.json", "", "the tokenizer cannot be loaded .*copy"),
        ("tokenizer.json", "[]", "the tokenizer cannot be loaded .*copy"),
        ("chat_template.jinja", None, "no chat template; add chat_template.jinja"),
        ("chat_template.jinja", "{{ messages[0].content }}", "chat template"),
        ("chat_template.jinja", "{% if %}", "chat template"),
        ("preprocessor_config.json", None, "the image processor is not there; copy preprocessor_config.json"),
        ("preprocessor_config.json", "[]", "the image processor cannot be loaded; copy preprocessor_config.json"),
        ("config.json", None, "copy is not complete: .*give that command again"),
        ("config.json", '{"model_type": "llama"}', "model_type is 'llama'"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", "x", "not a sound safetensors file"),
    ],
)
def test_unusable_checkpoints_are_refused_by_name(checkpoint, tmp_path, name, content, message):
    copy = damage(checkpoint, tmp_path, name, content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_policy(str(copy), "float32")
    assert str(copy) in str(raised.value)


def test_a_model_that_was_not_trained_here_acts_with_the_default_views(checkpoint, tmp_path):
    # The processor of a published Qwen3-VL takes larger pictures than that of the small policy.
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    processor["size"] = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    copy = damage(checkpoint, tmp_path, "preprocessor_config.json", json.dumps(processor))
    (copy / "actfer.json").unlink()
    agent, card = load_policy(str(copy), "float32")
    assert agent.toolbox.view_config == ViewConfig() and agent.rollout == RolloutConfig()
    assert card.labels == facs.EMOTIONS and card.trained_on == ()


def test_a_landmark_model_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"^/nowhere\.dat: no such landmark model"):
        load_policy("demo", "float32", "/nowhere.dat")


@pytest.fixture(scope="module")
def training(checkpoint, tmp_path_factory) -> Path:
    """The workdir of a run with three checkpoints; in that of step n all parameters are n more than at the start."""
    workdir = tmp_path_factory.mktemp("training")
    raw_config = ucgrpo.get_config("demo")
    raw_config.model.path = str(checkpoint)
    write_manifest(workdir, raw_config, "")
    config = read_config(raw_config, TrainConfig, "config")
    optimizer = make_optimizer(config.optimizer, config.steps)
    params = nnx.state(load_pretrained(checkpoint), nnx.Param)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        for step in (1, 2, 3):
            state = initial_state(jax.tree.map(lambda x, step=step: x + step, params), optimizer, config)
            checkpoints.save(step, state, {})
    return workdir


@pytest.mark.slow
def test_any_checkpoint_is_exported_and_the_run_left_as_it_is(training, checkpoint, tmp_path):
    """Of a run that is saving its next step, and whose newest one is damaged."""
    checkpoints = training / "checkpoints"
    (checkpoints / "4.orbax-checkpoint-tmp").mkdir()
    newest = max((checkpoints / "3").rglob("*"), key=lambda path: path.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:-1])
    before = contents(training)
    assert export(epath.Path(training), epath.Path(tmp_path / "2")) == 2
    done = run_command("export", f"--workdir={os.path.relpath(training)}", f"--out={tmp_path / '1'}", "--step=1")
    assert done.returncode == 0 and "after step 1" in done.stdout, done.stderr
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are: 1, 2, 3"):
        export(epath.Path(training), epath.Path(tmp_path / "7"), 7)
    assert contents(training) == before

    start = load_file(checkpoint / "model.safetensors")
    for step in (1, 2):
        weights = load_file(tmp_path / str(step) / "model.safetensors")
        assert weights.keys() == start.keys()
        for name, value in start.items():
            np.testing.assert_array_equal(weights[name], value + np.float32(step), err_msg=name)
        agent, card = load_policy(str(tmp_path / str(step)), "float32")
        assert card.trained_on == ("synth_faces",) and agent.rollout.max_length == 208


def test_a_run_whose_cache_was_called_data_directory_is_exported(training, tmp_path):
    manifest = json.loads((training / "manifest.json").read_text())
    for data in (manifest["config"]["data"], manifest["config"]["evaluation"]["data"]):
        del data["cache_directory"]
        data["directory"] = "~/.cache/actfer_jax/data"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "checkpoints").symlink_to(training / "checkpoints")
    assert export(epath.Path(tmp_path), epath.Path(tmp_path.with_name("policy")), 1) == 1


def test_a_run_or_its_checkpoint_given_as_a_policy_is_sent_on(training, checkpoint, tmp_path):
    for given, step in [(training, ""), (training / "checkpoints", ""), (training / "checkpoints" / "2", " --step=2")]:
        with pytest.raises(ConfigError, match="training run, no model") as raised:
            load_policy(str(given), "float32")
        assert f"`python -m actfer_jax.export --workdir={training}{step} --out=DIR`" in str(raised.value)
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "policy").symlink_to(checkpoint)
    with pytest.raises(ConfigError, match=f"its policy is {tmp_path}/policy: give that"):
        load_policy(str(tmp_path), "float32")


def test_a_path_that_looks_like_a_name_on_the_hub_is_a_path(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="checkpoint '' cannot be used: path is ''"):
        load_policy("", "float32")
    for given in ("../nowhere", "./runs/nowhere", "~/nowhere"):
        monkeypatch.setenv("HOME", str(tmp_path / "runs"))
        with pytest.raises(ConfigError, match=f"{tmp_path}/.*nowhere") as raised:
            load_policy(given, "float32")
        assert "hub" not in str(raised.value)
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert load_policy("~/policy", "float32")[1].trained_on == ("synth_faces",)
    assert load_policy(f"file://{checkpoint}", "float32")[1].trained_on == ("synth_faces",)


def test_what_is_no_run_cannot_be_exported(training, tmp_path):
    with pytest.raises(ConfigError, match="is not the workdir of a training run"):
        export(epath.Path(tmp_path), epath.Path(tmp_path / "out"))
    manifest = json.loads((training / "manifest.json").read_text())
    manifest["config"]["model"]["path"] = "/nowhere"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="model '/nowhere', which the run began with, cannot be used"):
        export(epath.Path(tmp_path), epath.Path(tmp_path / "out"))
    manifest["config"]["model"]["path"] = "demo"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no checkpoint that can be used; there is none"):
        export(epath.Path(tmp_path), epath.Path(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_an_export_takes_nothing_from_a_run_or_from_other_files(training, tmp_path):
    run = epath.Path(shutil.copytree(training, tmp_path / "runs" / "one"))
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    for out, words in {
        "runs/one": "is the workdir of the run",
        "link": "is the workdir of the run",
        "runs": "holds .*, the workdir of the run",
        "runs/one/checkpoints/1": "lies among the files of the run",
        "runs/one/episodes": "lies among the files of the run",
        "thesis": r"thesis holds files that are not of a policy written by actfer_jax \(thesis.tex\)",
        "runs/one/manifest.json": "is a file, not a directory",
    }.items():
        with pytest.raises(OutputError, match=words):
            export(run, epath.Path(tmp_path / out), 1)
    assert contents(tmp_path) == before

    done = run_command("export", f"--workdir={run}", f"--out={run}")
    assert done.returncode == 1 and "is the workdir of the run" in done.stderr and "Traceback" not in done.stderr

    # A new name in the workdir, twice; what is put beside the policy stays.
    policy = run / "policy-1"
    for step in (1, 2):
        export(run, policy, step)
        agent, card = load_policy(str(policy), "float32")
        assert card.trained_on == ("synth_faces",)
        (policy / "README.md").write_text("A model card.")
    assert contents(tmp_path).items() >= before.items()
    with pytest.raises(OutputError, match="policy-1 holds a policy, not an evaluation"):
        evaluate(read_config(synth_faces.get_config(), EvaluateConfig, "config"), "demo", policy)
    assert (policy / "README.md").read_text() == "A model card."


def test_the_model_that_a_run_began_with_is_not_replaced_by_its_policy(training, checkpoint):
    before = contents(checkpoint)
    with pytest.raises(OutputError, match="policy is config.model.path, which the run began with"):
        export(epath.Path(training), epath.Path(checkpoint), 1)
    assert contents(checkpoint) == before


def test_the_demo_is_written_where_nothing_else_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="notes.txt"):
        write_demo(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    write_demo(tmp_path / "demo")
    (tmp_path / "demo" / "model.safetensors").write_text("weights")
    write_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "model.safetensors").read_text() == "weights"


def test_a_training_run_is_not_written_into(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    before = contents(tmp_path)
    for output in (evaluation_output(("zoom",)), ANALYSIS):
        with pytest.raises(OutputError, match="holds a training run"):
            check_directory(tmp_path, output)
    assert contents(tmp_path) == before


def test_work_that_fails_costs_no_earlier_results(queries, tmp_path, monkeypatch):
    """At its start, at its end, or by an interrupt; and what is beside results stays when they are replaced."""
    agent = ScriptedAgent(small_toolbox(), lambda query, treatment: [answer("happiness", "AU6 AU12", "A smile.")])
    monkeypatch.setattr(evaluating, "load_policy", lambda *_: (agent, PolicyCard(DEMO_EMOTIONS, (), {}, {})))
    monkeypatch.setattr(evaluating, "open_source", lambda _: Faces(queries[:3]))
    raw_config = synth_faces.get_config()
    raw_config.queries, raw_config.controls = 2, ()
    out = epath.Path(tmp_path / "out")

    def evaluate_with(seed: int) -> None:
        raw_config.seed = seed
        evaluating.evaluate(read_config(raw_config, EvaluateConfig, "config"), "a/policy", out)

    evaluate_with(0)
    (out / "notes.md").write_text("mine")
    (out / "episodes" / ".DS_Store").write_text("macOS")
    before = contents(tmp_path)
    assert {"results.json", "zoom.png", "episodes/normal-00000001-host0.jsonl"} <= {
        name.removeprefix("out/") for name in before
    }
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "load_policy", load_policy)
        with pytest.raises(ConfigError, match="/nowhere"):
            evaluate(read_config(synth_faces.get_config(), EvaluateConfig, "config"), "/nowhere", out)
    for broken, error in (
        ("play", KeyboardInterrupt),
        ("write_atomically", ValueError),
        ("publish", OSError),
    ):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(evaluating, broken, Mock(side_effect=error))
            evaluate_with(1)
        assert contents(tmp_path) == before

    monkeypatch.setattr(evaluating, "open_source", lambda _: Faces(queries[:1]))
    evaluate_with(1)
    assert json.loads((out / "results.json").read_text())["config"]["seed"] == 1
    assert [record["id"] for record in read_episodes(out)] == ["normal/synth_faces/validation/0"]
    assert (out / "notes.md").read_text() == "mine" and (out / "episodes" / ".DS_Store").read_text() == "macOS"
    assert len(list((out / "images").iterdir())) == 1


def test_a_place_that_cannot_be_used_is_said_first(tmp_path):
    """Before a checkpoint is loaded: this one is not there."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    config = read_config(synth_faces.get_config(), EvaluateConfig, "config")
    for out, words in (
        (".", "holds files that are not of"),
        (tmp_path / "file", "is a file, not a directory"),
        (tmp_path / "link", "is a link to nowhere"),
        (tmp_path / "file" / "out", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=words):
            evaluate(config, "/nowhere", epath.Path(out))
        with pytest.raises(OutputError, match=words):
            analyze(["picture.png"], "/nowhere", epath.Path(out), "float32")
    with pytest.raises(ConfigError, match="/nowhere"):
        analyze(["picture.png"], "/nowhere", epath.Path(tmp_path / "new"), "float32")
    assert not (tmp_path / "new").exists()


@dataclass(frozen=True)
class Faces:
    """A few samples as a data set."""

    queries: list[Query]

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Sample:
        query = self.queries[index]
        return Sample(query.dataset, query.name, query.images, query.reference)
