"""What a run's records are said to take on the disk, against what they take."""

import dataclasses

import numpy as np
import pytest
import skimage.data
from scripted_episodes import answer, call, play

from actfer_jax.agent.episode import Reference
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import read_config
from actfer_jax.episodes.disk import episode_size, records_bytes
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.rl.levels import LEVELS
from actfer_jax.rollout.batch import Sequence
from actfer_jax.rollout.engine import Query
from actfer_jax.training.config import TrainConfig
from configs import ucgrpo


def test_a_run_of_4b_keeps_what_it_was_said_to_and_under_5_gib(tmp_path):
    raw = ucgrpo.get_config()
    raw.model.path = "demo"
    config = read_config(raw, TrainConfig, "config")
    toolbox, length = Toolbox(FaceDetector(), config.views), config.rollout.max_length
    image = skimage.data.astronaut()
    query = Query("photographs", "astronaut", (image,), Reference(labels=("happiness", "fear"), emotion="happiness"))
    rng = np.random.default_rng(0)
    made, sizes = [], []
    for row, region in enumerate(("mouth", "eyes", "mouth", "nose")):
        texts = [call("align_face"), call("zoom", region=region), call("zoom", region="brows"), answer("happiness")]
        tokens = rng.integers(151_643, size=length).tolist()  # A row that is full, a fifth of it written.
        chosen = rng.random(length) < 1 / 5
        values = np.where(chosen, -rng.exponential(size=length), 0).astype(np.float32)
        rollout = dataclasses.replace(
            play(query, texts, toolbox),
            sequence=Sequence(tokens, chosen.tolist(), []),
            log_probs=values,
            raw_log_probs=values,
        )
        assert len(rollout.views) == 4
        size = episode_size(query, rollout.episode, rollout.views, length=length, written=int(chosen.sum()))
        reward = dict.fromkeys((*LEVELS, "task", "total"), 1 / 3)
        made.append(to_record(rollout, id=f"1-0-{row}", reward=reward, advantage=-1 / 7, trained_on=("photographs",)))
        sizes.append(size)

    EpisodeWriter(tmp_path).write(1, made[:1])
    pictures = sum(path.stat().st_size for path in tmp_path.glob("images/*/*.png"))
    lines = sum(path.stat().st_size for path in (tmp_path / "episodes").iterdir())
    assert sizes[0].scenes + sizes[0].views == pictures and sizes[0].record == pytest.approx(lines, rel=0.05)

    EpisodeWriter(tmp_path).write(1, made)
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    most = max(sizes, key=lambda size: size.views)
    said = records_bytes(most, queries=1, rollouts=4, steps=9, records_every=5)
    assert said / 2 < taken <= said
    assert records_bytes(most, queries=1, rollouts=4, steps=9, records_every=0) == 0

    batch = {"queries": config.batch.queries, "rollouts": config.batch.rollouts}
    run = records_bytes(most, **batch, steps=500, records_every=config.logging.records_every)
    assert 1 < run / 2**30 < 5
