"""Draws an episode: its images with the outlines of the views, and the views below them."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from actfer_jax import facs
from actfer_jax.rollout.engine import Rollout

COLOURS = ("#e4572e", "#2e86ab", "#3c9d4e", "#9b5de5", "#f2b134", "#17bebb")
_IMAGE_SIDE, _VIEW_HEIGHT, _MARGIN = 384, 128, 8
# In pixels of the picture. TensorBoard shows it at about a third of its size, where they are still seen.
_LINE, _TEXT = 6, 24


def episode_caption(rollout: Rollout, reward: float) -> str:
    """Three lines: what was read, what is true, and the reward."""
    answer, truth = rollout.episode.answer, rollout.query.reference
    read = "no answer" if answer is None else _in_words(answer.answer, answer.aus)
    return f"read: {read}\ntruth: {_in_words(truth.emotion, truth.aus)}\nreward: {reward:.2f}"


def _in_words(emotion: str | None, aus: Iterable[int] | None) -> str:
    """What is known of the two."""
    return ", ".join(filter(None, (emotion, None if aus is None else facs.format_aus(aus))))


def episode_text(rollout: Rollout) -> str:
    """The turns and the texts of the replies, as Markdown."""
    return "\n\n".join(
        f"```\n{turn.text}\n```\n{'' if turn.reply is None else turn.reply.text}" for turn in rollout.episode.turns
    )


def episode_picture(rollout: Rollout, caption: str = "") -> np.ndarray:
    """Draws an episode, uint8 [H, W, 3]. The frame of a view has the colour of its outline in the image."""
    images, scales = [], []
    for pixels in rollout.query.images:
        image = Image.fromarray(pixels)
        scales.append(_IMAGE_SIDE / max(image.size))
        images.append(image.resize((round(image.width * scales[-1]), round(image.height * scales[-1]))))
    views = []
    for view, colour in zip(rollout.views[len(images) :], COLOURS, strict=False):
        outline = [tuple((point * scales[view.image]).tolist()) for point in view.footprint]
        ImageDraw.Draw(images[view.image]).polygon(outline, outline=colour, width=_LINE)
        shown = Image.fromarray(view.pixels)
        shown = shown.resize((round(shown.width * _VIEW_HEIGHT / shown.height), _VIEW_HEIGHT))
        ImageDraw.Draw(shown).rectangle((0, 0, shown.width - 1, shown.height - 1), outline=colour, width=_LINE)
        views.append(shown)
    rows = [row for row in (images, views) if row]
    width = max(sum(image.width + _MARGIN for image in row) - _MARGIN for row in rows)
    height = sum(max(image.height for image in row) + _MARGIN for row in rows) - _MARGIN
    font = ImageFont.load_default(_TEXT)
    *_, right, lower = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), caption, font)
    said = round(lower) + _MARGIN if caption else 0
    canvas = Image.new("RGB", (max(width, round(right)), height + said), "white")
    ImageDraw.Draw(canvas).multiline_text((0, height), caption, "black", font)
    top = 0
    for row in rows:
        left = 0
        for image in row:
            canvas.paste(image, (left, top))
            left += image.width + _MARGIN
        top += max(image.height for image in row) + _MARGIN
    return np.asarray(canvas)
