"""What a run's records are said to take on the disk, against what they take."""

import dataclasses

import numpy as np
import skimage.data
from scripted_episodes import answer, call, play

from actfer_jax.agent.episode import Reference
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import read_config
from actfer_jax.episodes.disk import episode_size, records_bytes
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.rollout.batch import Sequence
from actfer_jax.rollout.engine import Query
from actfer_jax.training.config import TrainConfig
from configs import ucgrpo


def test_a_run_of_4b_keeps_what_it_was_said_to_and_under_5_gib(tmp_path):
    raw = ucgrpo.get_config()
    raw.model.path = "demo"
    config = read_config(raw, TrainConfig, "config")
    toolbox = Toolbox(FaceDetector(), config.views)
    image = skimage.data.astronaut()
    query = Query("photographs", "astronaut", (image,), Reference(labels=("happiness", "fear"), emotion="happiness"))
    rng = np.random.default_rng(0)
    made = []
    for row, region in enumerate(("mouth", "eyes", "mouth", "nose")):
        texts = [call("align_face"), call("zoom", region=region), call("zoom", region="brows"), answer("happiness")]
        tokens = rng.integers(151_643, size=config.rollout.max_length).tolist()  # A row that is full, a third written.
        chosen = rng.random(len(tokens)) < 1 / 3
        values = np.where(chosen, -rng.exponential(size=len(tokens)), 0).astype(np.float32)
        sequence = Sequence(tokens, chosen.tolist(), [])
        rollout = dataclasses.replace(
            play(query, texts, toolbox), sequence=sequence, log_probs=values, raw_log_probs=values
        )
        made.append(
            to_record(rollout, id=f"1-0-{row}", reward={"total": 1 / 3}, advantage=-1 / 7, trained_on=("photographs",))
        )
    assert [len(views) for _, views in made] == [4] * 4 and {view.width for _, views in made for view in views} > {512}
    sizes = [episode_size(*episode) for episode in made]

    EpisodeWriter(tmp_path).write(1, made[:1])
    pictures = {path: path.stat().st_size for path in tmp_path.glob("images/*/*.png")}
    lines = sum(path.stat().st_size for path in (tmp_path / "episodes").iterdir())
    assert sizes[0].scenes + sizes[0].views == sum(pictures.values()) and 0 <= sizes[0].record - lines < 100

    EpisodeWriter(tmp_path).write(1, made)
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    most = max(sizes, key=lambda size: size.views)
    said = records_bytes(most, queries=1, rollouts=4, steps=9, records_every=5)
    assert said / 2 < taken <= said
    assert records_bytes(most, queries=1, rollouts=4, steps=9, records_every=0) == 0

    batch = {"queries": config.batch.queries, "rollouts": config.batch.rollouts}
    run = records_bytes(most, **batch, steps=500, records_every=config.logging.records_every)
    assert 1 < run / 2**30 < 5
