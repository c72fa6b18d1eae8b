"""Does the study of ActFER's tables run from its first command to its report? All but the model's width, in small.

    python benchmarks/small_actfer.py --words=DIR

`configs/studies/actfer.py` with its methods, evaluations and contrasts, on data sets in their own layouts. Their
pictures are rendered faces, and their action units are as LibreFace writes them. `--words` (by default ACTFER_QWEN3_VL
of the environment) is a directory with a Qwen3-VL's tokenizer, chat template and processor: prompts, views and lengths
are those of Qwen3-VL-4B. The model has its vocabulary, a small width and random weights, so the figures mean nothing.
Steps, batches and turns are few, and a stand-in on loopback is the server of the base without tools. Prints the report,
and exits with 1 where a cell fails.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from PIL import Image
from places import check_places

from actfer_jax.data.datasets.ferbench import SUBSETS
from actfer_jax.data.datasets.synth_faces import FaceSpec, render
from actfer_jax.data.datasets.synth_faces.second_world import sample_face
from actfer_jax.facs import EMOTIONS, normalise_emotion
from actfer_jax.files import as_path
from actfer_jax.models import Qwen3VL, Qwen3VLConfig
from actfer_jax.models.huggingface import save_pretrained

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from chat_server import Body, ChatServer, Response, completion  # noqa: E402
from data_fixtures import AFFECTNET_HEADER, DISFA_AUS, DISFA_PEOPLE  # noqa: E402
from flagship import WORDS, write_narrow_model  # noqa: E402

RAF = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # in the order of their codes, from 1
FER_PLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")  # columns of votes
AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")  # codes from 0
SFEW = {"angry": "Angry", "disgust": "Disgust", "fear": "Fear", "happy": "Happy", "neutral": "Neutral"}
SFEW |= {"sad": "Sad", "surprise": "Surprise"}
TRAINED, QUESTIONS = 24, 8
"""Pictures of each training part, and questions of each subset of FERBench."""
DETECTED = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)  # by LibreFace, which gives the twelve of DISFA an intensity

CONFIG = '''"""configs/studies/actfer.py with a model of small width, and few steps."""

from configs.studies import actfer


def get_config(variant=""):
    actfer.BASE, actfer.SERVER = {base!r}, {server!r}
    config = actfer.get_config({data!r})
    config.seeds = (10, 11)
    for method in config.methods:
        if method.train:
            rollouts = "sft" not in method.train
            method.settings += ("steps=2", "batch.queries=4", "batch.microbatches=2", "data.cache_directory={cache}")
            method.settings += ("rollout.turn_tokens=48", "alarms.vision_every=0", "mesh.rollout=(-1,1,1)")
            method.settings += ("batch.rollouts=2", "rollout.fill_rows=4") if rollouts else ()
    for evaluation in config.evaluations:
        evaluation.settings += ("queries=8", "data.cache_directory={cache}")
        evaluation.settings += ("data.stride=1",) if evaluation.name == "disfa" else ()
    return config
'''


def put_face(path: Path, seed: Sequence[int], emotion: str, width: int, height: int, around: float = 0.4) -> FaceSpec:
    """Draws a face, cut out with something around it."""
    spec = sample_face(seed, emotion=emotion)
    picture = render(spec)
    left, top, right, bottom = picture.face_box
    x, y, side = (left + right) / 2, (top + bottom) / 2, (1 + around) * max(right - left, bottom - top)
    box = (round(x - side / 2), round(y - side / 2), round(x + side / 2), round(y + side / 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.image).crop(box).resize((width, height)).save(path)
    return spec


def write_libreface(folder: Path, faces: dict[str, FaceSpec]) -> None:
    """One row a picture, with what is seen and how strongly."""
    columns = [*(f"au_{au}" for au in DETECTED), *(f"au_{au}_intensity" for au in DISFA_AUS)]
    lines = [",".join(["input_image_path", *columns])]
    for name, spec in faces.items():
        found = [str(float(au in spec.aus)) for au in DETECTED]
        lines.append(",".join([name, *found, *(f"{5 * spec.aus.get(au, 0.0):.2f}" for au in DISFA_AUS)]))
    write(folder / "libreface/faces.csv", "\n".join([*lines, ""]))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_training_parts(data: Path) -> None:
    faces, rows = dict[str, FaceSpec](), list[str]()
    for number in range(TRAINED):
        stem, label = f"train_{number + 1:05d}", number % len(RAF)
        path = data / f"RAF-DB/basic/Image/aligned/{stem}_aligned.jpg"
        faces[path.name] = put_face(path, (1, number), RAF[label], 100, 100)
        rows.append(f"{stem}.jpg {label + 1}\n")
    write(data / "RAF-DB/basic/EmoLabel/list_patition_label.txt", "".join(rows))
    write_libreface(data / "RAF-DB", faces)

    faces, rows = {}, []
    for number in range(TRAINED):
        path, label = data / f"FERPlus/FER2013Train/fer{number:07d}.png", number % len(FER_PLUS)
        faces[path.name] = put_face(path, (2, number), FER_PLUS[label], 48, 48)
        votes = [10 * (column == label) for column in range(10)]
        rows.append(f'{path.name},"(0, 0, 48, 48)",{",".join(map(str, votes))}\n')
    write(data / "FERPlus/FER2013Train/label.csv", "".join(rows))
    write_libreface(data / "FERPlus", faces)

    faces, rows = {}, [AFFECTNET_HEADER + "\n"]
    for number in range(TRAINED):
        name, label = f"{number % 3}/{number:04d}.jpg", number % len(AFFECTNET)
        path = data / "AffectNet/Manually_Annotated_Images" / name
        faces[name] = put_face(path, (3, number), AFFECTNET[label], 300, 300, around=1.0)
        rows.append(f"{name},40,40,220,220,{';'.join(['0.5'] * 136)},{label},0.1,0.1\n")
    write(data / "AffectNet/training.csv", "".join(rows))
    write_libreface(data / "AffectNet", faces)


def write_ferbench(data: Path) -> None:
    for subset, names in enumerate(SUBSETS):
        labels, items = list(SUBSETS[names]), []
        for number in range(QUESTIONS):
            label = labels[number % len(labels)]
            path, side = {
                "rafdb": (f"RAF-DB/aligned/test_{number:04d}_aligned.jpg", 100),
                "ferplus": (f"FERPlus/test/{label}/fer003{number:04d}.png", 48),
                "affectnet": (f"AffectNet/Manually_Annotated/validation/{number}/1f2e.jpg", 300),
                "sfew_2.0": (f"SFEW-2.0/Val/Val_Aligned_Faces/{SFEW.get(label, label)}/Bad_{number}.png", 150),
            }[names]
            put_face(data / path, (4, subset, number), normalise_emotion(label), side, side)
            prompt = f"Please select from candidate labels: {', '.join(labels)}."
            items.append({"image_path": f"/{path}", "true_label": label, "prompt": prompt, "candidate_labels": labels})
        write(data / f"UniFER/eval_{names}/data/{names}_qa.json", json.dumps(items, indent=4))


def write_disfa(data: Path, frames: int = 1) -> None:
    for person, subject in enumerate(DISFA_PEOPLE):
        rows = dict.fromkeys(DISFA_AUS, "")
        for frame in range(1, frames + 1):
            emotion = EMOTIONS[(person + frame) % len(EMOTIONS)]
            path = data / f"DISFA/frames/{subject}/{frame:05d}.jpg"
            spec = put_face(path, (5, person, frame), emotion, 1024, 768, around=1.5)
            for au in DISFA_AUS:
                rows[au] += f"{frame},{round(5 * spec.aus.get(au, 0.0))}\r\n"
        for au, text in rows.items():
            write(data / f"DISFA/ActionUnit_Labels/{subject}/{subject}_au{au}.txt", text)


def write_base(root: Path, words: Path) -> None:
    shape = write_narrow_model(root / "shape", words)
    config = Qwen3VLConfig.from_json(shape / "config.json")
    model = Qwen3VL(config, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    model.source = str(shape)
    save_pretrained(model, root / "base")


def answer(body: Body) -> Response:
    """What the server says: one label or another of those that it is asked to choose from."""
    return completion(f"<answer>{EMOTIONS[len(json.dumps(body)) % len(EMOTIONS)]}</answer>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", default=WORDS, help="tokenizer, chat template and processor of a Qwen3-VL")
    parser.add_argument("--workdir", type=as_path, default=Path("runs/small_actfer"), help="made anew")
    given = parser.parse_args()
    if not given.words:
        parser.error("--words is needed: a directory with a Qwen3-VL's tokenizer, chat template and processor")
    check_places(workdir=given.workdir)
    root = Path(given.workdir).absolute()
    data, runs = root / "data", root / "runs"
    for part in root.glob("*"):
        shutil.rmtree(part, ignore_errors=True)
    write_training_parts(data)
    write_ferbench(data)
    write_disfa(data)
    write_base(root, Path(given.words))
    with ChatServer(answer) as server:
        config = CONFIG.format(base=str(root / "base"), server=server.url, data=str(data), cache=root / "cache")
        write(root / "study.py", config)
        command = [sys.executable, "-m", "actfer_jax.study", f"--config={root / 'study.py'}", f"--workdir={runs}"]
        status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        sys.exit(status)
    print((runs / "report" / "report.md").read_text())


if __name__ == "__main__":
    main()
