"""What can be read from which view of the rendered faces? A small network per question, trained from nothing.

    python benchmarks/synth_probe.py --json=docs/results/synth_probe.json

The views come from the real face tools. Reported: how many faces the detector finds (wanted: 0.97 and more), how far
its landmarks are from the drawn ones, how often a table of action units names the emotion (wanted: 0.99 and more), and
the held-out accuracy of a small convolutional network that names

- the emotion of plain faces from the aligned view (wanted: 0.95 and more),
- which of an ambiguous pair a subtle face shows from the aligned view (wanted: 0.60 at most; chance is 0.5),
- the same from the crop of the deciding region (wanted: 0.90 and more).
"""

import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from PIL import Image
from places import check_places

from actfer_jax import cli
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.tools import Toolbox
from actfer_jax.data.datasets.synth_faces import AMBIGUOUS_PAIRS, DEMO_EMOTIONS, emotion_from_aus, render, sample_face
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import ViewConfig
from actfer_jax.files import write_atomically
from actfer_jax.runs.provenance import heading, provenance

_FACES = flags.DEFINE_integer("faces", 1600, "Faces for each question; a fifth of them is held out.")
_EPOCHS = flags.DEFINE_integer("epochs", 14, "Passes over the training faces.")
_SEED = flags.DEFINE_integer("seed", 50, "First number of the faces' seeds.")
_JSON = flags.DEFINE(cli.PathFlag(), "json", None, "File for the figures.")

VIEWS = ViewConfig(
    multiple=32,
    scene_min_pixels=2048,
    scene_max_pixels=9216,
    aligned_side=64,
    zoom_min_pixels=2048,
    zoom_max_pixels=6144,
)
CROPS = {("surprise", "fear"): "brows", ("anger", "disgust"): "nose"}
"""The deciding region of each pair (`data.synth_faces.world`)."""
BATCH = 64

Task = tuple[tuple[int, ...], str, bool, str]
"""(seed, emotion, subtle, region to zoom into or "")."""


@cache
def toolbox() -> Toolbox:
    return Toolbox(FaceDetector(), VIEWS)


def look(task: Task) -> dict[str, Any] | None:
    """Renders a face and looks at it with the tools; None where the detector finds no face, or finds it elsewhere."""
    seed, emotion, subtle, region = task
    picture = render(sample_face(seed, emotion=emotion, subtle=subtle))
    tools = toolbox()
    faces = tools.faces(seed, picture.image)
    if not faces:
        return None
    eyes = np.linalg.norm(picture.landmarks[45] - picture.landmarks[36])
    error = np.linalg.norm(faces[0].landmarks - picture.landmarks, axis=1).mean() / eyes
    if error > 0.3:
        return None
    views = [tools.scene(picture.image)]
    calls = {"aligned": ToolCall("align_face", {})} | ({"crop": ToolCall("zoom", {"region": region})} if region else {})
    replies = {
        name: tools.execute(call, "", images=[picture.image], key=seed, views=views) for name, call in calls.items()
    }
    pixels = {name: reply.view.pixels for name, reply in replies.items()}
    return {"emotion": emotion, "error": error, **pixels}


def is_named(task: Task) -> bool:
    """Whether the action units of a face, looked up in the table of emotions, name its emotion."""
    seed, emotion, subtle, _ = task
    return emotion_from_aus(sample_face(seed, emotion=emotion, subtle=subtle).aus) == emotion


def of_one_size(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of the commonest size, uint8 [N, H, W, 3]; others are resized."""
    height, width, _ = Counter(picture.shape for picture in pictures).most_common(1)[0][0]
    return np.stack([np.asarray(Image.fromarray(picture).resize((width, height))) for picture in pictures])


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of the commonest size, float32 [N, H, W, 3] with a mean of 0 for each; others are resized."""
    images = of_one_size(pictures).astype(np.float32) / 255
    return (images - images.mean(axis=(1, 2, 3), keepdims=True)) / 0.2


class Network(nnx.Module):
    """Four convolutions and a linear layer: images [B, H, W, 3] to logits [B, classes]."""

    def __init__(self, height: int, width: int, classes: int, *, rngs: nnx.Rngs) -> None:
        widths = (3, 32, 48, 64, 64)
        self.convolutions = nnx.List(
            [
                nnx.Conv(a, b, (5, 5) if i == 0 else (3, 3), strides=2 if i == 0 else 1, rngs=rngs)
                for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
            ]
        )
        self.norms = nnx.List([nnx.GroupNorm(width, num_groups=8, rngs=rngs) for width in widths[1:]])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.linear = nnx.Linear(height // 8 * (width // 8) * widths[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = nnx.relu(norm(convolution(x)))
            if i in (1, 2):
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.linear(self.dropout(x.reshape(len(x), -1)))


@nnx.jit
def _step(model: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss_of(model: Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def _name(model: Network, images: jax.Array) -> jax.Array:
    return jnp.argmax(model(images), axis=-1)


def held_out_accuracy(images: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Trains on the first four fifths (mirrored and shifted at random), names the rest."""
    rng = np.random.default_rng(0)
    count = len(labels) * 4 // 5
    steps = count // BATCH
    model = Network(images.shape[1], images.shape[2], classes, rngs=nnx.Rngs(0))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps, _EPOCHS.value * steps)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=0.05), wrt=nnx.Param)
    model.train()
    for _ in range(_EPOCHS.value):
        order = rng.permutation(count)
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            batch = np.where((rng.random(BATCH) < 0.5)[:, None, None, None], images[rows, :, ::-1], images[rows])
            batch = np.roll(batch, rng.integers(-2, 3, 2), axis=(1, 2))
            _step(model, optimizer, jnp.asarray(batch), jnp.asarray(labels[rows]))
    model.eval()
    named = np.concatenate([_name(model, jnp.asarray(images[i : i + BATCH])) for i in range(count, len(labels), BATCH)])
    return float((named == labels[count:]).mean())


def main(argv: Sequence[str]) -> None:
    del argv
    check_places(json=_JSON.value)
    plain: list[Task] = [
        ((_SEED.value, i), DEMO_EMOTIONS[i % len(DEMO_EMOTIONS)], False, "") for i in range(_FACES.value)
    ]
    subtle: list[Task] = [
        ((_SEED.value, 1 + number, i), pair[i % 2], True, CROPS[pair])
        for number, pair in enumerate(AMBIGUOUS_PAIRS)
        for i in range(_FACES.value)
    ]
    tasks = plain + subtle
    start = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        looks = list(pool.map(look, tasks, chunksize=16))
    seen = [found for found in looks if found is not None]
    print(f"{len(tasks)} faces rendered and looked at in {time.monotonic() - start:.0f} s")
    made = provenance("synth_faces", f"seeds from {_SEED.value}", len(tasks), "networks of this script")
    print(heading(made))
    figures: dict[str, Any] = {"provenance": made, "faces": len(tasks)}

    def report(name: str, value: float, title: str, remark: str) -> None:
        figures[name] = value
        print(f"{title:38s}{value:.4f}  ({remark})", flush=True)

    report("found_by_detector", len(seen) / len(tasks), "found by the detector", "wanted 0.97")
    error = float(np.mean([found["error"] for found in seen]))
    report("landmark_error", error, "landmark error / eye distance", "outer eye corners")
    named = float(np.mean([is_named(task) for task in tasks]))
    report("named_by_table", named, "emotion named by a table of AUs", "wanted 0.99")

    found = [item for item in looks[: len(plain)] if item is not None]
    labels = np.array([DEMO_EMOTIONS.index(item["emotion"]) for item in found])
    accuracy = held_out_accuracy(stack([item["aligned"] for item in found]), labels, len(DEMO_EMOTIONS))
    report("plain_aligned", accuracy, "plain, aligned view", "wanted 0.95")
    for number, pair in enumerate(AMBIGUOUS_PAIRS):
        first = len(plain) + number * _FACES.value
        found = [item for item in looks[first : first + _FACES.value] if item is not None]
        labels = np.array([pair.index(item["emotion"]) for item in found])
        views = (("aligned", "aligned view", "wanted 0.60 at most"), ("crop", f"{CROPS[pair]} crop", "wanted 0.90"))
        for view, title, wanted in views:
            accuracy = held_out_accuracy(stack([item[view] for item in found]), labels, 2)
            report(f"subtle_{'_'.join(pair)}_{view}", accuracy, f"subtle {' or '.join(pair)}, {title}", wanted)
    if _JSON.value:
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_JSON.value, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
