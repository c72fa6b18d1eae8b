"""One picture of an episode: the scene with the outlines of what was looked at, and the views below it."""

import numpy as np
from PIL import Image, ImageDraw

from actfer_jax.rollout.engine import Rollout

COLOURS = ("#e4572e", "#2e86ab", "#3c9d4e", "#9b5de5", "#f2b134", "#17bebb")
_SCENE_SIDE, _VIEW_HEIGHT, _MARGIN = 384, 128, 8


def episode_picture(rollout: Rollout) -> np.ndarray:
    """Draws an episode, uint8 [H, W, 3]: every view has its colour, on its frame and on its outline in the scene."""
    scene = Image.fromarray(rollout.query.image)
    scale = _SCENE_SIDE / max(scene.size)
    scene = scene.resize((round(scene.width * scale), round(scene.height * scale)))
    draw = ImageDraw.Draw(scene)
    views = []
    for view, colour in zip(rollout.views[1:], COLOURS, strict=False):
        outline = [(float(x * scale), float(y * scale)) for x, y in view.footprint]
        draw.polygon(outline, outline=colour, width=2)
        crop = Image.fromarray(view.pixels)
        crop = crop.resize((round(crop.width * _VIEW_HEIGHT / crop.height), _VIEW_HEIGHT))
        ImageDraw.Draw(crop).rectangle((0, 0, crop.width - 1, crop.height - 1), outline=colour, width=3)
        views.append(crop)
    width = max(scene.width, sum(view.width + _MARGIN for view in views))
    canvas = Image.new("RGB", (width, scene.height + (_VIEW_HEIGHT + _MARGIN if views else 0)), "white")
    canvas.paste(scene, (0, 0))
    left = 0
    for crop in views:
        canvas.paste(crop, (left, scene.height + _MARGIN))
        left += crop.width + _MARGIN
    return np.asarray(canvas)
