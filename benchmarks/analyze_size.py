"""How large are the pages of `analyze` for many photographs?

    python benchmarks/analyze_size.py --json=docs/results/analyze_size.json

Ten pictures of 1280 x 960 are made of photographs that scikit-image brings, groups of faces among them. Each is played
by script, with the views of Qwen3-VL-4B and the real face tools: align, two zooms, answer. The bytes of their cards are
measured, for one face a picture and for all, and multiplied: pages of 100 pictures differ by nothing else.
"""

import json
from collections.abc import Sequence

import numpy as np
import skimage.data
from absl import flags
from PIL import Image, ImageOps

from actfer_jax import cli
from actfer_jax.agent.environment import EpisodeConfig
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.agent.parser import parse_turn
from actfer_jax.agent.tools import Toolbox
from actfer_jax.episodes.page import Card, card, page
from actfer_jax.faces.choice import largest_first, moved, surroundings
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import ViewConfig
from actfer_jax.outputs import check_file, write_file
from actfer_jax.rollout.batch import Sequence as Tokens
from actfer_jax.rollout.engine import Query, Rollout

_PICTURES = flags.DEFINE_integer("pictures", 250, "For how many the size is told.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Where to write the figures.")

MADE = 10
TURNS = (
    '<think>Find the face.</think><tool_call>{"name": "align_face", "arguments": {}}</tool_call>',
    "<think>The brows are level, AU12 may be there.</think>"
    '<tool_call>{"name": "zoom", "arguments": {"region": "mouth"}}</tool_call>',
    '<think>AU12 AU25, and the eyes?</think><tool_call>{"name": "zoom", "arguments": {"region": "eyes"}}</tool_call>',
    "<think>AU6 narrows the eyes.</think><aus>AU6 AU12 AU25</aus><answer>happiness</answer>",
)


def make_picture(number: int) -> np.ndarray:
    """One to six heads before a photograph, uint8 [960, 1280, 3]."""
    scenes = (skimage.data.coffee, skimage.data.chelsea, skimage.data.rocket)
    scene = Image.fromarray(scenes[number % 3]()).resize((1280, 960), Image.Resampling.LANCZOS)
    head = Image.fromarray(skimage.data.astronaut()[:260, 90:350])
    count = 1 + number % 6
    for place in range(count):
        side = (620, 420, 400, 380, 360, 340)[count - 1] - 10 * place
        one = ImageOps.mirror(head) if (number + place) % 2 else head
        column, row = place % 3, place // 3
        scene.paste(one.resize((side, side), Image.Resampling.LANCZOS), (20 + column * 420, 20 + row * 470))
    return np.asarray(scene)


def play(image: np.ndarray, toolbox: Toolbox, most: int) -> list[Card]:
    """The cards of a picture's largest faces."""
    faces, cards = largest_first(toolbox.detector.detect(image)), list[Card]()
    for number, face in enumerate(faces[:most], start=1):
        crop = surroundings(image, face) if len(faces) > 1 else None
        left, top, right, bottom = crop or (0, 0, image.shape[1], image.shape[0])
        shown = np.ascontiguousarray(image[top:bottom, left:right])
        query = Query("pictures", "holiday/IMG_0001.jpg", (shown,), Reference(("happiness",)))
        toolbox.remember(query.key, (moved(face, left, top),))
        views, replies = [toolbox.scene(shown)], []
        for text in TURNS[:-1]:
            reply = toolbox.execute(parse_turn(text).call, "", images=query.images, key=query.key, views=views)
            assert reply.view is not None, reply.text
            replies.append(reply)
            views.append(reply.view)
        episode = Episode.from_texts(*TURNS, replies=tuple(replies))
        rollout = Rollout(query, episode, views, Tokens([], [], []), np.empty(0), np.empty(0))
        cards.append(card(query.name, image, rollout, faces, number=number, crop=crop, probability=0.9))
    return cards


def main(argv: Sequence[str]) -> None:
    del argv
    if _JSON.value:
        check_file(_JSON.value, "JSON")
    assert EpisodeConfig().max_turns == len(TURNS)
    toolbox = Toolbox(FaceDetector(), ViewConfig())
    pictures = [make_picture(number) for number in range(MADE)]
    frame = len(page([], heading=""))
    figures: dict[str, float] = {"pictures_measured": MADE}
    for faces, most in (("largest", 1), ("all", 99)):
        cards = [one for image in pictures for one in play(image, toolbox, most)]
        each = (len(page(cards, heading="")) - frame) / MADE
        figures |= {f"{faces}_cards": len(cards), f"{faces}_kb_a_picture": each / 1e3}
        figures[f"{faces}_mb_for_{_PICTURES.value}"] = (each * _PICTURES.value + 3 * frame) / 1e6
    for name, value in figures.items():
        print(f"{name:22} {value:,.1f}")
    if _JSON.value:
        write_file(_JSON.value, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
