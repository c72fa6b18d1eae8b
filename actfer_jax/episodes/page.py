"""One self-contained web page of analysed images: no script, no requests, every text escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Turn
from actfer_jax.agent.parser import ToolCall
from actfer_jax.cli import printable
from actfer_jax.faces.detector import Face
from actfer_jax.faces.views import View
from actfer_jax.rollout.engine import Rollout

_PICTURE_SIDE = 960  # Most pixels of the longer side of an image on the page.
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
article { margin: 28px 0; padding: 24px; background: #fff; border: 1px solid #e3e1da; border-radius: 12px; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 28px; align-items: start; }
.picture { position: sticky; top: 20px; margin: 0; }
.frame { position: relative; line-height: 0; border-radius: 8px; overflow: hidden; background: #eceae4; }
.frame img { width: 100%; height: auto; }
.frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 10px 0 0; padding: 0; list-style: none;
  font-size: 14px; }
.badge { display: inline-block; min-width: 22px; height: 22px; padding: 0 6px; border-radius: 11px; color: #fff;
  font-size: 13px; font-weight: 600; line-height: 22px; text-align: center; background: #7d8592; }
.answer { margin-bottom: 20px; padding: 16px 18px; border-radius: 10px; background: #eef3fa; }
.answer.none { background: #fbeeee; }
.emotion { margin: 0; font-size: 30px; font-weight: 650; line-height: 1.2; overflow-wrap: anywhere; }
.aus { display: flex; flex-wrap: wrap; gap: 6px; margin: 12px 0 0; padding: 0; list-style: none; }
.aus li { padding: 2px 10px; border: 1px solid #c9d6e8; border-radius: 14px; background: #fff; font-size: 14px; }
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
.crop { display: block; max-width: 100%; height: auto; border: 3px solid; border-radius: 6px; }
.coarse { image-rendering: pixelated; }
footer { padding-bottom: 40px; }
@media (max-width: 820px) {
  .columns { grid-template-columns: minmax(0, 1fr); }
  .picture { position: static; }
  main, header, footer { padding-left: 14px; padding-right: 14px; }
  article { padding: 16px; }
}
"""


def page(sections: Sequence[str], *, checkpoint: str, note: str = "", unread: Iterable[str] = ()) -> str:
    """The whole page.

    Args:
      sections: results of `section`, in order.
      checkpoint: names the model.
      note: a caution for the reader, shown on top.
      unread: messages about images that could not be read.
    """
    count = "1 picture" if len(sections) == 1 else f"{len(sections)} pictures"
    notes = [f'<p class="note" role="note">{_text(message)}</p>' for message in (note, *unread) if message]
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
<p class="muted">{count}, read by {_text(checkpoint)}. Each numbered frame is a view that the model asked for.</p>
{"".join(notes)}
</header>
<main>
{"".join(sections)}
</main>
<footer class="muted">An expression is what a face shows; it does not tell what a person feels.</footer>
</body>
</html>
"""


def section(name: str, image: np.ndarray, rollout: Rollout, faces: Sequence[Face]) -> str:
    """One image with its episode.

    Args:
      name: the image's name.
      image: uint8 [H, W, 3], the original.
      rollout: the finished episode.
      faces: the faces that were found in the image.
    """
    scene, *views = rollout.views
    steps = [_step("", "", f"<p>The whole picture, as the model sees it.</p>{_crop(scene, '#c9c6bd')}")]
    shown = 0
    for turn in rollout.episode.turns:
        picture, badge, colour = "", "", ""
        if turn.reply is not None and turn.reply.view is not None:
            shown += 1
            badge, colour = str(shown), _colour(shown)
            picture = _crop(turn.reply.view, colour)
        if content := _turn(turn) + picture:
            steps.append(_step(badge, colour, content))
    legend = [
        f'<li><span class="badge" style="background:{_colour(n)}">{n}</span> {_text(view.name)}</li>'
        for n, view in enumerate(views, start=1)
    ]
    found = {0: "No face was found in this picture.", 1: "The dashed box is the face that was found."}.get(
        len(faces), f"The dashed boxes are the {len(faces)} faces that were found."
    )
    return f"""<article>
<h2>{_text(name)}</h2>
<div class="columns">
<figure class="picture">
<div class="frame">{_img(_shrunk(image), "the picture")}{_overlay(image, views, faces)}</div>
<ul class="legend">{"".join(legend)}</ul>
<figcaption class="muted">{found}</figcaption>
</figure>
<div>
{_answer(rollout, bool(faces))}
<ol class="steps">{"".join(steps)}</ol>
</div>
</div>
</article>
"""


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


def _answer(rollout: Rollout, face_found: bool) -> str:
    answer = rollout.episode.answer
    if answer is None:
        reason = why_no_answer(rollout.episode)
        return f'<div class="answer none"><p class="emotion">No answer</p><p class="muted">{_text(reason)}</p></div>'
    labels = {facs.normalise_emotion(label) for label in rollout.query.reference.labels}
    remarks = []
    if answer.answer is not None and facs.normalise_emotion(answer.answer) not in labels:
        remarks.append('<p class="muted">This is not one of the labels that were asked for.</p>')
    if not face_found:
        remarks.append('<p class="muted">No face was found: the answer is a guess.</p>')
    aus = "".join(f"<li><b>AU{au}</b> {_text(facs.AU_NAMES[au])}</li>" for au in sorted(answer.aus or ()))
    evidence = f'<ul class="aus">{aus}</ul>' if aus else '<p class="muted">No action units.</p>'
    emotion = f'<p class="emotion">{_text(answer.answer)}</p>' if answer.answer is not None else ""
    return f'<div class="answer">{emotion}{"".join(remarks)}{evidence if answer.aus is not None else ""}</div>'


def _step(badge: str, colour: str, content: str) -> str:
    mark = f'<span class="badge" style="background:{colour}">{badge}</span>' if badge else "<span></span>"
    return f"<li>{mark}<div>{content}</div></li>"


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


def _overlay(image: np.ndarray, views: Sequence[View], faces: Sequence[Face]) -> str:
    """The faces' boxes and the views' outlines, drawn over the image in its own coordinates."""
    height, width = image.shape[:2]
    unit = max(height, width) / 100
    shapes = []
    for left, top, right, bottom in (face.box for face in faces):
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        dashes = f'stroke-width="{0.35 * unit:.2f}" stroke-dasharray="{unit:.2f}"'
        shapes.append(f'<rect {box} fill="none" stroke="#fff" {dashes}/>')
    for n, view in enumerate(views, start=1):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in view.footprint)
        outline = f'points="{points}" fill="none" stroke-linejoin="round"'
        shapes.append(f'<polygon {outline} stroke="#fff" stroke-width="{0.9 * unit:.2f}"/>')
        shapes.append(f'<polygon {outline} stroke="{_colour(n)}" stroke-width="{0.5 * unit:.2f}"/>')
    for n, view in enumerate(views, start=1):
        # On the corner nearest to the upper left, but never outside the image.
        corner = view.footprint[np.argmin(view.footprint.sum(1))]
        x, y = np.clip(corner, 2.2 * unit, [width - 2.2 * unit, height - 2.2 * unit])
        edge = f'fill="{_colour(n)}" stroke="#fff" stroke-width="{0.3 * unit:.2f}"'
        font = f'font-size="{2.5 * unit:.2f}" font-weight="600" font-family="sans-serif"'
        anchor = 'text-anchor="middle" dominant-baseline="central"'
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1.9 * unit:.2f}" {edge}/>')
        shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="#fff" {font} {anchor}>{n}</text>')
    label = f"outlines of {len(views)} views"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'


def _crop(view: View, colour: str) -> str:
    coarse = " coarse" if view.width < 160 else ""
    width = 192 if coarse else min(view.width, 320)
    return _img(view.pixels, view.name, f' class="crop{coarse}" style="border-color:{colour};width:{width}px"')


def _img(pixels: np.ndarray, alt: str, attributes: str = "") -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    source = base64.b64encode(data.getvalue()).decode()
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<img src="data:image/png;base64,{source}" {size} alt="{_text(alt)}"{attributes}>'


def _shrunk(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _colour(number: int) -> str:
    return _COLOURS[(number - 1) % len(_COLOURS)]
