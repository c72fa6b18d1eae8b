"""The second edition of the rendered faces: what decides, where, and how often."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from actfer_jax import facs
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.config import read_config
from actfer_jax.data.datasets.synth_faces import Rendered, render
from actfer_jax.data.datasets.synth_faces.second_world import (
    CASES,
    Case,
    FaceSpec,
    emotion_from_aus,
    face_of,
    sample_face,
    strata,
    which,
)
from actfer_jax.data.sources import DataConfig, emotion_labels, open_source
from actfer_jax.faces.align import aligned_frame, region_box
from actfer_jax.faces.detector import Face, FaceDetector
from actfer_jax.faces.views import ViewConfig, invert, magnify, overlap_area, rectangle, transform
from actfer_jax.models import demo_checkpoint

SIZE = 512
VIEWS = ViewConfig(**PolicyCard.load(demo_checkpoint()).views)
BY_REGION = [pytest.param(case, id=f"{case.pair[0]}-{case.region}") for case in CASES]


def pair_of(case: Case, number: int, place: str = "") -> tuple[FaceSpec, FaceSpec]:
    """The two faces of one seed that a case tells apart, the one with the action unit first; in a stratum `place`."""
    without = next(emotion for emotion in case.pair if emotion != case.emotion)
    seeds = ((8, number, i) for i in range(2000))
    found = (sample_face(seed, emotion=case.emotion, subtle=True) for seed in seeds)
    seed = next(
        i for i, s in enumerate(found) if s.deciding_region == case.region and (not place or place in strata(s))
    )
    first, second = (
        sample_face((8, number, seed), emotion=emotion, subtle=True) for emotion in (case.emotion, without)
    )
    return first, second


def changed(one: Rendered, other: Rendered) -> np.ndarray:
    """The centres (x, y) of the pixels that differ, [n, 2]."""
    np.testing.assert_array_equal(one.landmarks, other.landmarks)
    rows, columns = np.nonzero((one.image != other.image).any(axis=-1))
    return np.stack([columns + 0.5, rows + 0.5], axis=-1)


def inside(points: np.ndarray, picture: Rendered, region: str, margin: float = 0.0) -> np.ndarray:
    """Which points the small policy's zoom into a region shows, if it had a margin of that share on every side."""
    face = Face(picture.face_box, 1.0, picture.landmarks)
    frame = aligned_frame(face, 64)
    to_original, (height, width) = magnify(frame, region_box(face, region, frame), VIEWS)
    x, y = transform(invert(to_original), points).T
    x, y = x / width, y / height
    return (-margin <= x) & (x <= 1 + margin) & (-margin <= y) & (y <= 1 + margin)


def test_every_region_decides_its_share_and_every_emotion_is_as_often_subtle():
    specs = [face_of("train", i) for i in range(2000)]
    assert Counter(spec.emotion for spec in specs) == dict.fromkeys(facs.EMOTIONS, 250)
    decided = Counter(spec.deciding_region for spec in specs if spec.subtle)
    shares = {region: decided[region] / decided.total() for region in facs.REGIONS}
    assert sum(shares.values()) == 1 and min(shares.values()) >= 0.1 and max(shares.values()) <= 0.25
    for emotion in facs.EMOTIONS:
        of_emotion = [spec for spec in specs if spec.emotion == emotion]
        assert np.mean([spec.subtle for spec in of_emotion]) == pytest.approx(0.5, abs=0.1)
        regions = {spec.deciding_region for spec in of_emotion if spec.subtle}
        assert regions == {case.region for case in CASES if emotion in case.pair} and len(regions) == 2
    rare = [face_of("train", i, 0.1).subtle for i in range(500)]
    assert np.mean(rare) == pytest.approx(0.1, abs=0.05)


def test_action_units_name_the_emotion():
    specs = [sample_face((3, i), emotion=emotion) for emotion in facs.EMOTIONS for i in range(60)]
    assert all(emotion_from_aus(spec.aus) == spec.emotion for spec in specs)
    assert all(spec.fine <= spec.aus.keys() and spec.busy == spec.subtle for spec in specs)
    for emotion, (core, optional) in facs.PROTOTYPES.items():
        assert emotion_from_aus(core) == emotion_from_aus(core | optional) == emotion


@pytest.mark.parametrize("case", BY_REGION)
def test_the_emotions_of_a_pair_differ_in_the_deciding_region_alone(case):
    for number, place in enumerate(("", "turned", "small", "two_faces")):
        first, second = pair_of(case, number, place)
        assert {first.emotion, second.emotion} == set(case.pair)
        assert first.fine == {case.au} and not second.fine and case.au in facs.REGION_AUS[case.region]
        pictures = render(first, SIZE), render(second, SIZE)
        points = changed(*pictures)
        assert len(points) > 20
        assert inside(points, pictures[0], case.region, 0.1).all()
        assert inside(points, pictures[0], case.region).mean() > 0.9
        # The view of the cheeks holds nose and mouth, at half their zooms' resolution.
        for other in set(facs.REGIONS) - {case.region, "cheeks"}:
            assert inside(points, pictures[0], other).mean() < 0.35, other


@pytest.mark.parametrize("case", BY_REGION)
def test_both_of_a_pair_are_busy_there_and_plain_faces_nowhere(case):
    for number, spec in enumerate(pair_of(case, 7)):
        calm = replace(
            spec, busy=False, fine=frozenset(), aus={au: s for au, s in spec.aus.items() if au in case.shown}
        )
        busy, bare = render(spec, SIZE), render(calm, SIZE)
        points = changed(busy, bare)
        assert inside(points, busy, case.region, 0.25).all(), number
        skin = bare.image.astype(float)[tuple(points.astype(int).T[::-1])].mean()
        there = busy.image.astype(float)[tuple(points.astype(int).T[::-1])].mean()
        assert there < 0.93 * skin  # Seen from afar as a dark patch.


def test_glasses_never_cover_what_decides():
    """No pixel that a frame changes tells the pair apart. A face that the eyes decide wears none."""
    assert all(
        not pair_of(case, number)[0].appearance.glasses
        for case in CASES
        if case.region == "eyes"
        for number in range(20)
    )
    for case in CASES:
        for number in (20, 21) if case.region != "eyes" else ():
            with_au, without = pair_of(case, number)

            def drawn(spec: FaceSpec, glasses: int) -> Rendered:
                return render(replace(spec, appearance=replace(spec.appearance, glasses=glasses)), SIZE)

            bare = drawn(with_au, 0)
            deciding = {tuple(point) for point in changed(bare, drawn(without, 0))}
            for glasses in (1, 2):
                frame = {tuple(point) for point in changed(bare, drawn(with_au, glasses))}
                assert frame and not frame & deciding, case.region


def test_strata_say_where_a_face_is_and_what_it_needs():
    specs = [face_of("validation", i) for i in range(600)]
    counts = Counter(name for spec in specs for name in strata(spec))
    assert counts["subtle"] + counts["plain"] == len(specs)
    assert counts["subtle"] == sum(counts[f"decided_by_{region}"] for region in facs.REGIONS)
    for name in ("two_faces", "off_centre", "small", "turned", "glasses"):
        assert 0.03 * len(specs) < counts[name] < 0.35 * len(specs), name
    assert sorted(Counter(map(which, specs))) == ["", "on the left", "on the right"]


def test_the_same_face_for_an_index_and_another_for_another():
    one, again = render(face_of("test", 5), 128), render(face_of("test", 5), 128)
    np.testing.assert_array_equal(one.image, again.image)
    seeds = {face_of(split, i).texture_seed for split in ("train", "validation", "test") for i in range(50)}
    assert len(seeds) == 150


def test_of_two_faces_the_request_says_which_and_the_detector_finds_it(tmp_path):
    given = {"name": "synth_faces_2", "size": 24, "split": "test", "cache_directory": str(tmp_path)}
    config = read_config(given, DataConfig, "data")
    assert emotion_labels(config) == facs.EMOTIONS
    source, detector = open_source(config), FaceDetector()
    both = [i for i in range(len(source)) if "two_faces" in source.strata(i)]
    assert both
    for index in range(len(source)):
        sample, spec = source[index], face_of("test", index)
        reference = sample.reference
        assert (reference.emotion, reference.aus, reference.fine_aus) == (spec.emotion, frozenset(spec.aus), spec.fine)
        assert reference.busy_region == spec.deciding_region and bool(spec.deciding_region) == spec.subtle
        assert reference.strata == strata(spec) and sample.which == which(spec)
    for index in both:
        sample = source[index]
        boxes = sorted(face.box for face in detector.detect(sample.images[0]))
        assert len(boxes) == 2
        box = boxes["left right".split().index(sample.which.split()[-1])]
        assert sample.reference.face_box is not None
        assert overlap_area(rectangle(sample.reference.face_box), box) > 0.5 * (box[2] - box[0]) * (box[3] - box[1])
