"""Scores predictions of any model, without running it.

A file has one JSON object a line, or one JSON list of them as UniFER's `*_results.json` are:

    {"image_path", "true_label", "candidate_labels", "response" or "model_response", "error"?, "subset"?}

Other keys are ignored.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from actfer_jax import plugins
from actfer_jax.config import ConfigError, read_config
from actfer_jax.errors import UserError
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import BenchmarkConfig
from actfer_jax.files import write_atomically
from actfer_jax.outputs import MARKER, Output, check_directory, publish, staged
from actfer_jax.runs.provenance import heading, provenance

_RESULTS = "results.json"
_SEED = 0  # of the bootstrap intervals


@dataclass(frozen=True)
class Prediction:
    """A model's response to one item.

    Attributes:
      place: file and line, for messages.
      candidate_labels: the labels that the prompt offered, in its order; the true label is one of them.
      response: the model's last turn; "" where it failed without one.
      failed: whether the model failed on the item.
      subset: the item's part of the benchmark, if the file says it.
    """

    place: str
    image_path: str
    true_label: str
    candidate_labels: tuple[str, ...]
    response: str
    failed: bool
    subset: str | None


def score_predictions(files: Sequence[epath.Path], benchmark: str, protocol: str, out: epath.Path) -> str:
    """Scores predictions and writes `results.json` and the benchmark's plots.

    Args:
      files: all of one model; their items are scored together.
      benchmark: a module of `evaluation.benchmarks` that has `measure_predictions`.
      protocol: the benchmark's `protocol`.
      out: the directory to write.

    Returns:
      The text to print.

    Raises:
      UserError, OSError: a file cannot be read or is wrong, or the output cannot be written.
    """
    module = plugins.load(BenchmarkConfig.FOLDER, benchmark)
    if not hasattr(module, "measure_predictions"):
        raise ConfigError(f"the benchmark {benchmark!r} does not score predictions; ferbench does")
    config = read_config({"name": benchmark, "protocol": protocol}, BenchmarkConfig, "benchmark")
    output = _output(module.FIGURES)
    check_directory(out, output)
    predictions = [prediction for file in files for prediction in read_predictions(file)]
    summary = module.measure_predictions(predictions, config=config, seed=_SEED)
    summaries = {protocol: summary}
    made = provenance(benchmark, protocol, len(predictions), ", ".join(map(str, files)))
    with staged(out, output) as staging:
        for name, figure in zip(module.FIGURES, module.figures(summaries), strict=True):
            write_atomically(staging / f"{name}.png", plots.png(figure, heading(made)))
        results = {"provenance": made, "benchmark": benchmark, "protocol": protocol, **summary}
        write_atomically(staging / _RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
        publish(staging, out, output)
    return f"{heading(made)}\n{module.report(summaries)}"


def read_predictions(file: epath.Path) -> list[Prediction]:
    """The predictions of a file, of which there is at least one.

    Raises:
      UserError: something in it is wrong; the message names the file and the line, or the item of a list.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    if predictions := [_prediction(value, place) for place, value in _values(file, text)]:
        return predictions
    raise UserError(f"{file} has no predictions")


def _values(file: epath.Path, text: str) -> Iterator[tuple[str, Any]]:
    """The values of a JSON list or of JSON lines, each after its place."""
    if text.lstrip().startswith("["):
        for number, value in enumerate(_parse(text, file, 1), 1):
            yield f"{file}, item {number}", value
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", _parse(line, file, number)


def _parse(text: str, file: epath.Path, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        number = line + getattr(error, "lineno", 1) - 1
        wanted = "a file of predictions has one JSON object a line, or one JSON list of them"
        raise UserError(f"{file}, line {number}: this is no JSON ({getattr(error, 'msg', error)}); {wanted}") from error


def _prediction(value: Any, place: str) -> Prediction:
    if not isinstance(value, dict):
        raise UserError(f"{place}: this is {_shown(value)}; it must be an object with image_path, true_label, ...")
    failed = bool(value.get("error"))
    given = [key for key in ("response", "model_response") if value.get(key) is not None]
    if len(given) > 1 or not (given or failed):
        raise UserError(f"{place}: it must have one of response and model_response, and has {len(given)}")
    labels = value.get("candidate_labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(one, str) and one.strip() for one in labels):
        raise UserError(f"{place}: candidate_labels is {_shown(labels)}; it must be a list of labels")
    true_label = _text(value, "true_label", place)
    if true_label not in labels:
        raise UserError(
            f"{place}: true_label is {true_label!r}, which is none of candidate_labels ({', '.join(labels)})"
        )
    return Prediction(
        place=place,
        image_path=_text(value, "image_path", place),
        true_label=true_label,
        candidate_labels=tuple(labels),
        response=_text(value, given[0], place) if given else "",
        failed=failed,
        subset=None if value.get("subset") is None else _text(value, "subset", place),
    )


def _text(value: dict[str, Any], key: str, place: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise UserError(f"{place}: {key} is {'missing' if found is None else _shown(found)}; it must be text")
    return found


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


def _output(figures: Sequence[str]) -> Output:
    names = re.compile(rf"results\.json|({'|'.join(map(re.escape, figures))})\.png")
    # No older version wrote such scores, so a directory without the marker is never taken for one.
    return Output("scores of predictions", names, last=_RESULTS, signs=(MARKER,))
