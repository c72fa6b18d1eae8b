"""Evaluations in shards: killed, gone on with, merged, and compared with one in one piece. And pictures that cannot be
read."""

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from data_fixtures import put, write_disfa
from etils import epath
from ml_collections import config_flags
from scripted_episodes import ScriptedAgent, call, small_toolbox

from actfer_jax import cli
from actfer_jax import evaluate as door
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.config import ConfigError, read_config
from actfer_jax.errors import UserError
from actfer_jax.evaluation import run as evaluating
from actfer_jax.evaluation import shards
from actfer_jax.evaluation.run import EvaluateConfig, in_words
from actfer_jax.evaluation.shards import Shard, evaluate_shard, merge
from actfer_jax.faces.images import ImageError
from actfer_jax.outputs import MARKER
from configs.eval import disfa
from tests.runs.test_checkpoints import contents

CARD = PolicyCard((), ("somewhere",), {}, {})


class Kill(BaseException):
    """In place of a kill."""


def look(query, treatment):
    """Looks and names what nobody knows: the action units hang on the sample and on the control."""
    aus = " ".join(f"AU{au}" for au in (1, 6, 12, 25) if (query.index * au + len(treatment)) % 3) or "none"
    told = f"<think></think>\n<aus>{aus}</aus>"
    return [told] if query.answer_now else [call("zoom", bbox="1"), call("align_face"), told]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    return write_disfa(tmp_path_factory.mktemp("disfa"), frames=2)


@pytest.fixture
def scripted(monkeypatch, tmp_path) -> ScriptedAgent:
    """Every evaluation plays this script, on the same day."""
    agent = ScriptedAgent(small_toolbox(), look)
    monkeypatch.setattr(evaluating, "load_policy", lambda *_: (agent, CARD))
    made = evaluating.provenance
    monkeypatch.setattr(evaluating, "provenance", lambda *given: made(*given) | {"date": "2026-01-01T00:00:00Z"})
    return agent


def config_of(tmp_path: Path, data: dict[str, Any], **changes: Any) -> EvaluateConfig:
    raw = disfa.get_config()
    raw.data.update(data | {"stride": 2, "cache_directory": str(tmp_path / "cache")})
    raw.queries = 4
    raw.update(changes)
    return read_config(raw, EvaluateConfig, "config")


def results_in(out: epath.PathLike) -> dict[str, bytes]:
    """The content of all results but the marker, which has the command; and without what shards keep."""
    return {
        name: content
        for name, content in contents(Path(out)).items()
        if name.partition("/")[0] not in (shards.SHARDS, MARKER)
    }


def test_merged_shards_are_the_evaluation_in_one_piece(data, scripted, tmp_path, monkeypatch):
    """Of 27 frames in 7 batches, in 3 shards, the first of which is killed in its second batch."""
    config, out = config_of(tmp_path, data), epath.Path(tmp_path / "out")
    whole = evaluating.evaluate(config, "a/policy", epath.Path(tmp_path / "whole"))
    assert whole["provenance"]["size"] == 27 and whole["results"]["normal"]["resampled"] == "subjects"

    def killed(query, treatment):
        if query.index == 13 and query.answer_now:
            raise Kill
        return look(query, treatment)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "load_policy", lambda *_: (ScriptedAgent(scripted.toolbox, killed), CARD))
        with pytest.raises(Kill):
            evaluate_shard(config, "a/policy", out, "", Shard(1, 3))
    first = out / "shards/1-of-3"
    assert [path.name for path in (first / "outcomes").iterdir()] == ["00000000.json"]
    before = os.stat(first / "outcomes/00000000.json").st_mtime_ns
    for index in (2, 3):
        evaluate_shard(config, "a/policy", out, "", Shard(index, 3))
    with pytest.raises(UserError, match=r"^2 of 7 batches are not played; give --shard=1/3 again"):
        merge(config, "a/policy", out, "")
    text = evaluate_shard(config, "a/policy", out, "", Shard(1, 3))
    assert text.startswith("shard 1/3 is done: 3 batches, 2 of them now.")
    assert os.stat(first / "outcomes/00000000.json").st_mtime_ns == before
    merged = merge(config, "a/policy", out, "")
    assert merged == whole and results_in(out) == results_in(tmp_path / "whole")
    assert len([name for name in results_in(out) if name.endswith(".jsonl")]) == 14
    # Once more, and in one piece in the same place.
    merge(config, "a/policy", out, "")
    evaluating.evaluate(config, "a/policy", out)
    assert results_in(out) == results_in(tmp_path / "whole")


def test_shards_of_different_evaluations_are_not_put_together(data, scripted, tmp_path):
    config, out = config_of(tmp_path, data), epath.Path(tmp_path / "out")
    with pytest.raises(UserError, match="out has no shards; play all parts"):
        merge(config, "a/policy", out, "")
    evaluate_shard(config, "a/policy", out, "", Shard(1, 2))
    with pytest.raises(UserError, match=r"^shard 2/2 is not there; give --shard=2/2"):
        merge(config, "a/policy", out, "")
    for other, policy, key in (
        (dataclasses.replace(config, seed=1), "a/policy", "config.seed 0, which is now 1"),
        (config, "another", "checkpoint 'a/policy', which is now 'another'"),
        (config_of(tmp_path, data | {"size": 7}), "a/policy", "samples 27, which is now 7"),
    ):
        with pytest.raises(UserError, match=key):
            evaluate_shard(other, policy, out, "", Shard(1, 2))
    evaluate_shard(dataclasses.replace(config, seed=1), "a/policy", out, "", Shard(2, 2))
    with pytest.raises(UserError, match="2-of-2 was begun with config.seed 1, which is now 0"):
        merge(config, "a/policy", out, "")
    evaluate_shard(config, "a/policy", out, "", Shard(1, 3))
    with pytest.raises(UserError, match="out has shards of 2 and of 3 parts"):
        merge(config, "a/policy", out, "")
    for text in ("0/2", "3/2", "2", "1/0", "a/b"):
        with pytest.raises(UserError, match=f"--shard={text} must be I/N"):
            Shard.read(text)


def test_pictures_that_cannot_be_read_are_named_and_in_no_figure(data, scripted, tmp_path):
    copy = write_disfa(tmp_path / "copy", frames=2)
    unreadable = [f"SN{number:03d}" for number in (1, 2, 4)]
    for subject in unreadable:
        put(tmp_path / f"copy/frames/{subject}/00001.png", "<!DOCTYPE html>")
    config, out = config_of(tmp_path, copy), epath.Path(tmp_path / "out")
    results = evaluating.evaluate(config, "a/policy", out)
    assert sorted(Path(problem.partition(":")[0]).parent.name for problem in results["unreadable"]) == unreadable
    assert results["provenance"]["size"] == 27 and results["results"]["no_tools"]["frames"] == 24
    written = json.loads((out / "results.json").read_text())
    assert written["unreadable"] == results["unreadable"]
    assert "27 samples | a/policy" in in_words(results).splitlines()[0]
    assert in_words(results).splitlines()[0].endswith("| 3 unreadable, in no figure")
    for index in (1, 2):
        evaluate_shard(config, "a/policy", epath.Path(tmp_path / "parts"), "", Shard(index, 2))
    merge(config, "a/policy", epath.Path(tmp_path / "parts"), "")
    assert results_in(tmp_path / "parts") == results_in(out)

    for number, folder in enumerate(sorted((tmp_path / "copy/frames").iterdir())):
        if number % 2 == 0:
            put(folder / "00001.png", "")
    with pytest.raises(ImageError, match=r"^1[4-9] of 27 pictures cannot be read; the first: .*00001.png: "):
        evaluating.evaluate(config, "a/policy", out)
    assert json.loads((out / "results.json").read_text()) == written  # what was there is still there


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`python -m actfer_jax.evaluate ARGUMENTS` in this process."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    for name in ("checkpoint", "endpoint", "model", "shard", "benchmark", "protocol"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in ("out", "landmarks"):
        flags.DEFINE(cli.PathFlag(), name, None, "", flag_values=values)
    flags.DEFINE_bool("merge", False, "", flag_values=values)
    flags.DEFINE_multi(cli.PathFlag(), flags.ArgumentSerializer(), "predictions", None, "", flag_values=values)
    argv = ["evaluate", *arguments]
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    door.main(cli._parse_flags(argv, config="evaluation.run.EvaluateConfig"))


def test_shards_from_the_command_line(data, scripted, tmp_path, monkeypatch, capsys):
    given = [
        "--config=configs/eval/disfa.py",
        f"--config.data.directory={data['directory']}",
        f"--config.data.cache_directory={tmp_path / 'cache'}",
        "--config.data.stride=2",
        "--config.queries=8",
        "--checkpoint=a/policy",
        f"--out={tmp_path / 'out'}",
    ]
    command(monkeypatch, *given, "--shard=1/2")
    assert capsys.readouterr().out.startswith("shard 1/2 is done: 2 batches, 2 of them now. When all 2 are, give the")
    command(monkeypatch, *given, "--shard=2/2")
    command(monkeypatch, *given, "--merge")
    shown = capsys.readouterr().out
    assert "disfa all, 27 samples | a/policy" in shown and "mean of folds" in shown
    with pytest.raises(UserError, match="--merge does not go with --shard"):
        command(monkeypatch, *given, "--merge", "--shard=1/2")
    with pytest.raises(UserError, match="--shard does not go with --predictions"):
        command(monkeypatch, "--predictions=x", "--benchmark=a", "--protocol=b", "--shard=1/2")
    with pytest.raises(ConfigError, match="directory is empty; give the folder"):
        command(monkeypatch, "--config=configs/eval/disfa.py", "--checkpoint=a/policy", "--merge", "--out=x")
