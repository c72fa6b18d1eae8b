"""Reads what evaluations and scorings of predictions have written."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from actfer_jax import plugins
from actfer_jax.config import read_config
from actfer_jax.episodes.store import read_episodes
from actfer_jax.errors import UserError
from actfer_jax.evaluation.benchmarks import BenchmarkConfig
from actfer_jax.evaluation.ferbench import SUBSETS
from actfer_jax.evaluation.items import NORMAL, Answer, answer_of, from_json
from actfer_jax.evaluation.metrics import Summary

RESULTS, ANSWERS = "results.json", "answers.jsonl"


@dataclass(frozen=True)
class Results:
    """A finished evaluation, or scored predictions.

    Attributes:
      directory: where it lies.
      benchmark: the module of the benchmark; config: its constants.
      provenance: as in `runs.provenance`.
      summaries: the benchmark's figures by control; of predictions, all are `NORMAL`.
      tools: the face tools, "dlib" or "imported"; "" of predictions, whose tools are not known.
      hub_dataset: the benchmark's data set on the Hugging Face Hub, as OWNER/NAME; "" where there is none.
    """

    directory: epath.Path
    benchmark: Any
    config: Any
    provenance: Mapping[str, Any]
    summaries: Mapping[str, Summary]
    tools: str
    hub_dataset: str

    @property
    def model(self) -> str:
        """The policy's name, fit for a file's: letters, digits, "_", "-" and "."."""
        name = self.provenance["policy"].rstrip("/").rpartition("/")[2]
        return re.sub(r"[^\w.-]+", "_", re.sub(r"(_results)?\.(jsonl?|tsv|csv)$", "", name))

    def answers(self) -> dict[str, list[Answer]]:
        """The answers by control, in the order in which they were given, as the benchmark reads and counts them.

        Without rules of its own, those of the grammar are taken, and what failed is left out.

        Raises:
          UserError: they are not there, or damaged.
        """
        by_control = defaultdict[str, list[Answer]](list)
        if (self.directory / ANSWERS).exists():
            lines = (self.directory / ANSWERS).read_text().splitlines()
            by_control[NORMAL] = [from_json(json.loads(line)) for line in lines]
        else:
            for record in read_episodes(self.directory):
                if (read := self._read(answer_of(record))) is not None:
                    by_control[record["id"].partition("/")[0]].append(read)
        if not by_control:
            raise UserError(f"{self.directory} has neither episodes nor {ANSWERS}, so that its answers are not known")
        return dict(by_control)

    def _read(self, answer: Answer) -> Answer | None:
        if hasattr(self.benchmark, "reread"):
            read: Answer | None = self.benchmark.reread(answer, self.config)
            return read
        return None if answer.failed else answer


def read_results(directory: epath.Path) -> Results:
    """The results in a directory that `evaluate` wrote.

    Raises:
      UserError: there are none, or they are of an older version.
    """
    path = directory / RESULTS
    if not path.exists():
        raise UserError(f"{directory} has no {RESULTS}; give a directory that `evaluate --out` wrote")
    try:
        found = json.loads(path.read_text())
        made = found["provenance"]
        if "results" in found:
            section, summaries = found["config"]["benchmark"], found["results"]
            tools = "imported" if "imported" in found["config"]["faces"]["steps"] else "dlib"
        else:  # Scores of predictions.
            section = {"name": found["benchmark"], "protocol": found["protocol"]}
            summaries, tools = {NORMAL: found}, ""
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or of an older version ({error!r}); evaluate again") from error
    benchmark = plugins.load(BenchmarkConfig.FOLDER, section["name"])
    config = read_config(section, BenchmarkConfig, "benchmark")
    own = made["dataset"] == section["name"]  # Not other data that is counted in the same way.
    hub_dataset = getattr(benchmark, "HUB_DATASET", "") if own else ""
    return Results(directory, benchmark, config, made, summaries, tools, hub_dataset)


def tasks(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """The answers with a true label by what other programs call a task: the data set, and its subset in FERBench.

    Raises:
      UserError: no answer has a true label.
    """
    by_task = defaultdict[str, list[Answer]](list)
    for answer in answers:
        if answer.truth is not None:
            by_task["_".join(filter(None, (answer.dataset, subset(answer))))].append(answer)
    if not by_task:
        raise UserError("no sample has an emotion label, which this format needs; pyfeat holds action units")
    return dict(by_task)


def subset(answer: Answer) -> str:
    """The subset of FERBench that is a stratum of a sample, or ""."""
    return next((name for name in answer.strata if name in SUBSETS), "")
