"""The examples of docs/extending.md together: a data set, a reward, an estimator and a benchmark of a user's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from actfer_jax.data import synth_faces
from actfer_jax.episodes.store import read_episodes

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of machine code: compiles faster
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_modules_of_ones_own_are_trained_with_and_evaluated_on(tmp_path):
    for index in range(14):
        face = synth_faces.face_of("validation", index)
        path = tmp_path / "faces" / face.emotion / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synth_faces.render(face).image).save(path)
    data = (f"--config.data.directory={tmp_path}/faces", f"--config.data.cache_directory={tmp_path}/cache")
    workdir = tmp_path / "run"
    run(
        "actfer_jax.train",
        "--config=configs/ucgrpo.py:demo",
        "--config.data.name=examples.my_faces",
        *data,
        "--config.data.size=None",
        "--config.reward.name=examples.brief_reward",
        "--config.reward.word_price=0.25",
        "--config.estimator.name=examples.leave_one_out",
        "--config.evaluation=None",
        "--config.steps=2",
        "--config.batch.queries=2",
        "--config.batch.rollouts=4",
        "--config.rollout.temperature=1.4",
        f"--workdir={workdir}",
    )
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    records = list(read_episodes(workdir))
    assert len(records) == 16 and {record["dataset"] for record in records} == {"my_faces"}
    for row in rows:
        steps = [record for record in records if record["id"].startswith(f"{row['step']}-")]
        # What the two examples promise, from the episodes: a price on words, and each reward against the others'.
        for first in range(0, 8, 4):
            group = steps[first : first + 4]
            totals = [record["reward"]["total"] for record in group]
            for record, total in zip(group, totals, strict=True):
                words = sum(
                    len(turn["text"].split("</think>")[0].removeprefix("<think>").split()) for turn in record["turns"]
                )
                looked = [turn for turn in record["turns"] if turn["view"] and "zoom" in turn["call"]["name"]]
                others = (sum(totals) - total) / 3
                assert abs(record["advantage"] - (total - others)) < 1e-5
                if record["reward"]["format"]:
                    task = record["reward"]["emotion"]
                    assert abs(total - (task + 0.1 - 0.25 * words - 0.09 * len(looked))) < 1e-5
        assert row["adv/largest"] == max(abs(record["advantage"]) for record in steps)
    shown = run(
        "actfer_jax.evaluate",
        "--config=configs/eval/synth_faces.py",
        "--config.data.name=examples.my_faces",
        *data,
        "--config.data.size=7",
        "--config.queries=7",
        "--config.controls=()",
        "--config.benchmark.name=examples.top_confusions",
        "--config.benchmark.most=2",
        f"--checkpoint={workdir}/policy",
        f"--out={tmp_path}/evaluation",
    )
    assert "examples.my_faces" in shown
    figures = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]["normal"]
    assert figures["n"] == 7 and len(figures["confusions"]) <= 2
    assert f"normal: {figures['wrong']} of 7 are wrong" in shown


@pytest.mark.slow
def test_a_grammar_of_ones_own_is_learned_from_traces_and_evaluated_with(tmp_path):
    cache, workdir = f"--config.data.cache_directory={tmp_path}/cache", tmp_path / "run"
    rooms = {"prompt_tokens": 128, "turn_tokens": 96, "reply_tokens": 48, "max_length": 448}
    run(
        "actfer_jax.train",
        "--config=configs/sft.py:demo",
        "--config.rollout.format=examples.json_answers",
        *(f"--config.rollout.{key}={value}" for key, value in rooms.items()),
        "--config.batch.length=448",
        "--config.batch.queries=2",
        "--config.traces.readings_steps=0",
        "--config.data.size=4",
        "--config.evaluation=None",
        "--config.steps=2",
        "--config.logging.every=1",
        cache,
        f"--workdir={workdir}",
    )
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(row["sft/loss"] > 0 for row in rows)
    out = tmp_path / "evaluation"
    run(
        "actfer_jax.evaluate",
        "--config=configs/eval/synth_faces.py",
        cache,
        "--config.data.size=2",
        "--config.queries=2",
        "--config.controls=()",
        f"--checkpoint={workdir}/policy",
        f"--out={out}",
    )
    records = list(read_episodes(out))
    # Two steps teach no grammar: what the policy writes is read by the example's, in its words.
    assert [record["turns"][0]["error"] for record in records] == ["the turn is not one JSON object"] * 2
