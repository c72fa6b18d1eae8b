"""The tools as the policy meets them: on a photograph, with hostile arguments, from many threads."""

import json
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actfer_jax import facs
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.tools import TOOL_SCHEMAS, Toolbox
from actfer_jax.faces.align import aligned_frame
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import (
    GREY,
    ViewConfig,
    cut,
    invert,
    overlap_area,
    polygon_area,
    scene_frame,
    transform,
)

PHOTOGRAPH = skimage.data.astronaut()
SMALL = ViewConfig(32, 2048, 9216, 64, 2048, 6144)
SCENE = cut(PHOTOGRAPH, *scene_frame(512, 512, SMALL), "scene")


@pytest.fixture(scope="module")
def toolbox():
    return Toolbox(FaceDetector(), SMALL)


@pytest.fixture(scope="module")
def face(toolbox):
    (face,) = toolbox.faces("astronaut", PHOTOGRAPH)
    return face


class Desk:
    """One episode's side of the tools: it keeps the views."""

    def __init__(self, toolbox, image=PHOTOGRAPH, key="astronaut"):
        self.toolbox, self.image, self.key = toolbox, image, key
        self.views = [toolbox.scene(image)]

    def call(self, name, treatment="", **arguments):
        reply = self.toolbox.execute(
            ToolCall(name, arguments),
            "",
            images=[self.image],
            key=self.key,
            views=self.views,
            treatment=treatment,
        )
        if reply.view is not None:
            self.views.append(reply.view)
        return reply


@pytest.fixture
def desk(toolbox):
    return Desk(toolbox)


class CountingDetector:
    """Finds the same faces everywhere, and counts how often it looks."""

    def __init__(self, *faces):
        self.faces, self.count = faces, 0
        self.lock = threading.Lock()

    def detect(self, image):
        with self.lock:
            self.count += 1
        return self.faces


# What the tools say and show


def test_detect_faces_lists_boxes_in_units_of_the_scene(desk, face):
    reply = desk.call("detect_faces")
    box = " ".join(str(round(side / 512 * 1000)) for side in face.box)
    assert (reply.text, reply.ok, reply.tool) == (f"1 face: 0 [{box}] {face.score:.2f}", True, "detect_faces")
    assert reply.view is None and not reply.inspects
    assert desk.views[0].box_from_original(face.box) == tuple(map(int, box.split()))


def test_align_face(desk, face):
    reply = desk.call("align_face")
    assert (reply.text, reply.ok, reply.tool) == ("face 0 aligned, 64x64", True, "align_face")
    assert reply.view.pixels.shape == (64, 64, 3) and not reply.inspects
    assert desk.call("align_face", face=0).text == reply.text


@pytest.mark.parametrize("region", facs.REGIONS)
@pytest.mark.parametrize("config", [SMALL, ViewConfig()])
def test_zoom_into_a_region(region, config, toolbox, face):
    desk = Desk(Toolbox(toolbox.detector, config))
    reply = desk.call("zoom", region=region)
    view = reply.view
    assert reply.text == f"{region} of face 0, {view.width}x{view.height}"
    assert (reply.ok, reply.tool, reply.region) == (True, "zoom", region)
    assert config.zoom_min_pixels <= view.width * view.height <= config.zoom_max_pixels
    assert view.width % 32 == view.height % 32 == 0
    points = view.to_view(face.landmarks[list(facs.REGION_LANDMARKS[region])])
    assert points.min() > 0 and (points < (view.width, view.height)).all()
    # Most of the zoom lies inside the face.
    inside = overlap_area(view.footprint, face.box) / polygon_area(view.footprint)
    assert inside > 0.5
    assert reply.inspects


def test_zooms_are_cut_from_the_original_pixels(desk):
    view = desk.call("zoom", region="mouth").view
    np.testing.assert_array_equal(view.pixels, cut(PHOTOGRAPH, view.to_original, view.pixels.shape[:2]).pixels)


def test_zoom_into_a_box_of_a_view(desk, face):
    desk.call("align_face")
    reply = desk.call("zoom", bbox=[300, 500, 700, 800], image=1)
    assert reply.text == f"box of image 1, {reply.view.width}x{reply.view.height}"
    assert reply.ok and reply.region == "bbox" and reply.inspects
    corners = reply.view.to_view(desk.views[1].box_to_original([300, 500, 700, 800]))
    assert corners.min() > -1e-6 and (corners < np.array([reply.view.width, reply.view.height]) + 1e-6).all()
    again = desk.call("zoom", bbox=[250, 250, 750, 750], image=2)
    np.testing.assert_allclose(again.view.footprint.mean(0), reply.view.footprint.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("box", "inspects"),
    [
        ((0, 0, 512, 512), False),  # everything
        ((20, 300, 140, 420), False),  # background
        ((179, 83, 267, 171), False),  # the whole face box
        ((200, 100, 250, 150), True),
        ((205, 130, 225, 150), True),  # 400 of the face box's 7,744 pixels are 0.052
        ((205, 130, 224, 149), False),  # 361 are 0.047
    ],
)
def test_which_boxes_inspect(desk, face, box, inspects):
    assert face.box == (179, 83, 267, 171)
    bbox = [round(side / 512 * 1000) for side in box]
    reply = desk.call("zoom", bbox=bbox)
    assert reply.ok and reply.view.width == reply.view.height and reply.inspects is inspects


def test_a_box_inspects_with_half_of_its_pixels_in_the_aligned_view(desk, face):
    """Counted by pixel: which of them the aligned view shows."""
    aligned, side = aligned_frame(face, SMALL.aligned_side), SMALL.aligned_side
    shares = []
    for left in range(225, 315, 15):
        reply = desk.call("zoom", bbox=[round(side / 512 * 1000) for side in (left, 100, left + 60, 160)])
        height, width = reply.view.pixels.shape[:2]
        y, x = np.mgrid[:height, :width] + 0.5
        points = transform(invert(aligned), reply.view.to_image(np.stack([x.ravel(), y.ravel()], 1)))
        shares.append(((points > 0) & (points < side)).all(1).mean())
        assert reply.inspects == (shares[-1] > 0.5)
    assert min(abs(share - 0.5) for share in shares) < 0.2 and min(shares) < 0.5 < max(shares)


def test_the_second_of_several_faces(toolbox, face):
    scene = np.concatenate([PHOTOGRAPH[:300], PHOTOGRAPH[:300, ::-1]], axis=1)
    desk = Desk(toolbox, scene, "two")
    faces = toolbox.faces("two", scene)
    assert desk.call("detect_faces").text.startswith("2 faces: 0 [")
    for index in (0, 1):
        reply = desk.call("zoom", region="nose", face=index)
        assert reply.text.startswith(f"nose of face {index}, ")
        tip = reply.view.to_view(faces[index].landmarks[[30]])[0]
        assert 0 < tip[0] < reply.view.width and 0 < tip[1] < reply.view.height
    assert desk.call("align_face", face=2).text == "face must be a whole number from 0 to 1"


def test_many_faces_are_counted_but_not_all_listed(face):
    desk = Desk(Toolbox(CountingDetector(*[face] * 30), SMALL))
    text = desk.call("detect_faces").text
    assert text.startswith("30 faces: 0 [") and text.endswith(", ...") and len(text) < 150


def test_an_image_without_a_face(toolbox):
    desk = Desk(toolbox, np.zeros((120, 160, 3), np.uint8), "black")
    reply = desk.call("detect_faces")
    assert (reply.text, reply.ok) == ("no face found", True)
    for reply in (desk.call("align_face"), desk.call("zoom", region="mouth")):
        assert (reply.text, reply.ok, reply.view) == ("no face found", False, None)
    reply = desk.call("zoom", bbox=[0, 0, 500, 500])
    assert reply.ok and not reply.inspects


def test_a_picture_of_one_pixel(toolbox):
    desk = Desk(toolbox, np.zeros((1, 1, 3), np.uint8), "pixel")
    assert desk.call("detect_faces").text == "no face found"
    assert desk.call("zoom", bbox=[0, 0, 1000, 1000]).text == "that is too small to show anything"


def test_a_face_at_the_edge_of_the_picture(toolbox):
    image = np.ascontiguousarray(PHOTOGRAPH[85:300, 170:])
    desk = Desk(toolbox, image, "edge")
    for region in facs.REGIONS:
        assert desk.call("zoom", region=region).ok
    aligned = desk.call("align_face").view
    assert (aligned.pixels[:2] == GREY).all() and (aligned.pixels[32] != GREY).any()
    # A box of that view beyond the picture.
    reply = desk.call("zoom", bbox=[0, 0, 1000, 60], image=len(desk.views) - 1)
    assert (reply.ok, reply.text) == (False, "that lies outside the picture")


# Refusals


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("crop", {}, "unknown tool; the tools are detect_faces, align_face, zoom"),
        ("detect_faces", {"face": 0}, "detect_faces takes no arguments"),
        ("align_face", {"index": 0}, "align_face takes face"),
        ("align_face", {"face": 1}, "face must be 0"),
        ("align_face", {"face": True}, "face must be 0"),
        ("align_face", {"face": "0"}, "face must be 0"),
        ("align_face", {"face": 0.0}, "face must be 0"),
        ("align_face", {"face": None}, "face must be 0"),
        ("align_face", {"face": 10**4000}, "face must be 0"),
        ("zoom", {}, "zoom takes either region or bbox"),
        ("zoom", {"region": "mouth", "bbox": [0, 0, 9, 9]}, "zoom takes either region or bbox"),
        ("zoom", {"region": "ear"}, "unknown region; the regions are brows, eyes, nose, cheeks, mouth, chin"),
        ("zoom", {"region": ["mouth"]}, "unknown region; the regions are brows, eyes, nose, cheeks, mouth, chin"),
        ("zoom", {"region": "mouth", "image": 0}, "image goes with bbox, not with region"),
        ("zoom", {"bbox": [0, 0, 9, 9], "face": 0}, "face goes with region, not with bbox"),
        ("zoom", {"bbox": [0, 0, 9, 9], "image": 1}, "image must be 0"),
        ("zoom", {"bbox": [0, 0, 9, 9], "image": -1}, "image must be 0"),
        ("zoom", {"bbox": [0, 0, 9, 9], "scale": 2}, "zoom takes region, face, bbox, image"),
        ("zoom", {"bbox": [0, 0, 2, 2]}, "that is too small to show anything"),
    ],
)
def test_refused_calls_say_what_was_wrong(desk, name, arguments, text):
    reply = desk.call(name, **arguments)
    assert (reply.text, reply.ok, reply.view, reply.region, reply.inspects) == (text, False, None, "", False)
    assert reply.tool == (name if name != "crop" else "")


@pytest.mark.parametrize(
    "bbox",
    [
        [100, 100, 100, 200],
        [300, 100, 200, 200],
        [0, 0, 1001, 10],
        [-1, 0, 10, 10],
        [0, 0, float("nan"), 10],
        [0, 0, float("inf"), 10],
        [0, 0, 10**400, 10],
        [0, 0, 10.5, 10],
        [False, False, True, True],
        ["0", "0", "9", "9"],
        [0, 0, 9],
        [[0, 0, 9, 9]],
        {"0": 1},
        "0,0,9,9",
        None,
    ],
)
def test_refused_boxes(desk, bbox):
    reply = desk.call("zoom", bbox=bbox)
    assert not reply.ok and reply.view is None
    assert reply.text == "bbox must be whole numbers [x0, y0, x1, y1] in 0..1000, x0 < x1 and y0 < y1"


def test_an_unreadable_call_is_answered_with_its_error(toolbox):
    reply = toolbox.execute(None, "the tool call is not valid JSON", images=[PHOTOGRAPH], key="a", views=[])
    assert (reply.text, reply.ok, reply.tool) == ("the tool call is not valid JSON", False, "")


def test_an_unknown_treatment_is_the_callers_mistake(desk):
    with pytest.raises(ValueError, match="treatment is 'blur'"):
        desk.call("detect_faces", treatment="blur")


numbers = st.one_of(
    st.integers(-2, 3), st.integers(0, 1000), st.integers(), st.floats(), st.booleans(), st.just(10**4000)
)
words = st.one_of(
    st.sampled_from(
        [*facs.REGIONS, "Mouth", "left eye", "<|im_end|>", "<|image_pad|>", "../../etc/passwd", "\n", "\ud800"]
    ),
    st.text(max_size=20),
)
values = st.recursive(
    st.one_of(st.none(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
hostile_calls = st.builds(
    ToolCall,
    st.one_of(st.sampled_from(["detect_faces", "align_face", "zoom", "Zoom", ""]), words),
    st.one_of(
        st.dictionaries(
            st.sampled_from(["region", "face", "bbox", "image", "", "__class__"]) | words, values, max_size=4
        ),
        st.fixed_dictionaries({"region": words}, optional={"face": values}),
        st.fixed_dictionaries(
            {
                "bbox": st.one_of(
                    st.lists(numbers, min_size=3, max_size=5), st.lists(st.integers(0, 1000), min_size=4, max_size=4)
                )
            },
            optional={"image": numbers},
        ),
    ),
)


@given(hostile_calls, st.sampled_from(["", "blank_crop", "low_res_crop"]))
@settings(deadline=None, max_examples=400)
def test_whatever_is_called_there_is_a_reply_of_one_line(toolbox, call, treatment):
    views = [SCENE]
    reply = toolbox.execute(call, "", images=[PHOTOGRAPH], key="astronaut", views=views, treatment=treatment)
    assert views == [SCENE]
    assert 0 < len(reply.text) < 150 and reply.text.isascii() and reply.text.isprintable() and "<|" not in reply.text
    assert reply.tool in ("", "detect_faces", "align_face", "zoom")
    if not reply.ok:
        assert reply.view is None and not reply.inspects
    if reply.view is not None:
        assert np.isfinite(reply.view.to_original).all()
        assert 2048 <= reply.view.height * reply.view.width <= 6144


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_zooms_of_zooms_go_on_until_there_is_nothing_to_see(toolbox, data):
    desk = Desk(toolbox)
    for depth in range(6):
        x0, y0 = data.draw(st.tuples(*[st.integers(0, 900)] * 2))
        x1, y1 = data.draw(st.tuples(st.integers(x0 + 1, 1000), st.integers(y0 + 1, 1000)))
        reply = desk.call("zoom", bbox=[x0, y0, x1, y1], image=depth)
        if not reply.ok:
            assert reply.text in ("that is too small to show anything", "that lies outside the picture")
            break
        assert np.hypot(*reply.view.to_original[:, 0]) * reply.view.width >= 4


# The controls of an evaluation


CALLS = [
    *[{"region": region} for region in facs.REGIONS],
    {"bbox": [360, 180, 500, 330]},
    {"bbox": [200, 250, 800, 500], "image": 1},
    {"bbox": [10, 600, 150, 700]},
    {"bbox": [0, 0, 1000, 1000]},
]


def coarse_pixels(view, source):
    """What a view shows of another view's pixels, where all of that lies inside."""
    to_source = np.column_stack(
        [
            np.linalg.solve(source.to_original[:, :2], view.to_original[:, :2]),
            np.linalg.solve(source.to_original[:, :2], view.to_original[:, 2] - source.to_original[:, 2]),
        ]
    )
    rows, columns = np.mgrid[0 : view.height, 0 : view.width] + 0.5
    x, y = to_source[:, :2] @ [columns.ravel(), rows.ravel()] + to_source[:, 2:] - 0.5
    inside = (x >= 0) & (y >= 0) & (x < source.width - 1) & (y < source.height - 1)
    x, y = x[inside], y[inside]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, lower_share = (x - left)[:, None], (y - top)[:, None]
    pixels = source.pixels.astype(float)
    upper = pixels[top, left] * (1 - right_share) + pixels[top, left + 1] * right_share
    lower = pixels[top + 1, left] * (1 - right_share) + pixels[top + 1, left + 1] * right_share
    return upper * (1 - lower_share) + lower * lower_share, inside.reshape(view.height, view.width)


@pytest.mark.parametrize("arguments", CALLS)
def test_treatments_change_pixels_and_nothing_else(desk, arguments):
    desk.call("align_face")
    plain, blank, coarse = (
        desk.call("zoom", treatment=treatment, **arguments) for treatment in ("", "blank_crop", "low_res_crop")
    )
    for treated in (blank, coarse):
        assert (treated.text, treated.ok, treated.tool) == (plain.text, plain.ok, plain.tool)
        assert (treated.region, treated.inspects) == (plain.region, plain.inspects)
        assert treated.view.name == plain.view.name and treated.view.pixels.shape == plain.view.pixels.shape
        np.testing.assert_array_equal(treated.view.to_original, plain.view.to_original)
    assert (blank.view.pixels == GREY).all()


@pytest.mark.parametrize("image", [PHOTOGRAPH, np.array(Image.fromarray(PHOTOGRAPH).resize((1400, 1400)))])
@pytest.mark.parametrize("arguments", [{"region": region} for region in facs.REGIONS] + [CALLS[6], CALLS[7]])
def test_low_res_zooms_of_a_face_are_made_of_the_aligned_pixels(toolbox, image, arguments):
    desk = Desk(toolbox, image, image.shape)
    aligned = desk.call("align_face").view
    view = desk.call("zoom", treatment="low_res_crop", **arguments).view
    expected, inside = coarse_pixels(view, aligned)
    assert inside.mean() > 0.7
    assert np.abs(view.pixels[inside] - expected).max() <= 2


def test_low_res_zooms_elsewhere_are_made_of_the_pixels_of_the_scene(desk):
    reply = desk.call("zoom", treatment="low_res_crop", bbox=[10, 600, 150, 700])
    expected, inside = coarse_pixels(reply.view, desk.views[0])
    assert np.abs(reply.view.pixels[inside] - expected).max() <= 2
    again = desk.call("zoom", treatment="low_res_crop", bbox=[100, 100, 900, 900], image=1)
    expected, inside = coarse_pixels(again.view, desk.views[0])
    assert np.abs(again.view.pixels[inside] - expected).max() <= 2


def test_low_res_zooms_hide_detail_that_zooms_show(toolbox, face):
    large = np.array(Image.fromarray(PHOTOGRAPH).resize((1536, 1536), Image.Resampling.BICUBIC))
    marked = large.copy()
    left, top, right, bottom = (round(3 * side) for side in face.box)
    part = marked[top:bottom, left:right].astype(int)
    # Lines two pixels wide, one dark, one light.
    part[:, np.arange(right - left) // 2 % 2 == 0] -= 20
    part[:, np.arange(right - left) // 2 % 2 == 1] += 20
    marked[top:bottom, left:right] = part.clip(0, 255)
    faces = toolbox.faces("large", large)
    shown = {}
    for treatment in ("", "low_res_crop"):
        views = [
            Desk(Toolbox(CountingDetector(*faces), SMALL), image, 0).call("zoom", treatment, region="mouth").view
            for image in (large, marked)
        ]
        shown[treatment] = np.abs(views[0].pixels.astype(float) - views[1].pixels)[8:-8, 8:-8].mean()
    assert shown[""] > 3 * shown["low_res_crop"]


# Many at once


def test_rollouts_of_one_image_detect_once(face):
    detector = CountingDetector(face)
    toolbox = Toolbox(detector, SMALL)
    start = threading.Barrier(8)

    def rollout(index):
        start.wait()
        desk = Desk(toolbox, key=f"image {index % 2}")
        desk.call("detect_faces")
        return desk.call("zoom", region=facs.REGIONS[index % 6]).view.pixels

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(rollout, range(8)))
    assert detector.count == 2
    np.testing.assert_array_equal(results[0], results[6])


def test_different_images_do_not_wait_for_each_other(face):
    seen = threading.Event()

    class Waiting:
        def detect(self, image):
            if image[0, 0, 0]:
                seen.set()
            elif not seen.wait(timeout=60):
                raise AssertionError("the second image was never looked at")
            return (face,)

    toolbox = Toolbox(Waiting(), SMALL)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(toolbox.faces, "dark", np.zeros((4, 4, 3), np.uint8))
        second = pool.submit(toolbox.faces, "light", np.full((4, 4, 3), 255, np.uint8))
        assert first.result(timeout=90) == second.result(timeout=90) == (face,)


def test_a_failed_detection_is_raised_and_not_remembered(face):
    class Failing(CountingDetector):
        def detect(self, image):
            faces = super().detect(image)
            if self.count == 1:
                raise MemoryError
            return faces

    toolbox = Toolbox(Failing(face), SMALL)
    with pytest.raises(MemoryError):
        toolbox.faces("a", PHOTOGRAPH)
    assert toolbox.faces("a", PHOTOGRAPH) == (face,)


def test_memory_of_faces_is_bounded(monkeypatch, face):
    monkeypatch.setattr("actfer_jax.agent.tools._CACHED_IMAGES", 2)
    detector = CountingDetector(face)
    toolbox = Toolbox(detector, SMALL)
    for key in ("a", "b", "a", "c", "a", "b"):
        toolbox.faces(key, PHOTOGRAPH)
    assert detector.count == 4


def in_another_process(toolbox):
    return Desk(toolbox).call("zoom", region="eyes").view.pixels


def test_a_toolbox_works_in_another_process(toolbox, desk):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(in_another_process, toolbox).result(timeout=120)
    np.testing.assert_array_equal(there, desk.call("zoom", region="eyes").view.pixels)


# Schemas


def test_schemas_name_the_tools_and_their_arguments_as_json():
    assert json.loads(json.dumps(TOOL_SCHEMAS)) == TOOL_SCHEMAS
    names = {s["function"]["name"]: set(s["function"]["parameters"]["properties"]) for s in TOOL_SCHEMAS}
    assert names == {"detect_faces": set(), "align_face": {"face"}, "zoom": {"region", "face", "bbox", "image"}}
