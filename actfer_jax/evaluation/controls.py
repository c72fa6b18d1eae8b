"""Plays a data set normally, and under controls that remove the benefit of zooming."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actfer_jax.agent.episode import Sample
from actfer_jax.data.sources import Samples, Unreadable, read_sample
from actfer_jax.evaluation.confidence import confidence
from actfer_jax.evaluation.items import NORMAL
from actfer_jax.evaluation.metrics import Outcome, outcome
from actfer_jax.faces.images import ImageError
from actfer_jax.models.layers import Params
from actfer_jax.parallel import hosts
from actfer_jax.rollout.engine import Query, Rollout, RolloutEngine


@dataclass(frozen=True)
class Control:
    """The changes that a control makes to an episode.

    Attributes:
      answer_now: whether the policy is told to answer at once.
      treatment: what the tools do to zoomed views (`agent.tools.TREATMENTS`).
      arm: what the reply with the aligned face instructs, "zoom" or "answer", as in training (`Environment.reset`).
    """

    answer_now: bool = False
    treatment: str = ""
    arm: str = ""


CONTROLS: dict[str, Control] = {
    "no_tools": Control(answer_now=True),
    "blank_crop": Control(treatment="blank_crop"),
    "low_res_crop": Control(treatment="low_res_crop"),
    "always_zoom": Control(arm="zoom"),
    "never_zoom": Control(arm="answer"),
}


@dataclass(frozen=True)
class Outcomes:
    """What came of the samples that were played.

    Attributes:
      by_control: outcomes under `NORMAL` and under each control, in the order of the samples.
      unreadable: why the picture of each other sample could not be read, with its file.
    """

    by_control: dict[str, list[Outcome]]
    unreadable: list[str]

    @classmethod
    def joined(cls, parts: Iterable["Outcomes"]) -> "Outcomes":
        """All parts of a data set as one.

        Raises:
          ImageError: more than half of its pictures could not be read: what is left is no fair sample.
        """
        by_control, unreadable = dict[str, list[Outcome]](), list[str]()
        for part in parts:
            unreadable += part.unreadable
            for control, outcomes in part.by_control.items():
                by_control.setdefault(control, []).extend(outcomes)
        readable = len(by_control[NORMAL])
        if len(unreadable) > readable:
            raise ImageError(
                f"{len(unreadable)} of {len(unreadable) + readable} pictures cannot be read; the first: {unreadable[0]}"
            )
        return cls(by_control, unreadable)


def evaluate_policy(engine: RolloutEngine, params: Params, samples: Samples, **options: Any) -> Outcomes:
    """Plays one normal episode of every sample, and one under each control; the arguments are those of `play`.

    Raises:
      ImageError: as `Outcomes.joined`.
    """
    return Outcomes.joined(play(engine, params, samples, range(batch_count(samples, engine.queries)), **options))


def batch_count(samples: Samples, queries: int) -> int:
    """How many batches of `queries` samples there are; the last may be smaller."""
    return math.ceil(len(samples) / queries)


def play(
    engine: RolloutEngine,
    params: Params,
    samples: Samples,
    batches: Sequence[int],
    *,
    controls: Sequence[str] = tuple(CONTROLS),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    record: Callable[[int, str, list[Rollout]], None] | None = None,
    between_chunks: Callable[[], None] = lambda: None,
) -> Iterator[Outcomes]:
    """Plays batches of samples, each normally and under every control before the next.

    Each sample is read once. So faces are detected once, and only one batch is held in memory. A sample whose picture
    cannot be read, by some process, is left out.

    Args:
      engine: with a group of one; it takes `engine.queries` samples at a time.
      params: the model's parameters.
      samples: the samples.
      batches: numbers of batches, from 0 to `batch_count` - 1.
      controls: names of `CONTROLS`.
      seed: of the sampling; a greedy engine does not use it.
      progress: called with (episodes finished, episodes).
      record: called with (number, control, rollouts) after a batch was played under a control. Another batch or control
        has another number.
      between_chunks: as for `RolloutEngine.run`.

    Yields:
      What came of each batch.

    Raises:
      ValueError: a control does not exist.
    """
    check_controls(controls)
    played = {NORMAL: Control()} | {control: CONTROLS[control] for control in controls}
    indices = {
        batch: range(batch * engine.queries, min((batch + 1) * engine.queries, len(samples))) for batch in batches
    }
    total, done = sum(map(len, indices.values())) * len(played), 0
    for batch in batches:
        read = [read_sample(samples, index) for index in indices[batch]]
        unreadable = problems_anywhere(read)
        by_control: dict[str, list[Outcome]] = {}
        for place, (control, change) in enumerate(played.items()):
            queries = [
                Query(**vars(sample), index=index, answer_now=change.answer_now)
                for index, sample, problem in zip(indices[batch], read, unreadable, strict=True)
                if isinstance(sample, Sample) and not problem
            ]
            rollouts: list[Rollout] = []
            if queries:
                result = engine.run(
                    params,
                    queries,
                    seed=seed,
                    step=0,
                    forced=[[change.arm]] * len(queries),
                    treatment=change.treatment,
                    between_chunks=between_chunks,
                )
                rollouts = [rollout for (rollout,) in result.rollouts]
            by_control[control] = [
                outcome(rollout.episode, rollout.query.reference, confidence(engine.chat, rollout))
                for rollout in rollouts
            ]
            if record is not None and rollouts:
                record(batch * len(played) + place, control, rollouts)
            done += len(read)
            if progress is not None:
                progress(done, total)
        yield Outcomes(by_control, [problem for problem in unreadable if problem])


def problems_anywhere(samples: Sequence[Sample | Unreadable]) -> list[str]:
    """Why each sample cannot be read by some process, or "". Every process must call this at the same point."""
    told = hosts.gather([sample.problem if isinstance(sample, Unreadable) else "" for sample in samples])
    return [next(filter(None, heard), "") for heard in zip(*told, strict=True)]


def check_controls(controls: Sequence[str]) -> None:
    """Raises ValueError, naming the choices, unless all are names of `CONTROLS`."""
    for control in controls:
        if control not in CONTROLS:
            raise ValueError(f"controls has {control!r}; choose from {', '.join(CONTROLS)}")
