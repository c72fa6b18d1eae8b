"""The metrics of a step against counts over its episodes, one by one, and the picture of an episode."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor
from scripted_episodes import answer, call, play, small_toolbox

from actfer_jax.agent.episode import Reference
from actfer_jax.data.datasets import synth_faces
from actfer_jax.episodes.picture import COLOURS, episode_picture
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.engine import Query
from actfer_jax.training.metrics import rollout_metrics

ALIGN = call("align_face", "Find the face.")


def other(truth: str) -> str:
    return "fear" if truth == "neutral" else "neutral"


SCRIPTS = {
    "direct": lambda truth: [ALIGN, answer(truth)],
    "mouth": lambda truth: [ALIGN, call("zoom", region="mouth"), answer(truth)],
    "twice": lambda truth: [ALIGN, call("zoom", region="nose"), call("zoom", region="mouth"), answer(other(truth))],
    "nowhere": lambda truth: [ALIGN, call("zoom", region="knee"), answer(truth)],
    "astray": lambda truth: [ALIGN, answer(other(truth))],
    "silent": lambda truth: ["<think>hm</think>"],
}
GROUPS = [["direct", "mouth", "twice"], ["mouth", "mouth", "silent"], ["astray", "direct", "nowhere"], ["direct"] * 3]


@pytest.fixture(scope="module")
def groups():
    toolbox, groups = small_toolbox(), []
    for index, names in enumerate(GROUPS):
        face = synth_faces.face_of("validation", index)
        reference = Reference(
            synth_faces.DEMO_EMOTIONS,
            face.emotion,
            frozenset(face.aus),
            strata=("plain", "subtle")[index % 2 : index % 2 + 1],
        )
        query = Query("synth_faces", f"validation/{index}", (synth_faces.render(face).image,), reference, index)
        groups.append([play(query, SCRIPTS[name](face.emotion), toolbox) for name in names])
    return groups


def test_metrics_of_a_step_are_those_of_its_episodes(groups):
    scores = [[score(r.episode, r.query.reference, RewardConfig()) for r in group] for group in groups]
    decided = np.array([[name != "silent" for name in names] for names in GROUPS])
    found = rollout_metrics(groups, scores, decided)
    names = [name for group in GROUPS for name in group]
    flat = [part for group in scores for part in group]
    expected = {
        "undecided": 1 / 12,
        "rollout/failed": 0,
        "turns": np.mean([{"direct": 2, "astray": 2, "silent": 1, "twice": 4}.get(name, 3) for name in names]),
        "length/no_answer": names.count("silent") / 12,
        "length/truncated": 0,
        "tool/align_face/rate": 11 / 12,
        "tool/align_face/success": 1,
        "tool/detect_faces/rate": 0,
        "tool/zoom/rate": 6 / 12,
        "tool/zoom/success": 5 / 6,
        "tool/zoom/latency_p50": 0.01,
        "zoom_region/mouth": 4 / 5,
        "zoom_region/nose": 1 / 5,
        "zoom_region/brows": 0,
        "zoom_rate/plain": 2 / 6,  # groups 0 and 2
        "zoom_rate/subtle": 2 / 5,
        "outcome/zoom/wrong": 0,
        "outcome/zoom/mixed": 1 / 4,
        "outcome/zoom/right": 1 / 4,
        "outcome/zoom/absent": 2 / 4,
        "outcome/direct/wrong": 0,
        "outcome/direct/mixed": 1 / 4,
        "outcome/direct/right": 2 / 4,
        "outcome/direct/absent": 1 / 4,  # the one that did not look said nothing at all
        "reward/frac_zero_std": 1 / 4,
    }
    for part in ("total", "task", "format", "tool", "au", "region", "emotion"):
        values = [one[part] for one in flat]
        expected |= {f"reward/{part}": np.mean(values), f"reward/{part}_std": np.std(values)}
    for index, group in enumerate(groups):
        emotion = group[0].query.reference.emotion
        same = [i for i, other in enumerate(groups) if other[0].query.reference.emotion == emotion]
        arms = {True: [], False: []}
        played = ((r, s, d) for i in same for r, s, d in zip(groups[i], scores[i], decided[i], strict=True))
        for rollout, one in ((r, s) for r, s, d in played if d):
            arms[any(turn.reply and turn.reply.inspects for turn in rollout.episode.turns)].append(one["emotion"])
        assert index in same
        expected[f"zoom_rate/class/{emotion}"] = len(arms[True]) / decided[same].sum()
        for arm, name in ((True, "acc_zoom"), (False, "acc_nozoom")):
            key = f"{name}/class/{emotion}"
            if arms[arm]:
                expected[key] = np.mean(arms[arm])
            else:
                assert key not in found
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_what_failed_on_a_host_is_counted_and_nothing_else(groups):
    scores = [[score(r.episode, r.query.reference, RewardConfig()) for r in group] for group in groups]
    failed = [[replace(group[0], failure="the disk")] for group in groups]
    of_failed = [[dict.fromkeys(scores[0][0], 9.0)] for _ in groups]
    found = rollout_metrics(
        [[*bad, *group] for bad, group in zip(failed, groups, strict=True)] + [failed[0] * 4],
        [[*bad, *group] for bad, group in zip(of_failed, scores, strict=True)] + [of_failed[0] * 4],
        np.ones((5, 4), bool),
    )
    assert found == rollout_metrics(groups, scores, np.ones((4, 3), bool)) | {"rollout/failed": 8}


def test_an_episode_is_drawn_with_the_outline_of_every_view(groups):
    rollout = groups[0][GROUPS[0].index("twice")]
    picture, captioned = episode_picture(rollout), episode_picture(rollout, "read: fear\ntruth: fear")
    scene_height = 384
    assert (captioned[: len(picture), : picture.shape[1]] == picture).all()
    assert (captioned[len(picture) :] < 128).sum() > 100
    assert picture.dtype == np.uint8 and picture.shape[0] > scene_height
    # Aligned, nose, mouth: each has its colour on the scene and on its frame below.
    for colour in COLOURS[:3]:
        here = (picture == ImageColor.getrgb(colour)).all(-1)
        assert here[:scene_height].sum() > 50 and here[scene_height:].sum() > 50
        # At a third of the size, as TensorBoard shows it, an outline is still there.
        small = np.asarray(Image.fromarray(picture).reduce(3)).astype(int)
        assert (np.abs(small[: scene_height // 3] - ImageColor.getrgb(colour)).max(-1) < 8).sum() > 20
    assert not (picture == ImageColor.getrgb(COLOURS[3])).all(-1).any()
