"""Scores predictions of any model, without running it.

A file has one JSON object a line, or one JSON list of them as UniFER's `*_results.json` are:

    {"image_path", "true_label", "candidate_labels", "response" or "model_response", "error"?, "subset"?}

Other keys are ignored. Or it is a file of lmms-eval (its lines have `filtered_resps`), of VLMEvalKit (.tsv) or of
py-feat (.csv): `evaluation/formats/` says what these hold.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from actfer_jax import plugins
from actfer_jax.config import ConfigError, read_config
from actfer_jax.errors import UserError
from actfer_jax.evaluation import plots
from actfer_jax.evaluation.benchmarks import BenchmarkConfig
from actfer_jax.evaluation.items import Prediction, shown, to_json
from actfer_jax.evaluation.results import ANSWERS, RESULTS
from actfer_jax.files import write_atomically
from actfer_jax.outputs import MARKER, Output, check_directory, publish, staged
from actfer_jax.runs.provenance import heading, provenance

_TABLES = {".tsv": "vlmevalkit", ".csv": "pyfeat"}
_SEED = 0  # of the bootstrap intervals


def score_predictions(files: Sequence[epath.Path], benchmark: str, protocol: str, out: epath.Path) -> str:
    """Scores predictions and writes `results.json`, the answers that were read, and the benchmark's plots.

    Args:
      files: all of one model; their items are scored together.
      benchmark: a module of `evaluation.benchmarks` that has `measure_predictions` and `read_answers`.
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
        lines = (json.dumps(to_json(one)) for one in module.read_answers(predictions, config=config))
        write_atomically(staging / ANSWERS, "".join(f"{line}\n" for line in lines))
        results = {"provenance": made, "benchmark": benchmark, "protocol": protocol, **summary}
        write_atomically(staging / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
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
    if predictions := [_prediction(item, file, place) for place, item in _items(file, text)]:
        return predictions
    raise UserError(f"{file} has no predictions")


def _items(file: epath.Path, text: str) -> Iterator[tuple[str, Any]]:
    """The values of a JSON list or of JSON lines, or the rows of a table, each after its place."""
    if file.suffix in _TABLES:
        delimiter = "\t" if file.suffix == ".tsv" else ","
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        for row in rows:
            yield f"{file}, line {rows.line_num}", row
    elif text.lstrip().startswith("["):
        for number, value in enumerate(_parse(text, file, 1), 1):
            yield f"{file}, item {number}", value
    else:
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


def _prediction(item: Any, file: epath.Path, place: str) -> Prediction:
    if not isinstance(item, dict):
        raise UserError(f"{place}: this is {shown(item)}; it must be an object with image_path, true_label, ...")
    name = _TABLES.get(file.suffix, "lmms_eval" if "filtered_resps" in item else "unifer")
    read: Prediction = plugins.load("evaluation.formats", name).prediction(item, file.name, place)
    return read


def _output(figures: Sequence[str]) -> Output:
    names = re.compile(rf"results\.json|answers\.jsonl|({'|'.join(map(re.escape, figures))})\.png")
    # No older version wrote such scores, so a directory without the marker is never taken for one.
    return Output("scores of predictions", names, last=RESULTS, signs=(MARKER,))
