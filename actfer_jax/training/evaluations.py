"""The evaluations of a run: on all held-out samples before and after training, on a fixed part of them meanwhile."""

import json
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from etils import epath

from actfer_jax.data.sources import Chosen, Samples, Source, open_source
from actfer_jax.evaluation.controls import evaluate_policy
from actfer_jax.evaluation.items import NORMAL
from actfer_jax.evaluation.metrics import Outcome, label_notes, outcome, summarise
from actfer_jax.evaluation.tables import controls_table
from actfer_jax.files import write_atomically
from actfer_jax.models.layers import Params
from actfer_jax.parallel import hosts
from actfer_jax.parallel.hosts import Interrupted, Termination
from actfer_jax.progress import ProgressLine
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.engine import Rollout
from actfer_jax.runs.lease import Lease
from actfer_jax.runs.metrics import EVALUATION, read_evaluations, write_evaluation
from actfer_jax.runs.provenance import heading, provenance
from actfer_jax.training.config import EvaluationConfig, TrainConfig
from actfer_jax.training.model_card import update_model_card
from actfer_jax.training.rewind import POLICY_NAME

log = logging.getLogger(__name__)


class Evaluations:
    """Evaluates greedily into `evaluation.json` and TensorBoard, each time at most once over all starts of a run.

    One engine plays them all, so that its programs compile once. It draws nothing that training draws.

    Args:
      config: of the run; without `evaluation`, nothing is done.
      agent: what plays; its parameters are not kept.
      stop: ends an evaluation by `Interrupted`; the next start begins it anew.
      lease: confirmed before anything is written.
    """

    def __init__(self, config: TrainConfig, agent: Agent, workdir: epath.Path, stop: Termination, lease: Lease):
        self._config, self._workdir, self._stop, self._lease = config, workdir, stop, lease
        if config.evaluation is not None:
            self._engine = agent.engine(queries=config.evaluation.queries, group_size=1, greedy=True)

    def before(self, params: Params) -> None:
        """Evaluates on all samples before training."""
        if (evaluation := self._config.evaluation) is not None:
            # The policy is that of the model alone.
            self._evaluate(evaluation, "before", 0, params, self._config.model.trained_on)

    def after(self, params: Params) -> None:
        """Evaluates on all samples after training, adds it to the policy's card, and prints the table of both."""
        if (evaluation := self._config.evaluation) is None:
            return
        self._evaluate(evaluation, "after", self._config.steps, params, self._config.trained_on)
        if hosts.is_first():
            update_model_card(self._config, self._workdir, self._workdir / POLICY_NAME)
            runs = {when: run for when, run in read_evaluations(self._workdir).items() if when in ("before", "after")}
            for when, run in runs.items():
                print(f"{when}: {heading(run.get('provenance'))}")
            print(controls_table({when: run["results"] for when, run in runs.items()}), flush=True)

    def while_training(self, step: int, params: Params) -> None:
        """Evaluates on the fixed part after a step, if it is one of `evaluation.every`."""
        evaluation = self._config.evaluation
        if evaluation is not None and evaluation.every and step and step % evaluation.every == 0:
            self._evaluate(evaluation, f"step {step}", step, params, self._config.trained_on, part=True)

    @cached_property
    def _source(self) -> Source:
        assert self._config.evaluation is not None
        data = self._config.evaluation.data
        return hosts.first_before_others(lambda: open_source(data))

    def _evaluate(
        self,
        evaluation: EvaluationConfig,
        name: str,
        step: int,
        params: Params,
        trained_on: Iterable[str],
        *,
        part: bool = False,
    ) -> None:
        runs = hosts.from_first(partial(read_evaluations, self._workdir))
        # A run that had ended may have been given more steps since.
        if name in runs and runs[name]["step"] == step:
            return
        when = f"after {name}" if part else f"{name} training"
        indices = fixed_part(len(self._source), evaluation.size)
        samples: Samples = Chosen(self._source, indices) if part else self._source
        of_part = dict[str, list[Outcome]]()

        def keep(number: int, control: str, rollouts: Sequence[Rollout]) -> None:
            # So the curve of the part begins before training and ends after it.
            of_part.setdefault(control, []).extend(
                outcome(rollout.episode, rollout.query.reference)
                for rollout in rollouts
                if part or rollout.query.index in indices
            )

        try:
            outcomes = evaluate_policy(
                self._engine,
                params,
                samples,
                controls=evaluation.controls,
                seed=self._config.seed,
                progress=ProgressLine(f"episodes evaluated {when}") if hosts.is_first() else None,
                record=keep,
                between_chunks=self._stop.check,
            )
        except Interrupted:
            log.warning("told to stop during the evaluation %s; the same command begins it anew", when)
            raise
        summaries = {control: summarise(results) for control, results in outcomes.by_control.items()}
        data = evaluation.data
        notes = label_notes(outcomes.by_control[NORMAL], trained_on)
        made = provenance(data.name, data.split, len(samples), f"{self._workdir}, step {step}", notes)
        run: dict[str, Any] = {"provenance": made, "step": step, "unreadable": outcomes.unreadable}
        runs[name] = run | {"results": summaries}
        if outcomes.unreadable:
            log.warning(
                "%d of %d pictures of the evaluation cannot be read and are in no figure; the first: %s",
                *(len(outcomes.unreadable), len(samples), outcomes.unreadable[0]),
            )
        self._lease.check()
        if hosts.is_first():
            write_atomically(self._workdir / EVALUATION, json.dumps(runs, indent=1) + "\n")
            if not part:
                write_evaluation(self._workdir, step, summaries)
            if evaluation.every and of_part.get(NORMAL):
                figures = {control: summarise(results) for control, results in of_part.items()}
                write_evaluation(self._workdir, step, figures, prefix="eval_part")


def fixed_part(samples: int, size: int) -> list[int]:
    """Indices of `size` of the samples, or of all, in ascending order: the same in every run on these samples."""
    return sorted(np.random.default_rng(0).permutation(samples)[:size].tolist())
