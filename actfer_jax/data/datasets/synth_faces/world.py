"""The content of the rendered world: which action units a face shows, where, and how visibly.

Every sample is *plain* or *subtle*. In a plain sample every AU moves the face. In a subtle one some AUs are `fine`:
they move nothing, and show as furrows and lines that only a zoom resolves.

- Surprise or fear: AU1, AU2, AU5 and AU26 are visible from afar. AU4 (brows) and AU20 (mouth corners) are fine, and
  only fear has them. The deciding region is the brows, with furrows in fear and pores in surprise.
- Anger or disgust: AU4 and AU7, and sometimes AU17, are visible from afar. AU9 (nose), AU15 and AU16 (mouth) are fine,
  and only disgust has them. AU23 and AU24 (mouth) are fine, and only anger has them. AU5 would identify anger, so it is
  left out. The deciding region is the nose.
- Happiness (AU6, cheeks), sadness (AU15, mouth) and neutral (a distractor, mouth or chin) have a fine AU too, but the
  emotion is readable from afar. A zoom there completes the AUs and decides nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from actfer_jax.data.datasets.synth_faces.geometry import Shape
from actfer_jax.data.datasets.synth_faces.wrinkles import PORE_GROUPS
from actfer_jax.facs import EMOTIONS, REGION_OF_AU

DEMO_EMOTIONS: tuple[str, ...] = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
"""The labels of the demo. Contempt can be rendered too, but is never drawn by default."""

SUBTLE_RATE = {
    "surprise": 0.85,
    "fear": 0.85,
    "anger": 0.85,
    "disgust": 0.85,
    "happiness": 0.1,
    "sadness": 0.1,
    "neutral": 0.1,
    "contempt": 0.1,
}
"""How often a sample of an emotion is subtle."""  # fmt: skip

AMBIGUOUS_PAIRS: tuple[tuple[str, str], ...] = (("surprise", "fear"), ("anger", "disgust"))


@dataclass(frozen=True)
class Pose:
    """The face's centre, and height from hairline to chin, in pixels of a 512 x 512 scene; its angle in the image, and
    how far it is turned to the side, in degrees."""

    x: float
    y: float
    height: float
    angle: float
    turn: float = 0.0


@dataclass(frozen=True)
class Appearance:
    """The look of a person and the light, without the expression. Colours are RGB in 0..255."""

    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    clothes: tuple[float, float, float]
    lips: float
    hair_style: int
    hair_volume: float
    brow_thickness: float
    glasses: int
    light: tuple[float, float]
    tint: tuple[float, float, float]
    exposure: float
    noise: float
    blotches: float
    teeth: float


@dataclass(frozen=True)
class FaceSpec:
    """One face and its scene. `renderer.render` draws it; the same spec gives the same pixels.

    Attributes:
      emotion: the emotion that is shown.
      aus: AU -> intensity in (0, 1]; `letter` gives its FACS letter, A to E.
      fine: the AUs of these that show only as fine lines.
      pores: absent AUs with pores in the place of their lines; a coarse view cannot tell pores from lines.
      subtle: whether the sample is subtle.
      deciding_region: the region (a key of `facs.REGION_AUS`) with the deciding fine lines; "" if plain.
      line_contrast: contrast of fine lines against the skin.
      side: "left" or "right" (in the image) for a one-sided AU12 + AU14, else "".
      asymmetry: relative difference in movement between the two sides of the face.
      gaze: the position of the irises, in (-1..1, -1..1).
      pose, shape, appearance: see these classes.
      texture_seed: seeds all texture (background, noise, pores, the waves of lines).
      busy: the deciding region has a busy patch (`patches`), as in the second edition.
      other: another face in the picture, behind this one.
    """

    emotion: str
    aus: Mapping[int, float]
    fine: frozenset[int]
    pores: frozenset[int]
    subtle: bool
    deciding_region: str
    line_contrast: float
    side: str
    asymmetry: float
    gaze: tuple[float, float]
    pose: Pose
    shape: Shape
    appearance: Appearance
    texture_seed: int
    busy: bool = False
    other: "FaceSpec | None" = None


def letter(intensity: float) -> str:
    """The FACS letter of an intensity in (0, 1]: "A" up to 0.2, ..., "E" above 0.8."""
    return "ABCDE"[level(intensity) - 1]


def level(intensity: float) -> int:
    """The FACS intensity as a number, 1 (A) to 5 (E)."""
    return int(np.clip(np.ceil(round(intensity * 5, 6)), 1, 5))


def emotion_from_aus(aus: Iterable[int]) -> str:
    """The emotion of a set of AUs. The first rule that matches decides; the most specific come first."""
    present = frozenset(aus)
    if 12 in present:
        return "happiness" if 6 in present else "contempt"
    if present & {9, 10}:
        return "disgust"
    if present & {23, 24}:
        return "anger"
    if {1, 2} <= present:
        return "fear" if present & {4, 20} else "surprise"
    if {1, 4} <= present:
        return "sadness"
    return "neutral"


def strong(rng: np.random.Generator, low: float = 0.6, high: float = 1.0) -> float:
    return round(float(rng.uniform(low, high)), 3)


def plain_aus(rng: np.random.Generator, emotion: str) -> dict[int, float]:
    if emotion == "happiness":
        aus = {6: strong(rng), 12: strong(rng)} | ({25: strong(rng, 0.4)} if rng.random() < 0.5 else {})
    elif emotion == "sadness":
        aus = {1: strong(rng), 4: strong(rng, 0.45, 0.8), 15: strong(rng)}
    elif emotion == "surprise":
        aus = {1: strong(rng, 0.7), 2: strong(rng, 0.7), 5: strong(rng, 0.7), 26: strong(rng, 0.8)}
        aus |= {25: strong(rng)} if rng.random() < 0.5 else {}
    elif emotion == "fear":
        aus = {
            1: strong(rng),
            2: strong(rng),
            4: strong(rng),
            5: strong(rng),
            20: strong(rng, 0.7),
            26: strong(rng, 0.4, 0.7),
        }
        aus |= {25: strong(rng, 0.4)} if rng.random() < 0.5 else {}
        aus |= {7: strong(rng, 0.3, 0.6)} if rng.random() < 0.2 else {}
    elif emotion == "disgust":
        if rng.random() < 0.7:
            aus = {9: strong(rng, 0.7), 15: strong(rng), 16: strong(rng)} | (
                {10: strong(rng)} if rng.random() < 0.4 else {}
            )
        else:
            aus = {9: strong(rng, 0.7), 10: strong(rng, 0.7), 17: strong(rng), 4: strong(rng, 0.4, 0.8)}
    elif emotion == "anger":
        aus = {4: strong(rng, 0.7), 5: strong(rng), 7: strong(rng), 23: strong(rng, 0.7)} | (
            {24: strong(rng)} if rng.random() < 0.5 else {}
        )
    elif emotion == "contempt":
        aus = {12: strong(rng), 14: strong(rng)}
    else:
        aus = {}
    return aus  # fmt: skip


def _subtle_aus(rng: np.random.Generator, emotion: str) -> tuple[dict[int, float], frozenset[int], str]:
    """(AUs, the fine ones, the deciding region). The AUs that a pair shares come from one distribution."""

    def trace() -> float:
        return round(float(rng.uniform(0.1, 0.4)), 3)

    if emotion in ("surprise", "fear"):
        shared = {
            1: strong(rng, 0.4, 0.6),
            2: strong(rng, 0.4, 0.6),
            5: strong(rng, 0.4, 0.6),
            26: strong(rng, 0.35, 0.55),
        }
        fine = {4: trace(), 20: trace()} if emotion == "fear" else {}
        return shared | fine, frozenset(fine), "brows"
    if emotion in ("anger", "disgust"):
        shared = {4: strong(rng, 0.4, 0.65), 7: strong(rng, 0.5, 0.8)} | (
            {17: strong(rng, 0.5, 0.8)} if rng.random() < 0.5 else {}
        )
        if emotion == "disgust":
            fine = {9: trace(), 15: trace(), 16: trace()}
        else:
            fine = {23: trace(), 24: trace()}
        return shared | fine, frozenset(fine), "nose"
    if emotion == "happiness":
        return {6: trace(), 12: strong(rng, 0.5, 0.7)}, frozenset({6}), "cheeks"
    if emotion == "sadness":
        return {1: strong(rng, 0.6, 0.8), 4: strong(rng, 0.4, 0.6), 15: trace()}, frozenset({15}), "mouth"
    if emotion == "contempt":
        return {12: strong(rng, 0.5, 0.7), 14: trace()}, frozenset({14}), "mouth"
    au = int(rng.choice((14, 17)))
    return {au: trace()}, frozenset({au}), REGION_OF_AU[au]


_DISTRACTORS = {
    "neutral": (14, 17, 25, 43), "sadness": (17, 25), "happiness": (), "surprise": (14,), "fear": (14,),
    "disgust": (14,), "anger": (14,), "contempt": (),
}  # fmt: skip


def _expression(rng: np.random.Generator, emotion: str, subtle: bool) -> tuple[dict[int, float], frozenset[int], str]:
    aus, fine, region = _subtle_aus(rng, emotion) if subtle else (plain_aus(rng, emotion), frozenset(), "")
    distractors = [au for au in _DISTRACTORS[emotion] if au not in aus]
    # The two emotions of a pair share the list and the rate, so a distractor never tells them apart.
    if distractors and rng.random() < (0.3 if emotion == "neutral" else 0.12):
        aus = aus | {int(rng.choice(distractors)): strong(rng, 0.5, 0.9)}
    return dict(sorted(aus.items())), fine, region


def _pores(rng: np.random.Generator, emotion: str, aus: Mapping[int, float]) -> frozenset[int]:
    """One AU for each group of which the face shows none. An ambiguous pair shares its AU in the group of AU20."""
    ambiguous = {"surprise": 20, "fear": 20, "anger": 15, "disgust": 15}
    pores = set()
    for group in PORE_GROUPS:
        choice = int(rng.choice(group))
        if not aus.keys() & set(group):
            pores.add(ambiguous.get(emotion, choice) if 20 in group else choice)
    return frozenset(pores)


_SKINS = np.array(
    [(246, 214, 190), (233, 192, 160), (214, 166, 130), (190, 140, 105), (160, 112, 82), (130, 90, 66)], float
)
_HAIRS = np.array([(28, 24, 24), (60, 42, 32), (96, 66, 42), (150, 110, 66), (196, 160, 104), (120, 118, 118)], float)
_IRISES = np.array([(62, 40, 24), (88, 62, 36), (72, 92, 60), (70, 100, 130)], float)


def _blend(rng: np.random.Generator, colours: np.ndarray, jitter: float) -> tuple[float, float, float]:
    position = rng.uniform(0, len(colours) - 1)
    low = min(int(position), len(colours) - 2)
    colour = colours[low] + (position - low) * (colours[low + 1] - colours[low]) + rng.normal(0, jitter, 3)
    r, g, b = np.clip(colour, 5, 250).round(2)
    return float(r), float(g), float(b)


def near(rng: np.random.Generator, centre: float, spread: float) -> float:
    """A normal draw, cut at two standard deviations."""
    return float(centre + spread * np.clip(rng.normal(), -2, 2))


def draw_shape(rng: np.random.Generator) -> Shape:
    return Shape(
        width=near(rng, 1.0, 0.02),
        jaw_width=near(rng, 1.0, 0.05),
        chin=near(rng, 0.0, 0.02),
        eye_size=near(rng, 1.0, 0.035),
        eye_openness=near(rng, 1.0, 0.05),
        eye_spacing=near(rng, 0.0, 0.008),
        brow_height=near(rng, 0.0, 0.01),
        brow_arch=near(rng, 0.0, 0.007),
        nose_width=near(rng, 1.0, 0.06),
        nose_length=near(rng, 1.0, 0.02),
        mouth_width=near(rng, 1.0, 0.035),
        lip_thickness=near(rng, 1.0, 0.07),
    )


def draw_appearance(rng: np.random.Generator) -> Appearance:
    return Appearance(
        skin=_blend(rng, _SKINS, 4),
        hair=_blend(rng, _HAIRS, 6),
        iris=_blend(rng, _IRISES, 6),
        clothes=(float(rng.uniform(20, 220)), float(rng.uniform(20, 220)), float(rng.uniform(20, 220))),
        lips=float(rng.uniform(0.25, 0.8)),
        hair_style=int(rng.integers(5)),
        hair_volume=float(rng.uniform(0.0, 1.0)),
        brow_thickness=float(rng.uniform(0.85, 1.25)),
        glasses=int(rng.choice(3, p=(0.8, 0.1, 0.1))),
        light=(float(rng.uniform(-0.16, 0.16)), float(rng.uniform(-0.10, 0.06))),
        tint=(float(rng.uniform(0.95, 1.05)), 1.0, float(rng.uniform(0.94, 1.05))),
        exposure=float(rng.uniform(0.85, 1.08)),
        noise=float(rng.uniform(0.5, 1.5)),
        blotches=float(rng.uniform(0.018, 0.033)),
        teeth=float(rng.uniform(0.85, 1.0)),
    )


def _pose(rng: np.random.Generator) -> Pose:
    height = float(rng.uniform(200, 320))
    # Hair and a dropped jaw stay inside the scene at any angle.
    margin_x, margin_y = 0.50 * height + 8, 0.62 * height + 8
    return Pose(
        x=float(rng.uniform(margin_x, 512 - margin_x)),
        y=float(rng.uniform(margin_y, 512 - margin_y)),
        height=height,
        angle=float(rng.uniform(-15, 15)),
    )


def sample_face(seed: int | tuple[int, ...], *, emotion: str | None = None, subtle: bool | None = None) -> FaceSpec:
    """Samples one face; the same arguments give the same face.

    Args:
      seed: a number or a tuple of numbers, all non-negative.
      emotion: one of `facs.EMOTIONS`; by default one of the seven `DEMO_EMOTIONS`, uniformly.
      subtle: whether the sample is subtle; by default drawn at the emotion's `SUBTLE_RATE`.

    Raises:
      ValueError: the emotion is not one of `facs.EMOTIONS`.
    """
    if emotion is not None and emotion not in EMOTIONS:
        raise ValueError(f"emotion {emotion!r} is not one of {', '.join(EMOTIONS)}")
    # One stream per aspect: another emotion gives the same person in the same place.
    what, who, where, how = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    drawn = DEMO_EMOTIONS[int(what.integers(len(DEMO_EMOTIONS)))]
    emotion = emotion or drawn
    is_subtle = bool(what.random() < SUBTLE_RATE[emotion]) if subtle is None else subtle
    aus, fine, region = _expression(what, emotion, is_subtle)
    return FaceSpec(
        emotion=emotion,
        aus=aus,
        fine=fine,
        pores=_pores(how, emotion, aus),
        subtle=is_subtle,
        deciding_region=region,
        line_contrast=float(how.uniform(0.15, 0.20)),
        side=str(how.choice(("left", "right"))) if emotion == "contempt" else "",
        asymmetry=near(how, 0.0, 0.05),
        gaze=(near(how, 0.0, 0.3), near(how, 0.0, 0.2)),
        pose=_pose(where),
        shape=draw_shape(who),
        appearance=draw_appearance(who),
        texture_seed=int(how.integers(2**62)),
    )


STREAMS: dict[str, int] = {"train": 0, "validation": 1, "test": 2}
"""First number of the seeds of each split, so that no seed is in two splits."""


def face_of(split: str, index: int) -> FaceSpec:
    """Face number `index` of a split. The seven emotions take turns."""
    return sample_face((STREAMS[split], index), emotion=DEMO_EMOTIONS[index % len(DEMO_EMOTIONS)])
