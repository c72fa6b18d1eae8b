"""What a policy has beside its weights for those who did not train it: a model card, its prompt, and an example."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from actfer_jax.agent.environment import load_format
from actfer_jax.agent.policy_card import FILE_NAME, PolicyCard
from actfer_jax.data.sources import emotion_labels
from actfer_jax.evaluation.items import NORMAL
from actfer_jax.evaluation.paper import Rows, render
from actfer_jax.evaluation.reading import caveat
from actfer_jax.evaluation.tables import percent_with_interval
from actfer_jax.files import file_errors, write_atomically
from actfer_jax.models.huggingface import is_hub_name
from actfer_jax.runs.metrics import read_evaluations
from actfer_jax.runs.provenance import heading
from actfer_jax.training.config import TrainConfig

log = logging.getLogger(__name__)

CARD, PROMPT = "README.md", "prompt.json"
_OURS = "<!-- Written by actfer_jax, which replaces it. Delete this line to keep what you write here. -->"
_FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "uar": "UAR",
    "au_f1_sample": "AU-F1",
    "au_f1_pooled": "AU macro-F1",
    "ece": "ECE",
}
_GAPS = {"accuracy_gap": "accuracy", "au_f1_gap": "AU-F1", "zoom_gap": "zoom rate"}
_EXAMPLE = """\
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText
from actfer_jax.agent.play import begin
{base}processor = AutoImageProcessor.from_pretrained({words})
model = AutoModelForImageTextToText.from_pretrained(".")
environment, seen = begin(".", "photo.jpg", {words})
chat, ids, views = environment.chat, [], []
while seen is not None:
    ids, views = ids + seen.token_ids, views + [view.pixels for view in seen.views]
    row, start = torch.tensor([ids]), len(ids)
    kinds, images = (row == model.config.image_token_id).int(), processor(views, return_tensors="pt")
    limits = {{"max_new_tokens": environment.config.turn_tokens, "eos_token_id": chat.turn_end_id, "do_sample": False}}
    ids = model.generate(row, mm_token_type_ids=kinds, **images, **limits)[0].tolist()
    seen = environment.step(chat.turn_text(ids[start:]), len(ids) - start, truncated=ids[-1] != chat.turn_end_id)
print(environment.episode.answer)
"""
_BASE = """\
from peft import PeftConfig
base = PeftConfig.from_pretrained(".").base_model_name_or_path
"""
_NOT_FOR = """\
It names the expression that a picture shows. That is not what the person feels, means or will do. It is not for
decisions about people (work, school, credit, insurance, police, borders), not for diagnosis, not for watching people
who did not agree, and not for telling who somebody is. The European Union forbids to infer emotions at work and in
education, with few exceptions (Regulation 2024/1689, Article 5). Measure it on your own pictures, by group, before any
use: figures above are of the data named there alone.
"""


def policy_files(
    config: TrainConfig, workdir: epath.Path, step: int, directory: epath.Path, *, is_adapter: bool
) -> dict[str, str]:
    """The files of a policy beside its weights and its tokenizer, their text by name.

    A model card that somebody else wrote into the directory stays as it is.

    Args:
      workdir, step: of which run and step the policy is; the card has the evaluations of it that are there.
      directory: where it is written.
      is_adapter: whether the weights are an adapter, in place of a whole model.
    """
    labels, rollout = emotion_labels(config.data), config.rollout
    card = PolicyCard(labels, config.trained_on, views=vars(config.views), rollout=vars(rollout))
    opening = load_format(rollout).make_prompt(
        rollout.prompt_style, labels, ask_aus=rollout.ask_aus, images=rollout.images
    )
    limits = {"max_turns": rollout.max_turns, "turn_tokens": rollout.turn_tokens}
    prompt = json.dumps({**vars(opening), **limits}, indent=2, ensure_ascii=False) + "\n"
    text = _kept(directory) or model_card(config, read_evaluations(workdir), step, is_adapter=is_adapter)
    return {FILE_NAME: card.to_json(), PROMPT: prompt, CARD: text}


def update_model_card(config: TrainConfig, workdir: epath.Path, directory: epath.Path) -> None:
    """Writes the card that a run's last policy has anew, with the evaluations that came after it."""
    if (directory / CARD).exists() and not _kept(directory):
        text = model_card(config, read_evaluations(workdir), config.steps, is_adapter=config.lora is not None)
        write_atomically(directory / CARD, text)


def _kept(directory: epath.Path) -> str:
    """The card of a directory, if somebody else wrote it; "" if not."""
    try:
        text = (directory / CARD).read_text()
    except file_errors():
        return ""
    return "" if _OURS in text else text


def model_card(config: TrainConfig, evaluations: Mapping[str, Any], step: int, *, is_adapter: bool) -> str:
    """A model card as the Hugging Face Hub reads it, with its metadata as YAML in front.

    Args:
      evaluations: of the run, as `read_evaluations` has them; those of other steps are left out.
    """
    base, metadata = _base(config)
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["facial-expression-recognition", "action-units", "actfer_jax"],
        **metadata,
    )
    what = f"An adapter of {base}, trained" if is_adapter else f"A model trained from {base}"
    sections = {
        "Data": _data(config),
        "Training": _training(config, step),
        "Evaluation": _evaluation(evaluations, step),
        "What it is not for": _NOT_FOR,
        "Use": _use(is_adapter),
    }
    start = f"---\n{data.to_yaml()}\n---\n\n{_OURS}\n\n# A policy that reads facial expressions\n\n"
    start += (
        f"{what} by actfer_jax. It looks at a picture, calls face tools to look closer, and names action "
        "units and an emotion.\n"
    )
    return start + "".join(f"\n## {title}\n\n{text.strip()}\n" for title, text in sections.items())


def _base(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """The model that training began with, in words, and what is known of it as metadata: its name on the Hub, and the
    licence that its own card names. Of nothing that is not known."""
    card = Path(config.model.directory) / CARD
    try:
        known: dict[str, Any] = (metadata_load(card) if card.is_file() else None) or {}
    except Exception as error:  # A damaged card, which makes the library raise nearly anything, costs no policy.
        log.warning("%s cannot be read (%s): the licence of the base is not in the model card", card, error)
        known = {}
    found: dict[str, Any] = {key: known[key] for key in ("license", "license_name", "license_link") if key in known}
    if is_hub_name(config.model.base):
        found["base_model"] = config.model.base
    elif "base_model" in known:
        found["base_model"] = known["base_model"]
    name = found.get("base_model", config.model.directory.name)
    if config.model.initialise == "random":
        found.pop("base_model", None)
        return f"random weights, with the shapes and the tokenizer of `{name}`", found
    return f"`{name}`", found


def _data(config: TrainConfig) -> str:
    names = ", ".join(f"`{name}`" for name in config.trained_on)
    lines = [
        f"Trained on {names} (with what its base was trained on, as far as that is known).",
        f"This run: `{config.data.name}`, split `{config.data.split}`.",
        f"Labels: {', '.join(emotion_labels(config.data)) or 'none, action units only'}.",
        caveat(config.trained_on),
    ]
    return "\n".join(line for line in lines if line)


def _training(config: TrainConfig, step: int) -> str:
    keys = {
        "algorithm": config.algorithm,
        "steps": f"{step} of {config.steps}",
        "seed": config.seed,
        "batch.queries": config.batch.queries,
        "batch.rollouts": config.batch.rollouts,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "rollout.prompt_style": config.rollout.prompt_style,
        "rollout.max_turns": config.rollout.max_turns,
    }
    if config.algorithm == "rl":
        keys |= {"estimator.name": config.estimator.name, "reward.name": config.reward.name}
    if config.lora is not None:
        keys |= {"lora.rank": config.lora.rank, "lora.alpha": config.lora.alpha}
    return render([["key", "value"], *([f"`{key}`", str(value)] for key, value in keys.items())], "md")


def _evaluation(evaluations: Mapping[str, Any], step: int) -> str:
    # Of all samples, or else of the part that is evaluated while training.
    own = next((when for when in ("after", f"step {step}") if evaluations.get(when, {}).get("step") == step), "")
    now = {when: evaluations[when] for when in ("before", own) if when in evaluations}
    if not own:
        return f"Step {step} was not evaluated in its run: `python -m actfer_jax.evaluate --checkpoint=DIR` does it."
    rows: Rows = [["training", "control", "episodes", *_FIGURES.values(), "zoom rate"]]
    gaps: Rows = [["stratum", "episodes", *_GAPS.values()]]
    for when, run in now.items():
        for control, summary in run["results"].items():
            figures = [*map(summary.get, _FIGURES), summary["zoom"]["rate"]]
            rows.append([when, control, str(summary["episodes"]), *map(_cell, figures)])
    last = now[own]
    normal = last["results"][NORMAL]
    if label := normal.get("majority", {}).get("label"):
        cells = map(_cell, map(normal["majority"].get, _FIGURES))
        rows.append([f"majority class ({label})", "-", str(normal["episodes"]), *cells, "-"])
    for name, part in normal["strata"].items():
        gaps.append([name, str(part["episodes"]), *(_between(part.get(gap)) for gap in _GAPS)])
    # The place of the run is nobody's business.
    made = last.get("provenance") and {**last["provenance"], "policy": f"step {step}"}
    text = (
        f"{heading(made)}\n\n{render(rows, 'md')}\n"
        f"In percent; ± is half of the 95% bootstrap interval. Controls: `no_tools` is told to answer at once, "
        "`blank_crop` sees grey zooms, `low_res_crop` zooms without finer pixels, `always_zoom` and `never_zoom` are "
        "told to. ECE is the expected calibration error of the answer's probability.\n"
    )
    if len(gaps) > 1:
        text += f"\nEach stratum against the others, in points, with 95% intervals:\n\n{render(gaps, 'md')}"
    return text


def _use(is_adapter: bool) -> str:
    base, words = (_BASE, "base") if is_adapter else ("", '"."')
    example = _EXAMPLE.format(base=base, words=words)
    return (
        "`python -m actfer_jax.analyze --checkpoint=DIR --out=PAGE photo.jpg` makes a page of its readings. An episode "
        "with transformers' own model, in this directory, with the tools of actfer_jax:\n\n"
        f"```python\n{example}```\n\n`{PROMPT}` has what opens an episode: the system text, the request after the "
        "picture, and the schemas of the tools, as the chat template takes them."
    )


def _cell(figure: Mapping[str, float | None] | None) -> str:
    return "-" if figure is None else percent_with_interval(figure)


def _between(figure: Mapping[str, float | None] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    low, high = figure["low"], figure["high"]
    between = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * figure['value']:+.1f}{between}"
