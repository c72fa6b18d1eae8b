"""What differs between two runs is named and shown: one difference of each kind, planted in made-up workdirs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from actfer_jax import diff
from actfer_jax.agent.episode import Episode, Reference, Reply
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.errors import UserError
from actfer_jax.evaluation.difference import differences
from actfer_jax.faces.views import View
from actfer_jax.rollout.batch import Sequence
from actfer_jax.rollout.engine import Query, Rollout
from actfer_jax.runs.checkpoints import Checkpoints
from actfer_jax.runs.manifest import MANIFEST, write_manifest
from actfer_jax.runs.metrics import MetricWriter, WorkdirError
from configs import ucgrpo

ZOOM = '<think>tense lids</think><tool_call>{"name": "zoom", "arguments": {"region": "mouth"}}</tool_call>'
ANSWER = "<think>lips apart</think><aus>AU25</aus><answer>fear</answer>"
STEPS = (1, 2)


def view(grey: int) -> View:
    return View(np.full((4, 4, 3), grey, np.uint8), np.eye(3), "mouth")


def rollout() -> Rollout:
    """A prompt of three tokens, a turn of four, a reply of two, an answer of three."""
    reply = Reply("mouth of face 0, 4 x 4 pixels", ok=True, tool="zoom", view=view(7), region="mouth", inspects=True)
    image = np.zeros((8, 8, 3), np.uint8)
    query = Query("faces", "one", (image,), Reference(("fear", "joy"), "fear", frozenset({25})))
    wrote = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1], bool)
    log_probs = np.where(wrote, -0.5, 0).astype(np.float32)
    sequence = Sequence(list(range(10, 22)), wrote.tolist(), [])
    episode = Episode.from_texts(ZOOM, ANSWER, replies=(reply,))
    return Rollout(query, episode, [view(0), view(7)], sequence, log_probs, log_probs.copy())


def write(workdir: Path, plant: Callable[[Rollout], None] | None = None, **changes: object) -> Path:
    """A run of two steps with two episodes each; `plant` changes the last episode of the last step."""
    workdir.mkdir()
    config = ucgrpo.get_config("demo")
    config.seed = changes.get("seed", 0)
    config.data.cache_directory = str(workdir)  # which no other has
    write_manifest(workdir, config, "hash")
    with MetricWriter(workdir) as metrics, Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        for step in STEPS:
            rows = [rollout() for _ in range(2)]
            if plant is not None and step == STEPS[-1]:
                plant(rows[-1])
            last = changes if step == STEPS[-1] else {}
            made = [
                to_record(
                    row, id=f"{step}-0-{g}", reward={"total": 1.0}, advantage=last.get("advantage", 0.5), trained_on=()
                )
                for g, row in enumerate(rows)
            ]
            EpisodeWriter(workdir).write(step, made)
            metrics.write(step, {"reward/total": last.get("reward", 1.0), "perf/step_s": float(len(str(workdir)))})
            weight = np.arange(4, dtype=np.float32)
            weight[2] += last.get("weight", 0)
            checkpoints.save(step, {"params": {"b": jnp.zeros(2), "w": jnp.asarray(weight)}}, {})
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("runs") / "a")


def another_token(row: Rollout) -> None:
    row.sequence.tokens[5], row.log_probs[5] = 99, -0.25
    row.episode.turns[0].text = ZOOM.replace("tense", "raised")


def another_prompt(row: Rollout) -> None:
    row.sequence.tokens[1] = 99


def another_reply(row: Rollout) -> None:
    row.episode.turns[0].reply = replace(row.episode.turns[0].reply, text="mouth of face 0, 5 x 4 pixels")
    row.sequence.tokens[8] = 99


def another_view(row: Rollout) -> None:
    row.views[1] = view(8)
    row.episode.turns[0].reply = replace(row.episode.turns[0].reply, view=view(8))


def another_sample(row: Rollout) -> None:
    row.query = replace(row.query, name="two")


def another_probability(row: Rollout) -> None:
    row.log_probs[10] = -0.25


LAST = "step 2, episode 2-0-1, "


@pytest.mark.parametrize(
    ("plant", "changes", "named", "shown"),
    [
        (None, {"seed": 3}, "config: seed is 0 in the first run, 3 in the second", ""),
        (another_sample, {}, LAST + "data: image", "'two'"),
        (another_prompt, {}, LAST + "prompt, token 1: 11 | 99", ""),
        (
            another_token,
            {},
            LAST + "turn 1, token 2: 15 | 99, log-probability -0.5 | -0.25",
            "'<think>raised lids",
        ),
        (another_reply, {}, LAST + "turn 1, tool reply", "5 x 4 pixels"),
        (another_view, {}, LAST + "turn 1, tool reply, view", "images/"),
        (another_probability, {}, LAST + "logprobs, token 10 of the row: -0.5 | -0.25", ""),
        (None, {"advantage": 0.75}, "step 2, episode 2-0-0, advantage", "0.75"),
        (None, {"reward": 0.5}, "step 2, metric reward/total: 1.0 in the first run, 0.5 in the second", ""),
        (
            None,
            {"weight": 1e-3},
            "step 2, parameters: ['params']['w'] is float32[4] ",
            "; 1 of 4 numbers differ, by at most 0.001",
        ),
    ],
)
def test_a_planted_difference_is_named_and_shown(run, tmp_path, plant, changes, named, shown):
    (found,) = differences(run, write(tmp_path / "b", plant, **changes))
    assert found.startswith(named) and shown in found


def test_of_several_differences_the_first_is_named(run, tmp_path):
    """What was written comes before the metrics and parameters that follow from it."""
    other = write(tmp_path / "b", another_token, reward=0.5, weight=1.0)
    (found,) = differences(run, other)
    assert found.startswith(LAST + "turn 1, token 2")
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["versions"]["jax"] = "0.0.1"
    (other / MANIFEST).write_text(json.dumps(manifest))
    versions, step = differences(run, other)
    assert versions.startswith("versions: versions.jax is ") and "'0.0.1' in the second" in versions and step == found


def test_the_command_says_by_its_status_whether_two_runs_are_the_same(run, tmp_path, capsys):
    def status(*runs: Path) -> int:
        with pytest.raises(SystemExit) as ended:
            diff.main(["diff", *map(str, runs)])
        return int(ended.value.code)

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert status(run, copy) == 0 and capsys.readouterr().out == "no difference\n"
    (copy / "metrics.jsonl").write_text((copy / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    assert status(run, copy) == 1
    assert capsys.readouterr().out == "steps: 2 in the first run, 1 in the second\n"
    with pytest.raises(WorkdirError, match="elsewhere is not the workdir of a training run"):
        diff.main(["diff", str(run), str(tmp_path / "elsewhere")])
    with pytest.raises(UserError, match="give two workdirs"):
        diff.main(["diff", str(run)])
