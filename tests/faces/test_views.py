"""Views: sizes, affine maps and sampling, against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actfer_jax.faces.views import (
    GREY,
    View,
    ViewConfig,
    cut,
    fit_size,
    magnify,
    overlap_area,
    polygon_area,
    rectangle,
    scene_frame,
)

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
ROWS, COLUMNS = np.mgrid[0:200, 0:250]
GRADIENT = np.stack([COLUMNS, ROWS, np.full_like(ROWS, 77)], -1).astype(np.uint8)
"""Red and green of a pixel are its column and row, so that a view's colours say where it was cut from."""

sides = st.floats(0.5, 20_000)
limits = st.tuples(st.sampled_from([14, 28, 32]), st.integers(1, 60), st.integers(0, 400)).map(
    lambda t: {"multiple": t[0], "min_pixels": t[1] * t[0] ** 2, "max_pixels": (t[1] + t[2]) * t[0] ** 2}
)


ROUNDING = 2.0
"""In levels of 255: the samples and their mean are each cut to whole levels."""


def similarity(angle, scale, x, y):
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]])


similarities = st.builds(
    similarity, st.floats(-math.pi, math.pi), st.floats(0.05, 20), st.floats(-500, 500), st.floats(-500, 500)
)


def resample(image, to_original, size, samples):
    """Averages a grid of (across, down) bilinear samples in every pixel of the view; grey outside the image."""
    height, width = image.shape[:2]
    x, y = ((np.arange(size[1 - i])[:, None] + (np.arange(n) + 0.5) / n).ravel() for i, n in enumerate(samples))
    points = np.stack(np.meshgrid(x, y), -1) @ to_original[:, :2].T + to_original[:, 2]
    inside = ((points >= 0) & (points < (width, height))).all(-1)
    column, row = np.moveaxis(points - 0.5, -1, 0)
    left, top = np.floor(column), np.floor(row)
    total = np.zeros((*points.shape[:2], 3))
    for down in (0, 1):
        for right in (0, 1):
            weight = (1 - abs(column - left - right)) * (1 - abs(row - top - down))
            rows = np.clip(top + down, 0, height - 1).astype(int)
            columns = np.clip(left + right, 0, width - 1).astype(int)
            total += weight[..., None] * image[rows, columns]
    total[~inside] = GREY
    return total.reshape(size[0], samples[1], size[1], samples[0], 3).mean((1, 3))


# Sizes


@given(sides, sides, limits)
@settings(deadline=None)
def test_fit_size_keeps_the_limits_and_is_nearest(height, width, limits):
    size = fit_size(height, width, **limits)
    multiple, low, high = limits["multiple"], limits["min_pixels"], limits["max_pixels"]
    assert size[0] % multiple == 0 and size[1] % multiple == 0
    assert low <= size[0] * size[1] <= high

    area = min(max(height * width, low), high)

    def distance(h, w):
        return math.log(w / h * height / width) ** 2 + math.log(math.sqrt(h * w / area)) ** 2

    for h in range(multiple, high // multiple + 1, multiple):
        for w in (size[1] - multiple, size[1], size[1] + multiple):
            if w > 0 and low <= h * w <= high and max(h, w) <= 200 * min(h, w):
                assert distance(*size) <= distance(h, w) + 1e-9


@given(sides, sides)
@settings(deadline=None, max_examples=50)
def test_the_hugging_face_processor_keeps_the_size(height, width):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    config = ViewConfig()
    for low, high in (
        (config.scene_min_pixels, config.scene_max_pixels),
        (config.zoom_min_pixels, config.zoom_max_pixels),
    ):
        size = fit_size(height, width, multiple=32, min_pixels=low, max_pixels=high)
        assert tuple(module.smart_resize(*size, factor=32, min_pixels=low, max_pixels=high)) == size


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (96, 96)),
        (300, 900, (64, 128)),
        (480, 640, (64, 96)),
        (20, 10, (64, 32)),
        (64, 64, (64, 64)),
        (1, 20_000, (32, 288)),
    ],
)
def test_fit_size_by_example(height, width, expected):
    size = fit_size(height, width, multiple=32, min_pixels=2048, max_pixels=9216)
    assert size == expected


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, -1), (math.nan, 5), (math.inf, 5)])
def test_fit_size_refuses_an_empty_area(height, width):
    with pytest.raises(ValueError, match="must be positive"):
        fit_size(height, width, multiple=32, min_pixels=1024, max_pixels=9216)


def test_config_refuses_limits_without_a_size():
    with pytest.raises(ValueError, match="no picture with sides in multiples of 32 has 2000 to 2040 pixels"):
        ViewConfig(zoom_min_pixels=2000, zoom_max_pixels=2040)
    with pytest.raises(ValueError, match="aligned_side is 100"):
        ViewConfig(aligned_side=100)


# Maps


@given(similarities, st.lists(st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000)), min_size=1, max_size=9))
def test_a_point_mapped_to_a_view_and_back_is_where_it_was(to_original, points):
    view = View(np.zeros((10, 20, 3), np.uint8), to_original, "")
    np.testing.assert_allclose(view.to_image(view.to_view(points)), points, atol=1e-6)
    np.testing.assert_allclose(view.to_view(view.to_image(points)), points, atol=1e-6)


boxes = st.tuples(st.integers(0, 999), st.integers(0, 999), st.integers(1, 1000), st.integers(1, 1000)).filter(
    lambda box: box[0] < box[2] and box[1] < box[3]
)


@given(boxes, st.floats(0.05, 20), st.floats(0.05, 20))
def test_a_box_of_the_policy_comes_back(box, x_scale, y_scale):
    view = View(np.zeros((64, 96, 3), np.uint8), np.array([[x_scale, 0, 7.0], [0, y_scale, -3.0]]), "")
    corners = view.box_to_original(box)
    left, top = corners.min(0)
    right, bottom = corners.max(0)
    np.testing.assert_allclose(left, 7 + box[0] / 1000 * 96 * x_scale)
    np.testing.assert_allclose(bottom, -3 + box[3] / 1000 * 64 * y_scale)
    assert view.box_from_original((left, top, right, bottom)) == box


def test_boxes_are_clipped_to_the_view():
    view = View(np.zeros((10, 10, 3), np.uint8), np.array([[1.0, 0, 0], [0, 1.0, 0]]), "")
    assert view.box_from_original((-5.0, 2.0, 50.0, 7.0)) == (0, 200, 1000, 700)


@given(similarities, st.floats(0, 50), st.floats(0, 50), st.floats(0.01, 300), st.floats(0.01, 300), st.booleans())
@settings(deadline=None)
def test_a_zoom_covers_its_box_about_its_centre_with_square_pixels(to_original, x, y, width, height, demo):
    config = ViewConfig(32, 2048, 9216, 64, 2048, 6144) if demo else ViewConfig()
    box = (x, y, x + width, y + height)
    zoom, size = magnify(to_original, box, config)
    view = View(np.zeros((*size, 3), np.uint8), zoom, "")
    frame = View(np.zeros((1, 1, 3), np.uint8), to_original, "")
    corners = view.to_view(frame.to_image(rectangle(box)))
    tolerance = 1e-6 * max(size)
    assert corners.min() > -tolerance and (corners < np.array(size[::-1]) + tolerance).all()
    np.testing.assert_allclose(corners.mean(0), (size[1] / 2, size[0] / 2), atol=tolerance)
    # Not larger than it must be: the box touches two opposite sides of the zoom.
    np.testing.assert_allclose(min(corners.min(0)), 0, atol=tolerance)
    np.testing.assert_allclose(zoom[:, 0] @ zoom[:, 0], zoom[:, 1] @ zoom[:, 1])
    np.testing.assert_allclose(zoom[:, 0] @ zoom[:, 1], 0, atol=1e-9 * (zoom**2).sum())


@given(boxes, boxes)
@settings(deadline=None, max_examples=60)
def test_a_zoom_of_a_zoom_shows_what_its_map_says(first, second):
    config = ViewConfig(32, 2048, 9216, 64, 2048, 6144)
    frame, size = scene_frame(200, 250, config)
    view = cut(GRADIENT, frame, size)
    for box in (first, second):
        to_original, size = magnify(view.to_original, view.box_pixels(box), config)
        view = cut(GRADIENT, to_original, size)
    rows, columns = np.mgrid[0 : view.height, 0 : view.width] + 0.5
    x, y = view.to_image(np.stack([columns.ravel(), rows.ravel()], -1)).T
    margin = max(1.0, np.hypot(*view.to_original[:, 0]))
    inside = (x > margin) & (x < 250 - margin) & (y > margin) & (y < 200 - margin)
    seen = view.pixels.reshape(-1, 3)[inside].astype(float)
    np.testing.assert_allclose(seen[:, 0], x[inside] - 0.5, atol=1.5)
    np.testing.assert_allclose(seen[:, 1], y[inside] - 0.5, atol=1.5)


# Sampling


@pytest.mark.parametrize("scale", [0.2, 0.7, 1.0, 1.5, 2.0, 3.3, 4.0])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_cut_agrees_with_brute_force(scale, angle):
    to_original = similarity(angle, scale, 20.3, 25.8)
    view = cut(NOISE, to_original, (24, 30))
    expected = resample(NOISE, to_original, (24, 30), [math.ceil(scale)] * 2)
    assert np.abs(view.pixels - expected).max() <= ROUNDING


def test_cut_keeps_different_scales_along_both_axes():
    to_original = np.array([[2.5, 0.0, 1.2], [0.0, 0.6, 3.1]])
    expected = resample(NOISE, to_original, (40, 25), [3, 1])
    assert np.abs(cut(NOISE, to_original, (40, 25)).pixels - expected).max() <= ROUNDING


def test_the_identity_copies_pixels():
    np.testing.assert_array_equal(cut(NOISE, np.eye(2, 3), NOISE.shape[:2]).pixels, NOISE)
    shifted = cut(NOISE, np.array([[1.0, 0, 5], [0, 1, 7]]), (10, 12)).pixels
    np.testing.assert_array_equal(shifted, NOISE[7:17, 5:17])


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16])
def test_shrinking_by_a_whole_number_averages_areas(factor):
    image = np.random.default_rng(1).integers(0, 256, (4 * factor, 6 * factor, 3)).astype(np.uint8)
    expected = image.reshape(4, factor, 6, factor, 3).mean((1, 3))
    view = cut(image, np.array([[factor, 0.0, 0], [0, factor, 0]]), (4, 6))
    assert np.abs(view.pixels - expected).max() <= 1.01


@given(st.floats(2.2, 40), st.floats(-math.pi, math.pi))
@settings(deadline=None, max_examples=40)
def test_fine_patterns_do_not_alias(scale, angle):
    rows, columns = np.mgrid[0:900, 0:900]
    checks = np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    size = int(600 / scale)
    middle = similarity(angle, scale, 0, 0)
    middle[:, 2] = 450 - middle[:, :2] @ [size / 2, size / 2]
    view = cut(checks, middle, (size, size))
    inner = view.pixels[size // 4 : -size // 4 or None, size // 4 : -size // 4 or None].astype(float)
    assert abs(inner.mean() - 127.5) < 3 and inner.std() < 30


def test_outside_the_image_is_grey():
    view = cut(NOISE, np.array([[1.0, 0, 70], [0, 1, 0]]), (20, 20))
    np.testing.assert_array_equal(view.pixels[:, :10], NOISE[:20, 70:])
    assert (view.pixels[:, 10:] == GREY).all()
    for x in (-500.0, 500.0):
        assert (cut(NOISE, np.array([[1.0, 0, x], [0, 1, 0]]), (20, 20)).pixels == GREY).all()


@given(similarities)
@settings(deadline=None, max_examples=40)
def test_views_of_a_flat_image_are_flat(to_original):
    view = cut(np.full((60, 80, 3), GREY, np.uint8), to_original, (16, 16))
    assert (view.pixels == GREY).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (3000, 4000)])
def test_scenes_of_any_shape(shape):
    image = np.full((*shape, 3), (10, 200, 30), np.uint8)
    for config in (ViewConfig(), ViewConfig(32, 2048, 9216, 64, 2048, 6144)):
        to_original, size = scene_frame(*shape, config)
        view = cut(image, to_original, size)
        assert config.scene_min_pixels <= view.height * view.width <= config.scene_max_pixels
        np.testing.assert_allclose(view.footprint[2], shape[::-1])
        assert (view.pixels == (10, 200, 30)).all()


# Areas


@given(similarities, st.tuples(*[st.floats(-50, 50)] * 2), st.tuples(*[st.floats(1, 80)] * 2))
@settings(deadline=None, max_examples=50)
def test_overlap_area_agrees_with_counting(to_original, corner, extent):
    box = (*corner, corner[0] + extent[0], corner[1] + extent[1])
    footprint = View(np.zeros((30, 40, 3), np.uint8), to_original, "").footprint
    area = polygon_area(footprint)
    np.testing.assert_allclose(area, 30 * 40 * abs(np.linalg.det(to_original[:, :2])), rtol=1e-9)
    columns, rows = np.meshgrid((np.arange(400) + 0.5) / 10, (np.arange(300) + 0.5) / 10)
    points = np.stack([columns, rows], -1).reshape(-1, 2) @ to_original[:, :2].T + to_original[:, 2]
    inside = ((points >= box[:2]) & (points <= box[2:])).all(1).mean()
    assert abs(overlap_area(footprint, box) / area - inside) < 0.02


def test_overlap_area_by_example():
    square = rectangle((0.0, 0.0, 10.0, 10.0))
    assert overlap_area(square, (5.0, 5.0, 20.0, 20.0)) == 25.0
    assert overlap_area(square, (-5.0, -5.0, 20.0, 20.0)) == 100.0
    assert overlap_area(square, (2.0, 3.0, 4.0, 7.0)) == 8.0
    assert overlap_area(square, (11.0, 0.0, 20.0, 20.0)) == 0.0
    diamond = np.array([[0.0, -1], [1, 0], [0, 1], [-1, 0]])
    np.testing.assert_allclose(overlap_area(diamond, (0.0, 0.0, 5.0, 5.0)), 0.5)
