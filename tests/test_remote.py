"""`gs://` paths, by the clients that a TPU's hosts use, against a stand-in for Google Cloud Storage (`tests.bucket`)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load, load_file

pytest.importorskip("google.cloud.storage", reason="needs the extra `test`")

from actfer_jax.checkpoints import Checkpoints
from actfer_jax.config import ConfigError
from actfer_jax.data.sources import DataConfig
from actfer_jax.evaluation.command import load_policy
from actfer_jax.export import export
from actfer_jax.faces.images import load_image
from actfer_jax.files import write_atomically
from actfer_jax.metrics import MetricWriter, is_timing, read_metrics
from actfer_jax.models import demo_checkpoint, load_pretrained, local_directory, save_pretrained
from actfer_jax.records import EpisodeWriter, read_episodes
from tests import bucket as bucket_server
from tests.test_checkpoints import assert_restores, make_extra, make_state, save_steps
from tests.test_records import make_record
from tests.test_train import KILLER

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, bucket_server.serve(tmp_path_factory.mktemp("tls")) as bucket:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield bucket


def train(shared: Path, workdir: epath.PathLike, *extra: str, killer: list[str] | None = None):
    program = ["-m", "actfer_jax.train"] if killer is None else ["-c", KILLER, *killer]
    arguments = ["--config=tests/hosts_config.py:sft", f"--workdir={workdir}", f"--config.data.directory={shared}/data"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{shared}/programs"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    command = [sys.executable, *program, *arguments, *extra]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_a_training_in_a_bucket(bucket, shared):
    """Killed while it saves and started again, it ends as a local one does; its policy loads, and so does an export of
    the step before one that is damaged."""
    expected, workdir = shared / "run", epath.Path("gs://bucket/run")
    local = train(shared, expected)
    assert local.returncode == 0, local.stderr[-3000:]
    killed = train(shared, workdir, killer=["SIGKILL", "during_save", "2"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = train(shared, workdir, "--config.logging.profile_start=1", "--config.logging.profile_steps=1")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "continuing after step 1 of 3" in resumed.stderr

    records, others = (
        [{name: value for name, value in record.items() if not is_timing(name)} for record in read_metrics(path)]
        for path in (workdir, expected)
    )
    assert records == others and len(records) == 3
    weights, others = (
        load(bucket.objects["run/policy/model.safetensors"]),
        load_file(expected / "policy/model.safetensors"),
    )
    assert weights.keys() == others.keys()
    for name, value in others.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    for part in (
        "events.out.tfevents",
        "manifest.json",
        "profile/plugins",
        "policy/actfer.json",
        "policy/tokenizer.json",
    ):
        assert any(name.startswith(f"run/{part}") for name in bucket.objects), part
    agent, _ = load_policy("gs://bucket/run/policy", "float32")
    assert agent.model_config == load_policy(str(expected / "policy"), "float32")[0].model_config

    name = max(
        (name for name in bucket.objects if name.startswith("run/checkpoints/3/state")),
        key=lambda name: len(bucket.objects[name]),
    )
    bucket.put(name, bucket.objects[name][:-1] + b"?")
    assert export(workdir, epath.Path("gs://bucket/exported")) == 2
    assert load_policy("gs://bucket/exported", "float32")[0].model_config == agent.model_config
    assert any(name.startswith("run/checkpoints/damaged/3/") for name in bucket.objects)
    assert not any(name.startswith("run/checkpoints/3/") for name in bucket.objects)
    assert not (ROOT / "gs:").exists()
