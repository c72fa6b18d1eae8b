"""Draws an episode: its images with the outlines of the views, and the views below them."""

import numpy as np
from PIL import Image, ImageDraw

from actfer_jax.rollout.engine import Rollout

COLOURS = ("#e4572e", "#2e86ab", "#3c9d4e", "#9b5de5", "#f2b134", "#17bebb")
_IMAGE_SIDE, _VIEW_HEIGHT, _MARGIN = 384, 128, 8


def episode_picture(rollout: Rollout) -> np.ndarray:
    """Draws an episode, uint8 [H, W, 3]. The frame of a view has the colour of its outline in the image."""
    images, scales = [], []
    for pixels in rollout.query.images:
        image = Image.fromarray(pixels)
        scales.append(_IMAGE_SIDE / max(image.size))
        images.append(image.resize((round(image.width * scales[-1]), round(image.height * scales[-1]))))
    views = []
    for view, colour in zip(rollout.views[len(images) :], COLOURS, strict=False):
        outline = [tuple((point * scales[view.image]).tolist()) for point in view.footprint]
        ImageDraw.Draw(images[view.image]).polygon(outline, outline=colour, width=2)
        shown = Image.fromarray(view.pixels)
        shown = shown.resize((round(shown.width * _VIEW_HEIGHT / shown.height), _VIEW_HEIGHT))
        ImageDraw.Draw(shown).rectangle((0, 0, shown.width - 1, shown.height - 1), outline=colour, width=3)
        views.append(shown)
    rows = [row for row in (images, views) if row]
    width = max(sum(image.width + _MARGIN for image in row) - _MARGIN for row in rows)
    height = sum(max(image.height for image in row) + _MARGIN for row in rows) - _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for row in rows:
        left = 0
        for image in row:
            canvas.paste(image, (left, top))
            left += image.width + _MARGIN
        top += max(image.height for image in row) + _MARGIN
    return np.asarray(canvas)
