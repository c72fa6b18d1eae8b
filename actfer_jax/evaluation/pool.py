"""Several finished evaluations as one: of policies that were each tested on another part of the data, as where one
subject is left out of each training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actfer_jax import facs
from actfer_jax.errors import UserError
from actfer_jax.evaluation.items import Answer
from actfer_jax.evaluation.metrics import Outcome
from actfer_jax.evaluation.results import Results

_SEED = 0  # of the bootstrap intervals


@dataclass(frozen=True)
class Pooled(Results):
    """The results of several runs as those of one.

    Attributes:
      by_control: their answers.
    """

    by_control: Mapping[str, list[Answer]]

    def answers(self) -> dict[str, list[Answer]]:
        return dict(self.by_control)


def pool(runs: Sequence[Results]) -> Pooled:
    """The benchmark's figures of the answers of all runs, under the controls that all have. The first run's name and
    data stand for all.

    Raises:
      UserError: the benchmark's figures need more than answers, the runs differ in it, or two have the same sample.
    """
    first = runs[0]
    if not getattr(first.benchmark, "POOLS_RUNS", False):
        raise UserError(f"runs of the benchmark {first.config.name!r} are not pooled; those of micro are")
    for run in runs:
        if run.config != first.config:
            raise UserError(f"{run.directory} was measured by {run.config}, and {first.directory} by {first.config}")
    answered = [run.answers() for run in runs]
    by_control = {
        control: [answer for answers in answered for answer in answers[control]]
        for control in first.summaries
        if all(control in answers for answers in answered)
    }
    for answers in by_control.values():
        for sample, times in Counter((one.dataset, one.name) for one in answers).items():
            if times > 1:
                raise UserError(f"{'/'.join(sample)} is in {times} of the runs; each sample is to be tested once")
    summaries = {
        control: first.benchmark.measure([_outcome(one) for one in answers], config=first.config, seed=_SEED)
        for control, answers in by_control.items()
    }
    sets = sorted({run.provenance["dataset"] for run in runs})
    size = sum(run.provenance["size"] for run in runs)
    return Pooled(
        directory=first.directory,
        benchmark=first.benchmark,
        config=first.config,
        provenance={**first.provenance, "dataset": " and ".join(sets), "size": size},
        summaries=summaries,
        tools=" and ".join(sorted({run.tools for run in runs})),
        hub_dataset="",
        by_control=by_control,
    )


def _outcome(answer: Answer) -> Outcome:
    """What is known of an outcome from its answer alone; the tools and turns are not."""
    truth, predicted = (
        None if label is None else facs.normalise_emotion(label) for label in (answer.truth, answer.predicted)
    )
    return Outcome(
        labels=tuple(facs.normalise_emotion(label) for label in answer.labels),
        emotion=truth,
        predicted=predicted,
        answered=predicted is not None,
        aus=answer.aus,
        predicted_aus=answer.predicted_aus,
        strata=answer.strata,
        inspected=False,
        regions=(),
        calls=(),
        turns=0,
        truncated=False,
        subject=answer.subject,
        choices=answer.labels,
        response=answer.response,
        confidence=answer.confidence,
    )
