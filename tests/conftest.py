"""What several test files share: the small policy of the package and rendered pictures."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# TensorFlow, which reads this when it is imported, need not see at once what others write into a bucket.
os.environ["GCS_STAT_CACHE_MAX_AGE"] = "0"

import jax
import pytest

from actfer_jax.agent.episode import Reference
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.data.datasets import synth_faces
from actfer_jax.faces.views import ViewConfig
from actfer_jax.models import demo_checkpoint
from actfer_jax.rollout.agent import Agent, ModelConfig, load_agent
from actfer_jax.rollout.engine import Query, RolloutConfig

jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("stand_in_cloud")


@pytest.fixture(scope="session")
def agent() -> Agent:
    """The shipped policy in float32."""
    card = PolicyCard.load(demo_checkpoint())
    model = ModelConfig(path="demo", dtype="float32", remat="none")
    return load_agent(model, ViewConfig(**card.views), RolloutConfig(**card.rollout))


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """What the runs of a test file share: rendered faces, compiled programs, and their workdirs."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def make_read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a directory one of a read-only disk until the test ends: root, too, cannot write there."""
    mounted: list[Path] = []

    def mount(directory: Path) -> None:
        bind = ["mount", "--bind", str(directory), str(directory)]
        if os.geteuid() != 0 or subprocess.run(bind, capture_output=True).returncode != 0:
            pytest.skip("mounting a disk needs root")
        mounted.append(directory)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(directory)], check=True)

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture(scope="session")
def queries() -> list[Query]:
    """Eight rendered faces that no training run draws on."""
    queries = []
    for index in range(8):
        spec = synth_faces.face_of("validation", index)
        reference = Reference(labels=synth_faces.DEMO_EMOTIONS, emotion=spec.emotion, aus=frozenset(spec.aus))
        queries.append(Query("synth_faces", f"validation/{index}", (synth_faces.render(spec).image,), reference, index))
    return queries
