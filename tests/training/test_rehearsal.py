"""The rehearsal says what fits and what does not, with nothing of a model but its words."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from flagship import WORDS, needs_words
from PIL import Image

from actfer_jax import facs
from actfer_jax.config import ConfigError
from actfer_jax.data.errors import DataError
from actfer_jax.training.rehearsal import _samples, _stage, rehearse
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker
from configs import sft, ucgrpo
from tests import other_faces

LIMITS = ("prompt_tokens", "turn_tokens", "reply_tokens", "max_length")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict[str, str]:
    """Files by their size; "none" has no face."""
    folder = tmp_path_factory.mktemp("photographs")
    face, files = Image.fromarray(skimage.data.astronaut()), {}
    for size in ((512, 512), (640, 480), (1024, 768), (100, 100)):
        files["{}x{}".format(*size)] = face.resize(size)
    files["none"] = Image.fromarray(skimage.data.coffee())
    for name, picture in files.items():
        picture.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in files}


def rehearsed(out: Path, *images: str, **limits: int) -> dict:
    config = ucgrpo.get_config("demo")
    config.rollout.update(limits)
    config.data.cache_directory = str(out.parent / "cache")
    config.batch.length = max(config.batch.length, config.rollout.max_length)
    rehearse(config, "", 0, images, out)
    return json.loads(out.read_text())


def test_what_is_needed_is_the_least_with_which_all_turns_are_played(tmp_path, photographs):
    out, images, turns = tmp_path / "report.json", list(photographs.values()), 5
    roomy = {"prompt_tokens": 64, "turn_tokens": 40, "reply_tokens": 64, "max_length": 600}
    capacity = rehearsed(out, *images, max_turns=turns, **roomy)["capacity"]
    needed = {name: capacity[f"rollout.{name}"]["needed"] for name in ("prompt_tokens", "turn_tokens", "reply_tokens")}
    needed["max_length"] = rehearsed(out, *images, max_turns=turns, **roomy | needed)["capacity"]["rollout.max_length"][
        "needed"
    ]
    report = rehearsed(out, *images, max_turns=turns, **needed)
    assert report["playable"] == 1 and report["turns_played"] == [turns] * len(images)
    for name in LIMITS:
        short = needed | {name: needed[name] - 1}
        with pytest.raises(ConfigError, match=rf"^config.rollout.{name} is {short[name]}, and {needed[name]} are"):
            rehearsed(out, *images, max_turns=turns, **short)
        if name == "max_length":
            assert json.loads(out.read_text())["playable"] < 1


def test_no_trace_is_longer_than_a_rehearsal_of_supervised_training_says(tmp_path):
    config = sft.get_config("demo")
    config.data.cache_directory = str(tmp_path / "cache")
    rehearse(config, "", 2, [], tmp_path / "report.json")
    needed = json.loads((tmp_path / "report.json").read_text())["capacity"]["batch.length"]["needed"]
    stage = _stage(config, "")
    maker = TraceMaker(TraceConfig(), stage.chat, stage.encoder, stage.toolbox, stage.rollout)
    lengths = [
        len(maker.planned(sample, Plan(align=True, regions=regions, forced="zoom")).tokens)
        for sample in _samples(stage.data, 2)[0]
        for regions in itertools.permutations(facs.REGIONS, 2)
    ]
    assert max(lengths) <= needed < max(lengths) + 16


def test_a_sample_that_training_would_refuse_is_refused(tmp_path, monkeypatch):
    def rehearsed_others(config) -> None:
        config.data.name, config.data.split = "tests.other_faces", "emotions"
        config.data.cache_directory = str(tmp_path / "cache")
        rehearse(config, "", 1, [], tmp_path / "report.json")

    with pytest.raises(DataError, match="other_faces/0 has no action units; traces are written from"):
        rehearsed_others(sft.get_config("demo"))
    monkeypatch.setattr(other_faces, "labels", lambda config: ())
    with pytest.raises(DataError, match="other_faces/0 has the emotion 'Happily Surprised', and the data set has no"):
        rehearsed_others(ucgrpo.get_config("demo"))


def test_a_row_of_readings_has_room(tmp_path, photographs):
    """As long as the longest that the trace writer makes of the same picture."""
    config = sft.get_config("demo")
    config.data.cache_directory, config.traces.readings_length = str(tmp_path), 30
    with pytest.raises(ConfigError, match=r"^config.traces.readings_length is 30, and (3\d|4\d) are needed"):
        rehearse(config, "", 0, [photographs["512x512"]], tmp_path / "report.json")


def test_faces_and_what_a_zoom_shows_are_told(tmp_path, photographs, capsys):
    report = rehearsed(tmp_path / "report.json", photographs["512x512"], photographs["none"])
    assert (report["samples"], report["faces_found"], report["faces_found_by"]) == (2, 0.5, {"hog": 1})
    # The demo's scene of the photograph is 96 pixels wide.
    alone = rehearsed(tmp_path / "report.json", photographs["512x512"])
    assert alone["scene_pitch"] == pytest.approx(512 / 96) and 0 < alone["zoom_pitch"] < alone["scene_pitch"]
    assert "enlarges" not in capsys.readouterr().out


def test_pictures_of_training_that_cannot_be_read_are_told_and_the_prompt_of_an_evaluation_has_room(tmp_path, capsys):
    """As training does: it goes on without the pictures, and refuses an evaluation whose prompt has no room."""
    for folder, emotions in (("few", ["anger", "fear"]), ("many", list(facs.EMOTIONS))):
        for emotion in emotions:
            (tmp_path / folder / emotion).mkdir(parents=True)
            Image.new("RGB", (120, 90)).save(tmp_path / folder / emotion / "1.png")
    damaged = tmp_path / "few" / "fear" / "2.png"
    damaged.write_bytes(b"<!DOCTYPE html><html></html>")
    config = ucgrpo.get_config("demo")
    config.rollout.prompt_style, config.rollout.prompt_tokens, config.data.size = "full", 4000, 3
    config.rollout.max_length = config.batch.length = 4400

    def needed() -> int:
        rehearse(config, "", 3, [], tmp_path / "report.json")
        return json.loads((tmp_path / "report.json").read_text())["capacity"]["rollout.prompt_tokens"]["needed"]

    for data, folder in ((config.data, "few"), (config.evaluation.data, "few")):
        data.name, data.split, data.directory = "folders", "all", str(tmp_path / folder)
        data.cache_directory = str(tmp_path / "cache")
    config.evaluation.data.size = None
    alike = needed()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["samples"] == 2 and str(damaged) in report["unreadable"][0]
    assert f"1 more cannot be read, such as {report['unreadable'][0]}" in capsys.readouterr().out
    config.evaluation.data.directory = str(tmp_path / "many")
    assert needed() > alike


@needs_words
@pytest.mark.slow
@pytest.mark.parametrize("limits", [[], ["--config.rollout.max_length=1810", "--config.rollout.prompt_tokens=1100"]])
def test_the_flagship_plays_four_turns_on_pictures_of_any_size(tmp_path, photographs, limits):
    command = [sys.executable, "-m", "actfer_jax.rehearse", "--config=ucgrpo", f"--config.model.path={WORDS}"]
    out = tmp_path / "report.json"
    images = [f"--images={photographs['512x512']}", photographs["640x480"], photographs["1024x768"]]
    done = subprocess.run(
        [*command, "--samples=0", f"--json={out}", *limits, *images], capture_output=True, text=True, cwd=tmp_path
    )
    report = json.loads(out.read_text())
    if limits:
        assert done.returncode == 1 and report["playable"] < 1
        assert done.stderr.splitlines()[-1].startswith("error: config.rollout.max_length is 1810, and ")
        return
    assert done.returncode == 0, done.stderr
    assert report["playable"] == 1 and report["turns_played"] == [4, 4, 4] and report["faces_found"] == 1
    # A box of another picture may have 256 tokens.
    assert 256 < report["capacity"]["rollout.reply_tokens"]["needed"] < 300
    # The scene of 1024x768 fills its room of 512 tokens nearly, and is shrunk; the others keep their size.
    assert 3 * 193 + 192 + report["prompt_tokens"] < report["longest_row"] <= 3072
