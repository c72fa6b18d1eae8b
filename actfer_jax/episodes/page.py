"""Self-contained web pages of read pictures: no script, no requests, every text escaped."""

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Turn
from actfer_jax.agent.parser import ToolCall
from actfer_jax.cli import printable
from actfer_jax.faces.detector import Face
from actfer_jax.faces.views import Box, View
from actfer_jax.rollout.engine import Rollout

# Most pixels of the longer side: of a picture, of a view, of the picture around a face, and in the overview.
_PICTURE_SIDE, _VIEW_SIDE, _WHOLE_SIDE, _TILE_SIDE = 576, 224, 224, 128
_QUALITY = 75
_COARSE = 160  # A view of less width is shown enlarged, pixel by pixel.
_COLOURS = ("#d9480f", "#0b7285", "#7b2cbf", "#2b8a3e", "#b58900", "#c2255c")

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f4f0; color: #1c2330; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { margin: 0 0 4px; font-size: 28px; letter-spacing: -0.01em; }
h2 { margin: 0 0 16px; font-size: 19px; overflow-wrap: anywhere; }
p { margin: 0 0 8px; }
.muted { color: #5d6675; font-size: 14px; }
.note { margin: 20px 0 0; padding: 12px 16px; border-left: 4px solid #d98e04; background: #fff6df; border-radius: 4px; }
article { margin: 28px 0; padding: 24px; background: #fff; border: 1px solid #e3e1da; border-radius: 12px;
  content-visibility: auto; contain-intrinsic-size: auto 640px; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 28px; align-items: start; }
.picture { position: sticky; top: 20px; margin: 0; }
.frame { position: relative; line-height: 0; border-radius: 8px; overflow: hidden; background: #eceae4; }
.frame img { width: 100%; height: auto; }
.frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
figcaption { margin-top: 8px; }
.whole { width: min(100%, 224px); margin-top: 12px; }
.badge { display: inline-block; min-width: 22px; height: 22px; padding: 0 6px; border-radius: 11px; color: #fff;
  font-size: 13px; font-weight: 600; line-height: 22px; text-align: center; background: #7d8592; }
.answer { margin-bottom: 20px; padding: 16px 18px; border-radius: 10px; background: #eef3fa; }
.answer.none { background: #fbeeee; }
.answer.guess { background: #f1f0ec; color: #5d6675; }
.answer.guess .emotion { font-size: 16px; font-weight: 400; }
.faceless { margin: 0 0 6px; color: #1c2330; font-size: 18px; font-weight: 650; }
.emotion { margin: 0; font-size: 30px; font-weight: 650; line-height: 1.2; overflow-wrap: anywhere; }
.emotion small { margin-left: 8px; color: #5d6675; font-size: 15px; font-weight: 400; white-space: nowrap; }
.aus { display: flex; flex-wrap: wrap; gap: 6px; margin: 12px 0 0; padding: 0; list-style: none; }
.aus li { padding: 2px 10px; border: 1px solid #c9d6e8; border-radius: 14px; background: #fff; font-size: 14px; }
.aus .badge { min-width: 18px; height: 18px; padding: 0 5px; margin-left: 4px; font-size: 11px; line-height: 18px; }
.crops { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 12px; margin: 0 0 20px;
  padding: 0; list-style: none; font-size: 13px; }
.crops .badge { margin-right: 4px; }
.crops img { display: block; width: 100%; height: auto; margin-bottom: 4px; border: 3px solid; border-radius: 6px; }
.steps { margin: 0; padding: 0; list-style: none; }
.steps > li { display: grid; grid-template-columns: 30px minmax(0, 1fr); gap: 12px; padding: 14px 0;
  border-top: 1px solid #eceae4; }
.steps .badge { justify-self: start; }
.steps > li:first-child { border-top: 0; padding-top: 0; }
.thought { white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre { font: 14px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
code { padding: 2px 6px; border-radius: 4px; background: #f1f0ec; }
pre { margin: 0 0 8px; padding: 10px; border-radius: 6px; background: #f1f0ec; white-space: pre-wrap; }
.refused { color: #a4262c; }
.coarse { image-rendering: pixelated; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 12px; margin-top: 24px; }
.tiles a { min-width: 0; color: inherit; font-size: 13px; line-height: 1.3; text-decoration: none; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.tiles img { display: block; width: 100%; height: 104px; margin-bottom: 4px; object-fit: cover; border-radius: 6px; }
.tiles .muted { font-size: 12px; }
.pages { display: flex; flex-wrap: wrap; gap: 4px 12px; margin-top: 16px; }
.unread { margin: 28px 0; }
.unread li { overflow-wrap: anywhere; }
footer { padding-bottom: 40px; }
@media (max-width: 820px) {
  .columns { grid-template-columns: minmax(0, 1fr); }
  .picture { position: static; }
  .crops { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  main, header, footer { padding-left: 14px; padding-right: 14px; }
  article { padding: 16px; }
}
"""


class Card(NamedTuple):
    """One reading on a page.

    Attributes:
      tile: what the overview shows of it, as HTML.
      article: the whole of it, as HTML.
    """

    tile: str
    article: str


def page(
    cards: Sequence[Card], *, heading: str, note: str = "", unread: Sequence[str] = (), number: int = 1, pages: int = 1
) -> str:
    """A whole page; with an overview where it has several cards.

    Args:
      cards: results of `card`, in order.
      heading: what the page shows, in words.
      note: a caution for the reader, shown on top.
      unread: messages about pictures that could not be read, folded at the end.
      number, pages: which page it is of how many, from 1, named by `page_name`.
    """
    caution = f'<p class="note" role="note">{_text(note)}</p>' if note else ""
    tiles = "".join(f'<a href="#reading-{index}">{one.tile}</a>' for index, one in enumerate(cards))
    overview = f'<nav class="tiles" aria-label="Overview">{tiles}</nav>' if len(cards) > 1 else ""
    articles = "".join(f'<article id="reading-{index}">{one.article}</article>\n' for index, one in enumerate(cards))
    links = _links(number, pages)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Faces, read step by step</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Faces, read step by step</h1>
<p class="muted">{_text(heading)} Each numbered frame is a view that the model asked for; an action unit has the number
of the view after which it was first named. The number after a label is how likely the model was to write it, not how
often it is right.</p>
{caution}
{links}
{overview}
</header>
<main>
{articles}{_unread(unread)}{links}
</main>
<footer class="muted">An expression is what a face shows; it does not tell what a person feels.</footer>
</body>
</html>
"""


def page_name(number: int) -> str:
    """The file of a page, from 1."""
    return "index.html" if number == 1 else f"page-{number}.html"


def _links(number: int, pages: int) -> str:
    if pages == 1:
        return ""
    links = [
        f"<b>{other}</b>" if other == number else f'<a href="{page_name(other)}">{other}</a>'
        for other in range(1, pages + 1)
    ]
    return f'<nav class="pages" aria-label="Pages">Page {" ".join(links)}</nav>'


def _unread(messages: Sequence[str]) -> str:
    if not messages:
        return ""
    count = "1 file" if len(messages) == 1 else f"{len(messages)} files"
    items = "".join(f"<li>{_text(message)}</li>" for message in messages)
    return f'<details class="unread"><summary>{count} could not be read</summary><ul>{items}</ul></details>\n'


def card(
    name: str,
    image: np.ndarray,
    rollout: Rollout,
    faces: Sequence[Face],
    *,
    number: int | None = None,
    crop: tuple[int, int, int, int] | None = None,
    probability: float | None = None,
) -> Card:
    """One episode.

    Args:
      name: the picture's name.
      image: uint8 [H, W, 3], the whole picture.
      rollout: the finished episode, with views that map to the whole picture.
      faces: the faces that were found in it.
      number: which of them was read, from 1; None for the whole picture.
      crop: the part of the picture that the policy was shown, (left, top, right, bottom); None for the whole.
      probability: of the answered label.
    """
    scene, *views = rollout.views
    read = () if number is None else (faces[number - 1],)
    box = crop or (0, 0, image.shape[1], image.shape[0])
    shown = image[box[1] : box[3], box[0] : box[2]]
    frame = f"{_img(shown, _PICTURE_SIDE, 'the picture')}{_overlay(box, views, faces, read)}"
    which = f" · face {number} of {len(faces)}" if len(faces) > 1 and number is not None else ""
    seen = _view(scene, 0, "as the model sees it") + "".join(
        _view(view, n, view.name) for n, view in enumerate(views, 1)
    )
    steps = "".join(_steps(rollout.episode))
    whole = ""
    if crop is not None:
        full = (0, 0, image.shape[1], image.shape[0])
        inner = f"{_img(image, _WHOLE_SIDE, 'the whole picture')}{_overlay(full, (), faces, read)}"
        whole = f'<div class="frame whole">{inner}</div>'
    article = f"""
<h2>{_text(name)}{which}</h2>
<div class="columns">
<figure class="picture">
<div class="frame">{frame}</div>
{whole}
<figcaption class="muted">{_found(faces, number)}</figcaption>
</figure>
<div>
{_answer(rollout, bool(faces), probability)}
<ul class="crops">{seen}</ul>
<ol class="steps">{steps}</ol>
</div>
</div>
"""
    label = rollout.episode.answer.answer if rollout.episode.answer else None
    verdict = "no face" if not faces else "no answer" if rollout.episode.answer is None else label or "action units"
    tile = f"{which.removeprefix(' · ')} {_text(name.rpartition('/')[2])}".strip()
    caption = f'<b>{_text(verdict)}</b><br><span class="muted">{tile}</span>'
    return Card(_img(scene.pixels, _TILE_SIDE, verdict) + caption, article)


def _found(faces: Sequence[Face], number: int | None) -> str:
    if not faces:
        return "No face was found in this picture."
    if len(faces) == 1:
        return "The dashed box is the face that was found."
    if number is None:
        return f"The dashed boxes are the {len(faces)} faces that were found."
    return f"{len(faces)} faces were found; the model was shown the part around the one with the solid box."


def _named_after(episode: Episode) -> dict[int, int]:
    """For each action unit of the answer that a thought names, how many views had been shown when it was first named.

    A thought names it by number (AU12) or in words (lip corner puller). 0 is the scene alone.
    """
    shown, named = 0, dict[int, int]()
    answer = episode.answer
    aus = sorted(answer.aus or ()) if answer else []
    for turn in episode.turns:
        for au in aus:
            if re.search(rf"\bAU ?0?{au}\b|\b{re.escape(facs.AU_NAMES[au])}\b", turn.parsed.think, re.IGNORECASE):
                named.setdefault(au, shown)
        shown += turn.reply is not None and turn.reply.view is not None
    return named


def why_no_answer(episode: Episode) -> str:
    """Why an episode ended without an answer; "" if it has one."""
    if episode.answer is not None:
        return ""
    last = episode.turns[-1]
    if last.truncated:
        return "the last turn ran into its length limit"
    if last.parsed.calls:
        return "it asked for one more view when none was left"
    return f"the last turn is {last.parsed.error}"


def call_text(call: ToolCall) -> str:
    """A call in Python's form: ``zoom(region='mouth')``."""
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _answer(rollout: Rollout, face_found: bool, probability: float | None) -> str:
    faceless = "" if face_found else '<p class="faceless">No face was found in this picture.</p>'
    answer = rollout.episode.answer
    if answer is None:
        reason = why_no_answer(rollout.episode)
        none = f'<p class="emotion">No answer</p><p class="muted">{_text(reason)}</p>'
        return f'<div class="answer none">{faceless}{none}</div>'
    labels = {facs.normalise_emotion(label) for label in rollout.query.reference.labels}
    named, parts = _named_after(rollout.episode), [faceless]
    if answer.answer is not None:
        guess = "" if face_found else "What the model says is a guess: "
        number = "" if probability is None else f" <small>{probability:.1%}</small>"
        parts.append(f'<p class="emotion">{guess}{_text(answer.answer)}{number}</p>')
        if facs.normalise_emotion(answer.answer) not in labels:
            parts.append('<p class="muted">This is not one of the labels that were asked for.</p>')
    if answer.aus:
        items = (
            f"<li><b>AU{au}</b> {_text(facs.AU_NAMES[au])}{_badge(named.get(au, 0))}</li>" for au in sorted(answer.aus)
        )
        parts.append(f'<ul class="aus">{"".join(items)}</ul>')
    elif answer.aus is not None:
        parts.append('<p class="muted">No action units.</p>')
    return f'<div class="answer{"" if face_found else " guess"}">{"".join(parts)}</div>'


def _badge(number: int) -> str:
    """The number of a view, from 1, in its colour."""
    return f'<span class="badge" style="background:{_colour(number)}">{number}</span>' if number else ""


def _view(view: View, number: int, caption: str) -> str:
    colour = _colour(number) if number else "#c9c6bd"
    coarse = ' class="coarse"' if view.width < _COARSE else ""
    picture = _img(view.pixels, _VIEW_SIDE, view.name, f'{coarse} style="border-color:{colour}"')
    return f"<li>{picture}{_badge(number)}{_text(caption)}</li>"


def _steps(episode: Episode) -> Iterator[str]:
    shown = 0
    for turn in episode.turns:
        seen = turn.reply is not None and turn.reply.view is not None
        shown += seen
        if content := _turn(turn):
            yield f"<li>{_badge(shown) if seen else '<span></span>'}<div>{content}</div></li>"


def _turn(turn: Turn) -> str:
    parsed = turn.parsed
    if not parsed.well_formed:
        return f'<pre>{_text(turn.text)}</pre><p class="refused">This turn is {_text(parsed.error)}.</p>'
    parts = [f'<p class="thought">{_text(parsed.think)}</p>'] if parsed.think else []
    if parsed.calls:
        call = _text(call_text(parsed.call)) if parsed.call else "unreadable call"
        reply = turn.reply
        refused = ' class="refused"' if reply is not None and not reply.ok else ' class="muted"'
        parts.append(f"<p><code>{call}</code></p>")
        parts.append(f"<p{refused}>{_text(reply.text if reply else '')}</p>")
    return "".join(parts)


def _overlay(part: Box, views: Sequence[View], faces: Sequence[Face], read: Sequence[Face]) -> str:
    """The faces' boxes and the views' outlines over a part of a picture, in the whole picture's coordinates.

    Of several faces, the box of one that was `read` is solid.
    """
    left, top, right, bottom = part
    unit = max(right - left, bottom - top) / 100
    shapes = []
    for face in faces:
        x0, y0, x1, y1 = face.box
        box = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        solid = len(faces) > 1 and any(face is one for one in read)
        line = f'stroke-width="{(0.7 if solid else 0.35) * unit:.2f}"'
        dashes = "" if solid else f' stroke-dasharray="{unit:.2f}"'
        shapes.append(f'<rect {box} fill="none" stroke="#fff" {line}{dashes}/>')
    for n, view in enumerate(views, start=1):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in view.footprint)
        outline = f'points="{points}" fill="none" stroke-linejoin="round"'
        shapes.append(f'<polygon {outline} stroke="#fff" stroke-width="{0.9 * unit:.2f}"/>')
        shapes.append(f'<polygon {outline} stroke="{_colour(n)}" stroke-width="{0.5 * unit:.2f}"/>')
    for n, view in enumerate(views, start=1):
        # On the corner nearest to the upper left, but never outside the image.
        corner = view.footprint[np.argmin(view.footprint.sum(1))]
        x, y = np.clip(corner, np.add(part[:2], 2.2 * unit), np.subtract(part[2:], 2.2 * unit))
        edge = f'fill="{_colour(n)}" stroke="#fff" stroke-width="{0.3 * unit:.2f}"'
        font = f'font-size="{2.5 * unit:.2f}" font-weight="600" font-family="sans-serif"'
        anchor = 'text-anchor="middle" dominant-baseline="central"'
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1.9 * unit:.2f}" {edge}/>')
        shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="#fff" {font} {anchor}>{n}</text>')
    place = f'viewBox="{left} {top} {right - left} {bottom - top}"'
    return f'<svg {place} role="img" aria-label="outlines of {len(views)} views">{"".join(shapes)}</svg>'


def _img(pixels: np.ndarray, side: int, alt: str, attributes: str = "") -> str:
    """An image element, with the picture in it as JPEG, shrunk to sides of at most `side`."""
    picture, data = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    # A view of few pixels is shown enlarged, so that blocks and bleeding colours would be seen.
    coarse = pixels.shape[1] < _COARSE
    picture.save(data, "JPEG", quality=90 if coarse else _QUALITY, subsampling=0 if coarse else 2, optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}" loading="lazy" decoding="async"'
    return f'<img src="data:image/jpeg;base64,{source}" {size} alt="{_text(alt)}"{attributes}>'


def _colour(number: int) -> str:
    return _COLOURS[(number - 1) % len(_COLOURS)]
