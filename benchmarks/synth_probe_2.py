"""What can be read from which view of the rendered faces' second edition? The companion of `synth_probe.py`.

    python benchmarks/synth_probe_2.py --json=docs/results/synth_probe_2.json

Seeds are the probe's own. The views come from the real face tools, with the views of the small policy. Reported:

- how many faces the detector finds, of two the one that is meant (wanted: 0.97 and more);
- the share of the subtle faces that each region decides (0.1 to 0.25), and the share of subtle faces in each class;
- the emotion of plain faces from the aligned view, by the network of `synth_probe.py` (0.97 and more);
- the busy region of subtle faces, and subtle or plain, from the aligned view, by a linear probe of its pixels (0.90 and
  0.95);
- for each pair and region, which of the two emotions a subtle face shows: from the aligned view, from the crop of each
  wrong region (0.60 at most each) and from the right crop (0.97 and more). A linear probe of local energies: the
  response of the picture to filters of three wavelengths, four directions and two lengths, squared, averaged in cells.
  With the faces at hand it reads such texture far better than a network that is trained from nothing.
"""

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from places import check_places
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synth_probe import held_out_accuracy, of_one_size, stack, toolbox

from actfer_jax import cli, facs
from actfer_jax.agent.parser import ToolCall
from actfer_jax.data.datasets.synth_faces import FaceSpec, render
from actfer_jax.data.datasets.synth_faces.second_world import CASES, Case, emotion_from_aus, sample_face
from actfer_jax.faces.views import overlap_area, rectangle
from actfer_jax.files import write_atomically
from actfer_jax.runs.provenance import heading, provenance

# --faces (subtle ones of each pair and region), --seed, --epochs and --json are those of synth_probe.py.
_PLAIN = flags.DEFINE_integer("plain", 1600, "Plain faces.")
_JOBS = flags.DEFINE_integer("jobs", 2, "Processes that render.")

Task = tuple[tuple[int, ...], str, bool]
"""(seed, emotion, subtle)."""


def look(task: Task) -> dict[str, Any] | None:
    """Renders a face and looks at it with the tools; None where the detector does not find it."""
    seed, emotion, subtle = task
    picture = render(sample_face(seed, emotion=emotion, subtle=subtle))
    tools = toolbox()
    (x0, y0, x1, y1), found = picture.face_box, tools.faces(task, picture.image)
    shared = [overlap_area(rectangle(picture.face_box), face.box) / ((x1 - x0) * (y1 - y0)) for face in found]
    if not shared or max(shared) < 0.4:
        return None
    face = int(np.argmax(shared))
    calls = {"aligned": ToolCall("align_face", {"face": face})}
    if subtle:
        calls |= {name: ToolCall("zoom", {"region": name, "face": face}) for name in facs.REGIONS}
    return {
        name: tools.execute(call, "", images=[picture.image], key=task, views=()).view.pixels
        for name, call in calls.items()
    }


@cache
def _filters(height: int, width: int) -> np.ndarray:
    """Transfer functions of filters along one side of the spectrum, complex64 [24, height, width]."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    bank = []
    for wavelength in (2.2, 2.9, 3.9):
        for angle in np.arange(4) * np.pi / 4:
            across = fx * np.cos(angle) + fy * np.sin(angle)
            along = fy * np.cos(angle) - fx * np.sin(angle)
            for spread in (0.12, 0.04):
                bank.append(np.exp(-(((across - 1 / wavelength) / 0.07) ** 2 + (along / spread) ** 2) / 2))
    return np.stack(bank).astype(np.complex64)


def energies(pictures: np.ndarray) -> np.ndarray:
    """Logarithms of local energies of grey pictures [N, H, W, 3]: [N, 24 * cells]."""
    count, height, width, _ = pictures.shape
    rows = 8 if height >= 64 else 4
    grey = pictures.mean(axis=-1) / pictures.mean(axis=(1, 2, 3))[:, None, None]
    features = []
    for picture in grey:
        response = np.fft.ifft2(np.fft.fft2(picture - picture.mean()) * _filters(height, width))
        cells = (np.abs(response) ** 2).reshape(24, rows, height // rows, 8, width // 8).mean(axis=(2, 4))
        features.append(np.log(cells + 1e-6).ravel())
    return np.array(features)


def linear_accuracy(features: np.ndarray, labels: Sequence[Any], groups: Sequence[Any]) -> float:
    """Held-out accuracy of a linear probe, over five folds that keep groups together."""
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=(1e2, 1e3, 1e4, 1e5)))
    scores = cross_val_score(probe, features, np.array(labels), groups=np.array(groups), cv=GroupKFold(5))
    return float(scores.mean())


def specs_of(case: Case, count: int, seed: int) -> list[tuple[Task, str]]:
    """Both emotions of `count` seeds whose subtle faces the region of a case decides: tasks with the emotion."""
    found: list[tuple[Task, str]] = []
    number = 0
    while len(found) < 2 * count:
        key = (seed, 1 + CASES.index(case), number)
        if sample_face(key, emotion=case.emotion, subtle=True).deciding_region == case.region:
            found += [((key, emotion, True), emotion) for emotion in case.pair]
        number += 1
    return found


def shares(specs: Sequence[FaceSpec]) -> dict[str, float]:
    """The share of subtle faces that each region decides, and of each class that is subtle."""
    subtle = [spec for spec in specs if spec.subtle]
    decided, of_class = Counter(spec.deciding_region for spec in subtle), Counter(spec.emotion for spec in subtle)
    every = Counter(spec.emotion for spec in specs)
    by_region = {f"decided_by_{region}": decided[region] / len(subtle) for region in facs.REGIONS}
    return by_region | {f"subtle_of_{emotion}": of_class[emotion] / every[emotion] for emotion in facs.EMOTIONS}


def main(argv: Sequence[str]) -> None:
    del argv
    faces, seed, out = flags.FLAGS.faces, flags.FLAGS.seed, flags.FLAGS.json
    check_places(json=out)
    plain: list[Task] = [((seed, 0, i), facs.EMOTIONS[i % 8], False) for i in range(_PLAIN.value)]
    by_case = [specs_of(case, faces // 2, seed) for case in CASES]
    tasks = plain + [task for found in by_case for task, _ in found]
    start = time.monotonic()
    with ProcessPoolExecutor(_JOBS.value, multiprocessing.get_context("spawn")) as pool:
        looks = dict(zip(tasks, pool.map(look, tasks, chunksize=16), strict=True))
    print(f"{len(tasks)} faces rendered and looked at in {time.monotonic() - start:.0f} s")
    seen = {task: views for task, views in looks.items() if views is not None}
    made = provenance("synth_faces_2", f"seeds from {seed}", len(tasks), "linear probes and a network of this script")
    print(heading(made))
    figures: dict[str, Any] = {"provenance": made, "faces": len(tasks)}

    def report(name: str, value: float, wanted: str) -> None:
        figures[name] = value
        print(f"{name:44s}{value:.3f}  ({wanted})", flush=True)

    report("found_by_detector", len(seen) / len(tasks), "wanted 0.97")
    specs = [sample_face((seed, 99, i), emotion=facs.EMOTIONS[i % 8]) for i in range(8000)]
    report("named_by_table", float(np.mean([emotion_from_aus(s.aus) == s.emotion for s in specs])), "wanted 1")
    for name, share in shares(specs).items():
        report(name, share, "0.1 to 0.25" if name.startswith("decided") else "the same in every class")

    found = [task for task in plain if task in seen]
    labels = np.array([facs.EMOTIONS.index(emotion) for _, emotion, _ in found])
    accuracy = held_out_accuracy(stack([seen[task]["aligned"] for task in found]), labels, 8)
    report("plain_aligned", accuracy, "wanted 0.97")

    busy = {task: case.region for case, pairs in zip(CASES, by_case, strict=True) for task, _ in pairs if task in seen}
    few = list(busy)[:: max(len(busy) // len(found), 1)]  # About as many subtle faces as plain ones.
    pixels = {task: stack([seen[task]["aligned"]]).ravel() for task in (*found, *busy)}
    groups = [key for key, _, _ in busy]
    report("busy_region_aligned", _probe(pixels, busy, groups), "wanted 0.90")
    both = dict.fromkeys(found, "plain") | dict.fromkeys(few, "subtle")
    report("subtle_or_plain_aligned", _probe(pixels, both, [key for key, _, _ in both]), "wanted 0.95")

    for case, pairs in zip(CASES, by_case, strict=True):
        here = [(task, emotion) for task, emotion in pairs if task in seen]
        for view in ("aligned", *facs.REGIONS):
            wanted = "wanted 0.97" if view == case.region else "wanted 0.60 at most"
            features = energies(of_one_size([seen[task][view] for task, _ in here]))
            value = linear_accuracy(features, [emotion for _, emotion in here], [str(task[0]) for task, _ in here])
            report(f"{'_'.join(case.pair)}_by_{case.region}_from_{view}", value, wanted)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(figures, indent=1) + "\n")


def _probe(pixels: dict[Task, np.ndarray], labels: dict[Task, str], groups: Sequence[Any]) -> float:
    return linear_accuracy(np.stack([pixels[task] for task in labels]), list(labels.values()), list(map(str, groups)))


if __name__ == "__main__":
    cli.run(main)
