"""A contact sheet: some pictures of each class of a data set, with its counts."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from actfer_jax import facs
from actfer_jax.data.inventory import Inventory, Record
from actfer_jax.faces.images import ImageError, decode_image

PICTURES = 8
"""Of a class."""
_SIDE, _GAP, _CAPTION, _LINE = 112, 4, 200, 18  # Pixels.


def contact_sheet(inventory: Inventory) -> bytes:
    """A PNG file with a row for each class. The same data set always gives the same pictures."""
    classes = defaultdict[str, list[Record]](list)
    for record in inventory.records:
        classes[facs.normalise_emotion(record.reference.emotion or "")].append(record)
    rows = [(label, classes[facs.normalise_emotion(label)]) for label in inventory.labels]
    if classes[""]:
        rows.append(("no emotion", classes[""]))
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (_CAPTION + PICTURES * step, max(len(rows), 1) * step + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
    for row, (label, records) in enumerate(rows):
        top = _GAP + row * step
        splits = Counter(record.split for record in records if record.split)
        words = [label, f"{len(records)} pictures", *(f"{split} {count}" for split, count in sorted(splits.items()))]
        for line, text in enumerate(words):
            pen.text((2 * _GAP, top + _LINE * line), text, "black", font)
        for column, picture in enumerate(islice(_pictures(records), PICTURES)):
            sheet.paste(picture, (_CAPTION + column * step, top))
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _pictures(records: Sequence[Record]) -> Iterator[Image.Image]:
    """The pictures that can be read, in an order that their names alone decide."""
    for record in sorted(records, key=lambda record: hashlib.sha256(record.name.encode()).digest()):
        try:
            image = decode_image(record.picture.read_bytes(), "")
        except (ImageError, OSError):
            continue
        yield ImageOps.pad(Image.fromarray(image), (_SIDE, _SIDE), color="white")
