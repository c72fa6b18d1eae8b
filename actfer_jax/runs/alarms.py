"""Alarms: what in the metrics of a run says that it is broken."""

import itertools
import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Annotated, Any, NamedTuple

from actfer_jax.config import Count, Share, at_least, between, check_fields


@dataclass(frozen=True)
class AlarmConfig:
    """When the log warns of a run that is broken, and when such a run stops.

    Attributes:
      window: values of a metric whose mean is judged, where one value says little.
      trend_steps: steps over which entropy, format and accuracy are compared.
      quiet_steps: an alarm is repeated only after its cause has been absent for so many steps.
      zoom_rate: of a class, the least share of episodes that look closer, and the least that do not; at most 0.5.
      truncated: the largest share of episodes with a turn that was cut.
      no_answer: the largest share of episodes without an answer.
      equal_rewards: the largest share of groups in which all rewards are equal.
      tool_success: the least share of the calls of `align_face`, and of `zoom`, that execute.
      mismatch: the largest mean gap between the log-probabilities of sampler and trainer.
      kl: the largest divergence from the reference, in nats a token.
      entropy_left: the least share that entropy may keep of its highest value within `trend_steps`.
      format, accuracy, accuracy_rise: the form alone is learned where the format reward is above the first, accuracy is
        below the second, and accuracy rose by less than the third over `trend_steps`.
      sensitivity: the least change of log-probabilities, in nats a token, where crops are greyed.
      vision_every: steps between two looks at that sensitivity (`training.canary`); 0 for none.
      skipped: updates within `window` steps that are skipped before there is an alarm.
      skipped_in_a_row: steps in a row that skip an update before the run stops.
    """

    window: Count = 10
    trend_steps: Count = 50
    quiet_steps: Count = 20
    zoom_rate: Annotated[float, between(0, 0.5)] = 0.02
    truncated: Share = 0.1
    no_answer: Share = 0.5
    equal_rewards: Share = 0.9
    tool_success: Share = 0.5
    mismatch: Annotated[float, at_least(0)] = 0.1
    kl: Annotated[float, at_least(0)] = 10.0
    entropy_left: Share = 0.5
    format: Share = 0.95
    accuracy: Share = 0.8
    accuracy_rise: Annotated[float, at_least(0)] = 0.01
    sensitivity: Annotated[float, at_least(0)] = 1e-3
    vision_every: Annotated[int, at_least(0)] = 50
    skipped: Count = 2
    skipped_in_a_row: Count = 20

    def __post_init__(self) -> None:
        check_fields(self)


class _Limit(NamedTuple):
    """A limit of metrics.

    Attributes:
      pattern: of the metrics' names.
      key: of `AlarmConfig`, the limit.
      broken: whether a value is outside of it.
      meaning: what that means, or what to do.
      at_once: one value is judged, and not the mean of a window.
    """

    pattern: str
    key: str
    broken: Callable[[float, float], bool]
    meaning: str
    at_once: bool = False


def _one_sided(rate: float, least: float) -> bool:
    return not least <= rate <= 1 - least


_LIMITS = (
    _Limit(
        "zoom_rate/class/*",
        "zoom_rate",
        _one_sided,
        "the policy no longer decides when to look closer at this class",
    ),
    _Limit(
        "length/truncated",
        "truncated",
        operator.gt,
        "give turns more room (config.rollout.turn_tokens), or look at what the policy writes",
    ),
    _Limit(
        "length/no_answer",
        "no_answer",
        operator.gt,
        "look at how episodes end; those without an answer get no reward",
    ),
    _Limit(
        "reward/frac_zero_std",
        "equal_rewards",
        operator.gt,
        "a group whose rewards are equal teaches nothing; try a higher config.rollout.temperature, or other images",
    ),
    _Limit(
        "tool/align_face/success",
        "tool_success",
        operator.lt,
        "look at the tool's replies; no face is found, or the policy calls it wrongly",
    ),
    _Limit(
        "tool/zoom/success",
        "tool_success",
        operator.lt,
        "look at the tool's replies; no face is found, or the policy calls it wrongly",
    ),
    _Limit(
        "mismatch/logp_abs_diff",
        "mismatch",
        operator.gt,
        "sampler and trainer compute different probabilities, so what is updated is not the policy that sampled",
        at_once=True,
    ),
    _Limit(
        "policy/kl",
        "kl",
        operator.gt,
        "the policy is far from the reference; try a lower config.optimizer.learning_rate, or a higher config.loss.kl",
        at_once=True,
    ),
    _Limit(
        "vision/sensitivity_*",
        "sensitivity",
        operator.lt,
        "crops may as well be grey, so their pixels are lost on the way, or the policy does not use them",
        at_once=True,
    ),
)


class Alarms:
    """Watches the metrics of a run for the causes that `AlarmConfig` has limits for.

    Args:
      past: the records of the steps before (`metrics.read_metrics`), which a run that goes on so remembers.
    """

    def __init__(self, config: AlarmConfig, past: Iterable[Mapping[str, Any]] = ()) -> None:
        self._config = config
        self._seen: dict[str, tuple[_Limit, deque[float]]] = {}
        self._entropies: deque[tuple[int, float]] = deque()
        self._scores: deque[tuple[int, float, float]] = deque()
        self._skipped: deque[float] = deque(maxlen=config.window + 1)
        self._last: dict[str, int] = {}
        for record in past:
            self._found(record["step"], record)

    def update(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Takes the metrics of a step; returns the messages of the alarms that they set off."""
        found = self._found(step, metrics)
        quiet = self._config.quiet_steps
        new = [message for cause, message in found.items() if step - self._last.get(cause, -math.inf) > quiet]
        self._last |= dict.fromkeys(found, step)
        return new

    def _found(self, step: int, metrics: Mapping[str, Any]) -> dict[str, str]:
        """The causes that are there, each with its message."""
        numbers = {name: float(value) for name, value in metrics.items() if value is not None}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        checks = self._limits(finite), self._skips(finite), self._entropy(step, finite), self._form(step, finite)
        return dict(itertools.chain(*checks))

    def _limits(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for limit, name in itertools.product(_LIMITS, metrics):
            if fnmatchcase(name, limit.pattern):
                window = 1 if limit.at_once else self._config.window
                self._seen.setdefault(name, (limit, deque(maxlen=window)))[1].append(metrics[name])
        for name, (limit, values) in self._seen.items():
            mean, bound = fmean(values), getattr(self._config, limit.key)
            if len(values) == values.maxlen and limit.broken(mean, bound):
                was = f"{name} is {mean:.3g}" if limit.at_once else f"{name} was {mean:.3g} in {len(values)} steps"
                yield name, f"{was} (config.alarms.{limit.key} is {bound:g}): {limit.meaning}"

    def _skips(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for name in {"policy/skipped_updates", "sft/skipped_updates"} & metrics.keys():
            self._skipped.append(metrics[name])
            first, last = self._skipped[0], self._skipped[-1]
            if last - first >= self._config.skipped:
                rose = f"{name} rose from {first:.0f} to {last:.0f} in {len(self._skipped) - 1} steps"
                yield name, f"{rose}: gradients are not finite; try a lower config.optimizer.learning_rate"

    def _entropy(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if "policy/entropy" not in metrics:
            return
        now = metrics["policy/entropy"]
        self._entropies.append((step, now))
        while self._entropies[0][0] < step - self._config.trend_steps:
            self._entropies.popleft()
        then, highest = max(self._entropies, key=lambda seen: seen[1])
        if now < highest * self._config.entropy_left:
            fell = f"policy/entropy fell from {highest:.3g} at step {then} to {now:.3g}"
            yield "entropy", f"{fell}: the policy may collapse"

    def _form(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if not {"reward/format", "reward/emotion"} <= metrics.keys():
            return
        config = self._config
        self._scores.append((step, metrics["reward/format"], metrics["reward/emotion"]))
        while len(self._scores) > 1 and self._scores[1][0] <= step - config.trend_steps:
            self._scores.popleft()
        if step - self._scores[0][0] < config.trend_steps:
            return
        _, formats, accuracies = zip(*self._scores, strict=True)
        half = len(accuracies) // 2
        before, after = fmean(accuracies[:half]), fmean(accuracies[half:])
        flat = after < config.accuracy and after - before < config.accuracy_rise
        # Nothing is ever right in data without labels; with labels, guesses are right now and then.
        if fmean(formats) > config.format and flat and any(accuracies):
            went = f"reward/emotion went from {before:.3f} to {after:.3f} in {config.trend_steps} steps"
            yield "form", f"reward/format is {fmean(formats):.3f} while {went}: only the form is learned"
