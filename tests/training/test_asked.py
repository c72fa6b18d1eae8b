"""Data sets of action units alone and of labels alone: trained on, evaluated, and asked for what they know."""

import json
from collections.abc import Iterator

import jax
import pytest
from etils import epath

from actfer_jax.episodes.store import read_episodes
from actfer_jax.parallel.hosts import Termination
from actfer_jax.training.config import read_train_config
from actfer_jax.training.loop import train
from configs import sft, ucgrpo
from tests.other_faces import COMPOUND


@pytest.fixture(autouse=True)
def compiled_fast() -> Iterator[None]:
    """With fewer optimizations of machine code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "split"), [("sft", "emotions"), ("rl", "aus")])
def test_a_run_asks_for_what_its_data_knows(split, algorithm, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # else train() sets one for the whole process
    raw = {"sft": sft, "rl": ucgrpo}[algorithm].get_config("demo")
    for data in (raw.data, raw.evaluation.data):
        data.name, data.split, data.size, data.cache_directory = "tests.other_faces", split, 4, str(tmp_path / "cache")
    raw.rollout.ask_aus = split == "aus"
    raw.rollout.prompt_style, raw.rollout.prompt_tokens, raw.rollout.max_length = "full", 1200, 1500
    raw.batch.length, raw.batch.length_buckets, raw.steps = 1500, (), 1
    raw.batch.queries, raw.batch.microbatches = 2, 1
    raw.evaluation.queries, raw.evaluation.controls = 2, ()
    if algorithm == "rl":
        raw.batch.rollouts, raw.estimator.forced_arm_rate = 4, 1.0
    else:
        raw.traces.readings_steps = 0
    train(read_train_config(raw), epath.Path(tmp_path / "run"), raw, Termination())
    report = json.loads((tmp_path / "run/evaluation.json").read_text())["after"]["results"]["normal"]
    assert report["confusion"]["labels"] == ([] if split == "aus" else [label.lower() for label in COMPOUND])
    assert (report["accuracy"]["value"] is None) == (split == "aus")
    assert (report["au_f1_sample"]["value"] is None) == (split != "aus")
    card = json.loads((tmp_path / "run/policy/actfer.json").read_text())
    assert tuple(card["labels"]) == (() if split == "aus" else COMPOUND)
    for record in read_episodes(tmp_path / "run"):
        assert record["reference"]["emotion"] in ((None,) if split == "aus" else COMPOUND)
        assert record["reward"]["emotion"] == 0 or split != "aus"
