"""What of a run goes further than its checkpoint: dropped where a kill explains it, else kept aside."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from actfer_jax.episodes.store import EpisodeWriter, read_episodes
from actfer_jax.runs.metrics import MetricWriter, WorkdirError, read_metrics
from actfer_jax.training.rewind import rewind
from tests import bucket as stand_in
from tests.episodes.test_records import make_record


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    """An empty workdir."""
    if request.param == "disk":
        yield epath.Path(tmp_path / "run")
        return
    with pytest.MonkeyPatch.context() as patch, stand_in.serve(tmp_path) as bucket:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield epath.Path("gs://bucket/run")


def write_steps(workdir: epath.Path, steps: range) -> None:
    """What training keeps of steps, on two hosts."""
    workdir.mkdir(parents=True, exist_ok=True)
    with MetricWriter(workdir) as writer:
        writer.write_board({"seed": 0})
        for step in steps:
            writer.write(step, {"loss": 1 / step, "odd": np.nan})
            writer.write_images(step, {"episode/picture": np.zeros((4, 4, 3), np.uint8)})
            for host in range(2):
                EpisodeWriter(workdir, host).write(step, [(make_record(f"{step}-{host}"), [])])


def shown(workdir: epath.Path, local: Path) -> dict[str, list[int]]:
    """The steps that TensorBoard shows of a workdir, by name."""
    shutil.rmtree(local, ignore_errors=True)
    local.mkdir()
    for path in workdir.glob("events.out.tfevents.*"):
        (local / path.name).write_bytes(path.read_bytes())
    events = EventAccumulator(str(local), size_guidance={"tensors": 0}, purge_orphaned_data=False).Reload()
    names = [name for name in events.Tags()["tensors"] if not name.startswith(("_hparams_", "custom_scalars_"))]
    return {name: [event.step for event in events.Tensors(name)] for name in names}


def everything(workdir: epath.Path) -> dict[str, list]:
    shards, indices = ({path.stem for path in workdir.glob(f"episodes/*.{end}")} for end in ("jsonl", "index"))
    assert shards == indices
    return {
        "metrics": [record["step"] for record in read_metrics(workdir)] if (workdir / "metrics.jsonl").exists() else [],
        "episodes": [record["id"] for record in read_episodes(workdir)],
        "evaluations": list(json.loads((workdir / "evaluation.json").read_text())),
    }


@pytest.mark.parametrize("explained", [5, 4])
def test_what_goes_further_than_the_checkpoint(workdir, explained, tmp_path):
    write_steps(workdir, range(1, 6))
    results = {"normal": {"accuracy": {"value": 1.0}, "strata": {}}}
    evaluations = {"before": {"step": 0, "results": results}, "after": {"step": 5, "results": results}}
    (workdir / "evaluation.json").write_text(json.dumps(evaluations))
    (workdir / "policy").mkdir()
    (workdir / "policy" / "model.safetensors").write_bytes(b"weights")
    rewind(workdir, 2, explained)
    ids = [f"{step}-{host}" for step in range(1, 6) for host in range(2)]
    assert everything(workdir) == {"metrics": [1, 2], "episodes": ids[:4], "evaluations": ["before"]}
    names = ("loss", "odd", "episode/picture")
    assert shown(workdir, tmp_path / "shown") == {name: [1, 2] for name in names}
    if explained == 5:
        assert not (workdir / "superseded").exists()
        assert (workdir / "policy" / "model.safetensors").read_bytes() == b"weights"
    else:
        (aside,) = (workdir / "superseded").iterdir()
        assert aside.name == "steps-3-5"
        assert everything(aside) == {"metrics": [3, 4, 5], "episodes": ids[4:], "evaluations": ["after"]}
        assert shown(aside, tmp_path / "shown") == {name: [3, 4, 5] for name in names}
        assert (aside / "policy" / "model.safetensors").read_bytes() == b"weights"
        assert not (workdir / "policy" / "model.safetensors").exists()
    # The run does them again, and nothing is there twice.
    write_steps(workdir, range(3, 6))
    assert everything(workdir) == {"metrics": [1, 2, 3, 4, 5], "episodes": ids, "evaluations": ["before"]}
    assert shown(workdir, tmp_path / "shown") == {name: [1, 2, 3, 4, 5] for name in names}
    if explained == 4:
        rewind(workdir, 2, explained)
        assert sorted(path.name for path in (workdir / "superseded").iterdir()) == ["steps-3-5", "steps-3-5-2"]


def test_it_is_named(tmp_path, caplog):
    write_steps(epath.Path(tmp_path), range(1, 6))
    rewind(tmp_path, 0, explained=1)
    assert "steps 1 to 5 goes further than any checkpoint that is left" in caplog.text
    assert f"moved to {tmp_path}/superseded/steps-1-5 (episodes, events.out.tfevents." in caplog.text
    caplog.clear()
    rewind(tmp_path, 0, explained=1)
    assert caplog.text == ""


def test_tensorboard_gets_what_a_kill_kept_from_it(tmp_path):
    """TensorBoard's file is written now and then, and may end within an event."""
    write_steps(epath.Path(tmp_path), range(1, 6))
    (path,) = tmp_path.glob("events.out.tfevents.*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    before = shown(epath.Path(tmp_path), tmp_path / "shown")["loss"]
    assert 0 < len(before) < 5
    rewind(tmp_path, 4, explained=5)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}, purge_orphaned_data=False).Reload()
    losses = {event.step: make_ndarray(event.tensor_proto).item() for event in events.Tensors("loss")}
    assert losses == {step: pytest.approx(1 / step) for step in range(1, 5)} and len(events.Tensors("loss")) == 4
    assert len(events.Tensors("odd")) == 4
    rewind(tmp_path, 4, explained=5)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_a_damaged_evaluation_is_named_before_anything_is_moved(tmp_path):
    write_steps(epath.Path(tmp_path), range(1, 3))
    (tmp_path / "evaluation.json").write_text("")
    with pytest.raises(WorkdirError, match="evaluation.json cannot be read .*move it away"):
        rewind(tmp_path, 0, explained=0)
    assert len(read_metrics(tmp_path)) == 2 and not (tmp_path / "superseded").exists()
