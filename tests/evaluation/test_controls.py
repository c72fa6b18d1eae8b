"""Playing a data set under controls, and the records of what was played."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from scripted_episodes import ScriptedEngine, answer, call, play, small_toolbox

from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.data.datasets.synth_faces.renderer import render
from actfer_jax.data.datasets.synth_faces.world import DEMO_EMOTIONS, face_of
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter, read_episodes
from actfer_jax.evaluation.controls import evaluate_policy
from actfer_jax.evaluation.metrics import summarise
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import transform
from actfer_jax.progress import ProgressLine
from actfer_jax.rollout.engine import Query


@pytest.fixture(scope="module")
def samples():
    faces = [face_of("test", index) for index in range(3)]
    return [
        Sample(
            "synth_faces",
            f"test/{index}",
            (render(face, 512).image,),
            Reference(
                DEMO_EMOTIONS, face.emotion, frozenset(face.aus), strata=("subtle",) if face.subtle else ("plain",)
            ),
        )
        for index, face in enumerate(faces)
    ]


@pytest.fixture(scope="module")
def toolbox():
    return small_toolbox()


def look_and_tell(query, treatment):
    """Knows the truth if it may look at the real pixels."""
    del treatment
    truth = answer(query.reference.emotion)
    return [truth] if query.answer_now else [call("align_face"), call("zoom", region="mouth"), truth]


def test_each_control_changes_what_it_says_and_nothing_else(samples, toolbox, monkeypatch):
    engine = ScriptedEngine(toolbox, look_and_tell, queries=2)
    detected, detect = [], FaceDetector.detect
    monkeypatch.setattr(FaceDetector, "detect", lambda self, image: detected.append(1) or detect(self, image))
    shown, played, numbers = [], {}, []

    def record(number, control, rollouts):
        numbers.append(number)
        played.setdefault(control, []).extend(rollouts)

    outcomes = evaluate_policy(
        engine,
        None,
        samples,
        controls=("no_tools", "blank_crop", "low_res_crop"),
        progress=lambda done, total: shown.append((done, total)),
        record=record,
    ).by_control
    assert numbers == list(range(8))
    assert list(outcomes) == ["normal", "no_tools", "blank_crop", "low_res_crop"]
    assert all(
        [one.emotion for one in played] == [s.reference.emotion for s in samples] for played in outcomes.values()
    )
    assert engine.batches == [2, 2, 2, 2, 1, 1, 1, 1]
    assert shown == [(2, 12), (4, 12), (6, 12), (8, 12), (9, 12), (10, 12), (11, 12), (12, 12)]
    assert len(detected) == len(samples)
    for index in range(len(samples)):
        normal, no_tools, blank, coarse = (played[control][index] for control in outcomes)
        assert normal.query.name == samples[index].name
        assert len(no_tools.views) == 1 and no_tools.query.answer_now
        for other in (blank, coarse):
            assert np.array_equal(other.views[1].pixels, normal.views[1].pixels)
            assert np.array_equal(other.views[2].to_original, normal.views[2].to_original)
            assert [turn.reply.text for turn in other.episode.turns[:2]] == [
                turn.reply.text for turn in normal.episode.turns[:2]
            ]
        assert np.unique(blank.views[2].pixels).size == 1
        fine, rough = (np.diff(one.views[2].pixels.astype(float), axis=1).std() for one in (normal, coarse))
        assert rough < fine
    rates = {control: summarise(played)["zoom"]["rate"]["value"] for control, played in outcomes.items()}
    assert rates == {"normal": 1.0, "no_tools": 0.0, "blank_crop": 1.0, "low_res_crop": 1.0}


def test_an_arm_is_instructed_in_every_episode_of_its_control(samples, toolbox):
    engine = ScriptedEngine(toolbox, look_and_tell, queries=3)
    evaluate_policy(engine, None, samples, controls=("always_zoom", "never_zoom"))
    assert engine.arms == [""] * 3 + ["zoom"] * 3 + ["answer"] * 3


def test_an_unknown_control_is_named(samples, toolbox):
    with pytest.raises(ValueError, match="controls has 'blank'; choose from no_tools, blank_crop, low_res_crop"):
        evaluate_policy(ScriptedEngine(toolbox, look_and_tell), None, samples, controls=("blank",))


def test_record_holds_the_episode_and_its_pictures(samples, toolbox, tmp_path):
    sample = samples[0]
    query = Query(**vars(sample), index=7)
    texts = [call("detect_faces"), call("align_face"), call("zoom", region="nose"), answer("Happy", "AU12 AU6")]
    rollout = play(query, texts, toolbox)
    rollout.log_probs[:] = np.random.default_rng(0).normal(size=len(rollout.log_probs))
    made = to_record(rollout, id="a", reward={"total": 0.5}, advantage=0.25, trained_on=("synth_faces",))
    EpisodeWriter(tmp_path).write(0, [made])
    (record,) = read_episodes(tmp_path)

    assert [turn["text"] for turn in record["turns"]] == texts
    assert record["turns"][2]["call"] == {"name": "zoom", "arguments": {"region": "nose"}}
    assert record["turns"][2]["reply"] == {
        "text": rollout.episode.turns[2].reply.text,
        "ok": True,
        "tool": "zoom",
        "region": "nose",
        "inspects": True,
        "found_by": "hog",
    }
    assert [turn["view"] is not None for turn in record["turns"]] == [False, True, True, False]
    assert record["prediction"] == {"aus": [6, 12], "emotion": "happiness"}
    assert record["reference"]["aus"] == sorted(sample.reference.aus)
    assert record["reference"]["strata"] == list(sample.reference.strata)
    assert (record["reward"], record["advantage"], record["trained_on"]) == ({"total": 0.5}, 0.25, ["synth_faces"])
    assert np.array_equal(np.array(record["logprobs"], np.float32), rollout.log_probs)
    assert len(record["token_ids"]) == len(record["loss_mask"]) == len(record["raw_logprobs"])

    assert len(record["images"]) == len(rollout.views) == 3
    for view, entry in zip(
        rollout.views, [record["scene"], *filter(None, (t["view"] for t in record["turns"]))], strict=True
    ):
        assert entry["file"] == record["images"][entry["picture"]]
        pixels = np.asarray(Image.open(tmp_path / entry["file"]))
        assert np.array_equal(pixels, view.pixels)
        assert entry["size"] == [pixels.shape[1], pixels.shape[0]]
        corners = [[0, 0], entry["size"]]
        assert np.allclose(transform(np.array(entry["to_original"]), corners), view.to_image(corners))


@pytest.mark.parametrize(
    "arguments",
    [
        '{"face": NaN}',
        '{"face": -Infinity}',
        '{"region": "\\ud800"}',
        '{"\\udfff": 1}',
        '{"bbox": ' + "[" * 900 + "]" * 900 + "}",
    ],
)
def test_what_a_policy_writes_always_becomes_standard_json(samples, toolbox, tmp_path, arguments):
    query = Query("d", "n", samples[0].images, samples[0].reference)
    text = f'<think></think><tool_call>{{"name": "zoom", "arguments": {arguments}}}</tool_call>'
    rollout = play(query, [text, "no answer at all"], toolbox)
    path = EpisodeWriter(tmp_path).write(0, [to_record(rollout, id="a", reward=None, advantage=None, trained_on=())])
    line = path.read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(line, parse_constant=refuse)
    assert record["turns"][0]["text"] == text
    assert record["prediction"] == {"aus": None, "emotion": None}
    json.dumps(record, ensure_ascii=False).encode()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_tells_rate_and_time_left():
    times = iter([0.0, 20.0, 25.0, 90.0, 100.0])
    stream = io.StringIO()
    progress = ProgressLine("episodes", stream, clock=lambda: next(times))
    progress(10, 1000)
    progress(20, 1000)  # Only five seconds later: nothing is shown.
    progress(710, 1000)
    progress(1000, 1000)
    assert stream.getvalue().splitlines() == [
        "10/1000 episodes",
        "710/1000 episodes | 10.0 a second | 29 s left",
        "1000/1000 episodes | 12.4 a second | 0 s left",
    ]
    terminal = Terminal()
    progress = ProgressLine("episodes", terminal, clock=lambda: 1.0)
    progress(1, 2)
    progress(2, 2)
    assert terminal.getvalue().count("\r") == 2 and terminal.getvalue().endswith("\n")
