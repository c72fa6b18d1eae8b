"""The content of the second edition: a face itself says where to look, and only there is it decided.

Half of the faces of every emotion are subtle, so that the emotion does not say whether to look. A subtle face shows
what two emotions share (`CASES`). Which of them it is, the deciding region says, and nothing else: of one seed, the two
emotions of a pair give the same pixels outside of that region's patch (`patches`). The patch is freckled on both, which
a coarse view shows. A plain face moves as in the first edition, has no such patch, and needs no look.

Faces may be off-centre, small or turned, two may share a picture, and glasses never cover what decides.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from actfer_jax.data.datasets.synth_faces.patches import PATCHES
from actfer_jax.data.datasets.synth_faces.world import (
    STREAMS,
    FaceSpec,
    Pose,
    draw_appearance,
    draw_shape,
    near,
    plain_aus,
    strong,
)
from actfer_jax.facs import EMOTIONS


class Case(NamedTuple):
    """A way in which a face is ambiguous.

    Attributes:
      pair: the two emotions.
      region: what decides between them.
      share: how often it does, among the subtle faces of the pair.
      shown: the action units that both show, with the range of their intensities.
      au: the fine action unit in the region.
      emotion: the one that shows it; the other does not.
    """

    pair: tuple[str, str]
    region: str
    share: float
    shown: dict[int, tuple[float, float]]
    au: int
    emotion: str


_RAISED = {1: (0.4, 0.6), 2: (0.4, 0.6), 5: (0.4, 0.6), 26: (0.35, 0.55)}
_LOWERED = {4: (0.4, 0.65), 7: (0.5, 0.8)}
_SMILE = {12: (0.5, 0.7)}

# Brows and mouth decide two pairs each, and less often: each of them a fifth of the subtle faces, the others 0.15.
CASES: tuple[Case, ...] = (
    Case(("surprise", "fear"), "brows", 0.4, _RAISED, 4, "fear"),
    Case(("surprise", "fear"), "eyes", 0.6, _RAISED, 7, "fear"),
    Case(("anger", "disgust"), "nose", 0.6, _LOWERED, 9, "disgust"),
    Case(("anger", "disgust"), "mouth", 0.4, _LOWERED, 10, "disgust"),
    Case(("sadness", "neutral"), "chin", 0.6, {}, 17, "sadness"),
    Case(("sadness", "neutral"), "brows", 0.4, {}, 4, "sadness"),
    Case(("happiness", "contempt"), "cheeks", 0.6, _SMILE, 6, "happiness"),
    Case(("happiness", "contempt"), "mouth", 0.4, {6: (0.5, 0.7), 12: (0.4, 0.5)}, 14, "contempt"),
)

_PLACES = {"centre": 0.6, "off_centre": 0.12, "small": 0.12, "turned": 0.10, "two_faces": 0.06}
"""How often a face is in such a place."""

_SMALL, _OFF_CENTRE = 212.0, 72.0
"""The height of a face below which it is small, and how far it is from the middle of the scene, in x or y, if it is
off-centre: pixels of a 512 x 512 scene."""


def emotion_from_aus(aus: Iterable[int]) -> str:
    """The emotion of a set of AUs. The first rule that matches decides; the most specific come first."""
    present = frozenset(aus)
    if 12 in present:
        return "happiness" if 6 in present and 14 not in present else "contempt"
    if present & {9, 10}:
        return "disgust"
    if present & {23, 24}:
        return "anger"
    if {1, 2} <= present:
        return "fear" if present & {4, 7, 20} else "surprise"
    if {4, 7} <= present:
        return "anger"
    return "sadness" if present & {4, 17} else "neutral"


def strata(spec: FaceSpec) -> tuple[str, ...]:
    """The strata of a face: "subtle" and "decided_by_REGION", or "plain"; then, where they hold, "two_faces",
    "off_centre", "small", "turned", "glasses"."""
    pose = spec.pose
    holds = {
        "two_faces": spec.other is not None,
        "off_centre": max(abs(pose.x - 256), abs(pose.y - 256)) >= _OFF_CENTRE,
        "small": pose.height < _SMALL,
        "turned": pose.turn != 0,
        "glasses": spec.appearance.glasses > 0,
    }
    content = ("subtle", f"decided_by_{spec.deciding_region}") if spec.subtle else ("plain",)
    return content + tuple(name for name, does in holds.items() if does)


def which(spec: FaceSpec) -> str:
    """Which face of two is meant, in the words of a request; "" where there is one only."""
    if spec.other is None:
        return ""
    return "on the left" if spec.pose.x < spec.other.pose.x else "on the right"


def _pose(rng: np.random.Generator, place: str) -> Pose:
    height = {"small": (180, 211), "off_centre": (230, 270), "two_faces": (185, 211)}.get(place, (230, 320))
    pose = Pose(
        x=256 + float(rng.uniform(-30, 30)),
        y=256 + float(rng.uniform(-30, 30)),
        height=float(rng.uniform(*height)),
        angle=float(rng.uniform(-12, 12)),
    )
    side = float(rng.choice((-1, 1)))
    if place == "off_centre":
        most = 256 - 0.5 * pose.height - 8  # Hair and jaw stay inside the scene.
        return replace(pose, x=256 + side * float(rng.uniform(_OFF_CENTRE, most)))
    if place == "two_faces":
        return replace(pose, x=256 + side * float(rng.uniform(116, 140)))
    if place == "turned":
        return replace(pose, turn=side * float(rng.uniform(12, 22)))
    return pose


def sample_face(
    seed: int | tuple[int, ...], *, emotion: str | None = None, subtle: bool | None = None, share: float = 0.5
) -> FaceSpec:
    """Samples one face; the same arguments give the same face. Another emotion of a pair gives a subtle face that
    differs in the deciding patch only.

    Args:
      seed: a number or a tuple of numbers, all non-negative.
      emotion: one of `facs.EMOTIONS`; by default one of them, uniformly.
      subtle: whether the face is subtle; by default drawn.
      share: how often it then is.

    Raises:
      ValueError: the emotion is not one of `facs.EMOTIONS`.
    """
    if emotion is not None and emotion not in EMOTIONS:
        raise ValueError(f"emotion {emotion!r} is not one of {', '.join(EMOTIONS)}")
    # One stream per aspect: another emotion gives the same person in the same place.
    what, where, beside = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    place = str(where.choice(list(_PLACES), p=list(_PLACES.values())))
    spec = _face(what, _pose(where, place), emotion, subtle, share)
    if place != "two_faces":
        return spec
    pose = _pose(beside, place)
    pose = replace(pose, x=256 - abs(pose.x - 256) * np.sign(spec.pose.x - 256))
    return replace(spec, other=_face(beside, pose, None, None, share))


def _face(rng: np.random.Generator, pose: Pose, emotion: str | None, subtle: bool | None, share: float) -> FaceSpec:
    what, who, how = rng.spawn(3)
    drawn = str(what.choice(EMOTIONS))
    emotion = emotion or drawn
    is_subtle = bool(what.random() < share) if subtle is None else subtle
    aus, fine, region = _subtle_aus(what, emotion) if is_subtle else (plain_aus(what, emotion), frozenset[int](), "")
    look = draw_appearance(who)
    side = str(how.choice(("left", "right")))
    return FaceSpec(
        emotion=emotion,
        aus=dict(sorted(aus.items())),
        fine=fine,
        pores=frozenset(),
        subtle=is_subtle,
        deciding_region=region,
        line_contrast=float(how.uniform(0.9, 1.1)) * (PATCHES[region].contrast if region else 0.0),
        side=side if emotion == "contempt" and not is_subtle else "",
        asymmetry=near(how, 0.0, 0.05),
        gaze=(near(how, 0.0, 0.3), near(how, 0.0, 0.2)),
        pose=pose,
        shape=draw_shape(who),
        appearance=replace(look, glasses=0) if region == "eyes" else look,
        texture_seed=int(how.integers(2**62)),
        busy=is_subtle,
    )


def _subtle_aus(rng: np.random.Generator, emotion: str) -> tuple[dict[int, float], frozenset[int], str]:
    """(AUs, the fine ones, the deciding region). Both emotions of a pair take the same draws."""
    cases = [case for case in CASES if emotion in case.pair]
    case = cases[int(rng.choice(len(cases), p=[case.share for case in cases]))]
    aus = {au: strong(rng, *bounds) for au, bounds in case.shown.items()}
    trace = strong(rng, 0.1, 0.4)
    if emotion != case.emotion:
        return aus, frozenset(), case.region
    return aus | {case.au: trace}, frozenset({case.au}), case.region


def face_of(split: str, index: int, share: float = 0.5) -> FaceSpec:
    """Face number `index` of a split. The eight emotions take turns."""
    # The first edition's seeds have two numbers.
    return sample_face((STREAMS[split], index, 2), emotion=EMOTIONS[index % len(EMOTIONS)], share=share)
