"""Plays a data set normally, and under controls that remove the benefit of zooming."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actfer_jax.data.sources import Source, check_reference
from actfer_jax.evaluation.metrics import Outcome, outcome
from actfer_jax.models.layers import Params
from actfer_jax.rollout.engine import Query, Rollout, RolloutEngine


@dataclass(frozen=True)
class Control:
    """The changes that a control makes to an episode.

    Attributes:
      answer_now: whether the policy is told to answer at once.
      treatment: what the tools do to zoomed views (`agent.tools.TREATMENTS`).
    """

    answer_now: bool = False
    treatment: str = ""


NORMAL = "normal"
"""The name of the unchanged episodes."""

CONTROLS: dict[str, Control] = {
    "no_tools": Control(answer_now=True),
    "blank_crop": Control(treatment="blank_crop"),
    "low_res_crop": Control(treatment="low_res_crop"),
}


def evaluate_policy(
    engine: RolloutEngine,
    params: Params,
    samples: Source,
    *,
    controls: Sequence[str] = tuple(CONTROLS),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    record: Callable[[str, list[Rollout]], None] | None = None,
    between_chunks: Callable[[], None] = lambda: None,
) -> dict[str, list[Outcome]]:
    """Plays one normal episode of every sample, and one under each control.

    Each batch of samples is read once, and played under every control before the next. So faces are detected once, and
    only one batch is held in memory.

    Args:
      engine: with a group of one.
      params: the model's parameters.
      samples: the samples to play, in order.
      controls: names of `CONTROLS`.
      seed: of the sampling; a greedy engine does not use it.
      progress: called with (episodes finished, episodes).
      record: called with (control, rollouts) after every batch.
      between_chunks: as for `RolloutEngine.run`.

    Returns:
      The outcomes under `NORMAL` and under each control, in the order of the samples.

    Raises:
      ValueError: a control does not exist.
    """
    check_controls(controls)
    played = {NORMAL: Control()} | {control: CONTROLS[control] for control in controls}
    outcomes: dict[str, list[Outcome]] = {control: [] for control in played}
    total, done = len(samples) * len(played), 0
    for start in range(0, len(samples), engine.queries):
        indices = range(start, min(start + engine.queries, len(samples)))
        batch = [check_reference(samples[index]) for index in indices]
        for control, change in played.items():
            queries = [
                Query(**vars(sample), index=index, answer_now=change.answer_now)
                for index, sample in zip(indices, batch, strict=True)
            ]
            result = engine.run(
                params, queries, seed=seed, step=0, treatment=change.treatment, between_chunks=between_chunks
            )
            rollouts = [rollout for (rollout,) in result.rollouts]
            outcomes[control] += [outcome(rollout.episode, rollout.query.reference) for rollout in rollouts]
            if record is not None:
                record(control, rollouts)
            done += len(batch)
            if progress is not None:
                progress(done, total)
    return outcomes


def check_controls(controls: Sequence[str]) -> None:
    """Raises ValueError, naming the choices, unless all are names of `CONTROLS`."""
    for control in controls:
        if control not in CONTROLS:
            raise ValueError(f"controls has {control!r}; choose from {', '.join(CONTROLS)}")
