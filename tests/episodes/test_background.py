"""Episodes that are written while the next step is under way: nothing is lost, reordered or kept to itself."""

import threading

import jax.numpy as jnp
import pytest

from actfer_jax.episodes.background import BackgroundWriter
from actfer_jax.episodes.store import EpisodeWriter, read_episodes
from actfer_jax.runs.checkpoints import CheckpointError, Checkpoints
from tests.episodes.test_records import make_record, picture


class Held(EpisodeWriter):
    """Writes when it is told to, or fails."""

    def __init__(self, workdir, failure=None):
        super().__init__(workdir)
        self.go, self.failure = threading.Event(), failure

    def write(self, step, episodes, of="step"):
        assert self.go.wait(60)
        if self.failure:
            raise self.failure
        return super().write(step, episodes, of)


def episodes_of(step):
    return ((make_record(f"{step}-{row}"), [picture(row)]) for row in range(3))


def ids(workdir):
    return [record["id"] for record in read_episodes(workdir)]


def test_a_step_goes_on_while_the_episodes_of_one_are_written(tmp_path):
    held = Held(tmp_path)
    with BackgroundWriter(held) as writer:
        writer.write(1, episodes_of(1))
        writer.check()
        assert ids(tmp_path) == []
        held.go.set()
        # Takes no second step before the first is on the disk.
        writer.write(2, episodes_of(2))
        assert ids(tmp_path)[:3] == ["1-0", "1-1", "1-2"]
        writer.wait()
        assert ids(tmp_path)[3:] == ["2-0", "2-1", "2-2"]


def test_what_ends_a_run_does_not_end_the_writing(tmp_path):
    """A signal, or an error of the step."""
    held = Held(tmp_path)
    with pytest.raises(KeyboardInterrupt), BackgroundWriter(held) as writer:
        writer.write(1, episodes_of(1))
        held.go.set()
        raise KeyboardInterrupt
    assert ids(tmp_path) == ["1-0", "1-1", "1-2"]


@pytest.mark.parametrize("meet", ["write", "check", "wait", "end"])
def test_an_error_is_met_by_whoever_comes_next(meet, tmp_path):
    held = Held(tmp_path, failure=OSError(28, "No space left on device", "a/shard"))
    held.go.set()
    with pytest.raises(OSError, match="a/shard"), BackgroundWriter(held) as writer:
        writer.write(1, episodes_of(1))
        if meet == "write":
            writer.write(2, episodes_of(2))
        elif meet == "wait":
            writer.wait()
        elif meet == "check":
            with pytest.raises(OSError, match="a/shard"):
                writer.wait()
            writer.check()
    assert ids(tmp_path) == []


def test_an_error_beside_the_one_that_ends_the_run_is_logged(tmp_path, caplog):
    held = Held(tmp_path, failure=OSError(28, "No space left on device", "a/shard"))
    held.go.set()
    with pytest.raises(ZeroDivisionError), BackgroundWriter(held) as writer:
        writer.write(1, episodes_of(1))
        raise ZeroDivisionError
    assert "episode records were not written: [Errno 28] No space left on device: 'a/shard'" in caplog.text


def test_no_checkpoint_counts_before_the_episodes_of_its_step(tmp_path):
    """Else a run that was killed in between would go on from the checkpoint, without these episodes."""
    held, directory, committed = Held(tmp_path), tmp_path / "checkpoints", []

    def ready():
        committed.append((directory / "1").exists())
        held.go.set()
        writer.wait()
        committed.append((directory / "1").exists())

    with BackgroundWriter(held) as writer, Checkpoints(directory, keep=1, ready=ready) as checkpoints:
        writer.write(1, episodes_of(1))
        checkpoints.save(1, {"x": jnp.ones(3)}, {})
        checkpoints.wait()
    assert committed == [False, False] and (directory / "1").exists() and len(ids(tmp_path)) == 3


def test_a_checkpoint_whose_episodes_cannot_be_written_does_not_count(tmp_path):
    held = Held(tmp_path, failure=OSError(28, "No space left on device", "a/shard"))
    held.go.set()
    with (
        pytest.raises(CheckpointError, match="step 1 could not be saved .* the disk is full"),
        BackgroundWriter(held) as writer,
        Checkpoints(tmp_path / "checkpoints", keep=1, ready=writer.wait) as checkpoints,
    ):
        writer.write(1, episodes_of(1))
        checkpoints.save(1, {"x": jnp.ones(3)}, {})
        checkpoints.wait()
    assert Checkpoints(tmp_path / "checkpoints", keep=1).steps() == []
