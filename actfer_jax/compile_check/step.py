"""The time of a step and of a run, put together from the estimates of its programs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from actfer_jax.compile_check.chips import Chip
from actfer_jax.compile_check.estimate import Filled
from actfer_jax.compile_check.results import Result
from actfer_jax.config import ConfigError
from actfer_jax.training.config import TrainConfig


@dataclass(frozen=True)
class Assumed:
    """What estimates take as given.

    Attributes:
      mean_row: positions that a row has on average; None for as many as it can have.
      mean_prompt: how many of them are the prompt's; None for as many as it can have.
      longest_row: most positions of a row; None for as many as it can have.
      loop_trips: how often loops run of which the program does not say it; 0 if that is not known.
      dollars_per_chip_hour: the price; None for no sum.
    """

    mean_row: int | None = None
    mean_prompt: int | None = None
    longest_row: int | None = None
    loop_trips: int = 0
    dollars_per_chip_hour: float | None = None

    def within(self, config: TrainConfig) -> "Assumed":
        """The same with rows as long as the config has room for, where nothing is assumed of them.

        Raises:
          ConfigError: there is no room for the rows that are assumed.
        """
        room = config.batch.length if config.algorithm == "sft" else config.rollout.max_length
        longest = self.longest_row or room
        mean = self.mean_row or longest
        if not mean <= longest <= room:
            raise ConfigError(
                f"rows have room for {room} positions: --longest_row={longest} is to be at most that, and "
                f"--mean_row={mean} at most --longest_row"
            )
        prompt = self.mean_prompt or min(config.rollout.prompt_tokens, mean)
        if prompt > min(config.rollout.prompt_tokens, mean):
            raise ConfigError(
                f"prompts have room for {config.rollout.prompt_tokens} positions, and --mean_row is {mean}: "
                f"--mean_prompt={prompt} is to be at most that"
            )
        return replace(self, mean_row=mean, mean_prompt=prompt, longest_row=longest)

    @property
    def filled(self) -> Filled | None:
        """Positions of the caches, once `within` has said what is not given."""
        if self.mean_row is None or self.mean_prompt is None:
            return None
        return Filled(self.mean_prompt, self.mean_row - self.mean_prompt)


FULL = Assumed()


def runs(config: TrainConfig, names: Iterable[str], longest_row: int) -> dict[str, float]:
    """How often each program runs in a step.

    Every episode has all of its turns, at their full length, and a reply between two of them.

    Args:
      names: of the programs.
      longest_row: most positions of a row, for which the shortest update is taken that has them.
    """
    if config.algorithm == "sft":
        readings = min(config.traces.readings_steps / config.steps, 1.0)
        return {"readings: update": readings, "update": 1 - readings} if readings else {"update": 1}
    size, rollout = config.batch, config.rollout
    shorter = [int(length[1]) for name in names if (length := re.fullmatch(r"update of (\d+)", name))]
    of = next((f" of {length}" for length in sorted(shorter) if length >= longest_row), "")
    times = {
        "rollout weights": 1,
        "prefill": 1,
        "decode chunk": rollout.max_turns * -(-rollout.turn_tokens // rollout.chunk),
        "slot fill": (rollout.max_turns - 1) * -(-size.queries * size.rollouts // rollout.fill_rows),
        f"log-probs{of}": int(bool(config.loss.importance_cap)),
        f"reference log-probs{of}": int(bool(config.loss.kl)),
        f"update{of}": size.updates,
    }
    return {name: count for name, count in times.items() if count}


def estimate_step(
    config: TrainConfig, names: Iterable[str], results: Iterable[Result], chip: Chip, chips: int, assumed: Assumed
) -> dict[str, Any]:
    """The section `estimate` of the report.

    Args:
      names: all programs of the run.
      results: those that were compiled.

    Returns:
      runs (of each program in a step); mean_row, mean_prompt, longest_row; without (why there is no figure of a step);
      decode_ms_per_token; step_seconds; reckoned (the share of kernels in them); tokens_per_second_per_chip (prompts,
      replies and pictures included); mfu_bound (the model's FLOPs over those that the chips could do); hours and
      dollars of `config.steps` steps. What cannot be told is None.
    """
    assumed = assumed.within(config)
    mean_row, longest_row = assumed.mean_row or 0, assumed.longest_row or 0
    times = runs(config, names, longest_row)
    known = {result.name: result for result in results}
    seconds = {name: known[name].estimated_seconds if name in known else None for name in times}
    decode = known.get("decode chunk", Result("")).estimated_seconds
    report: dict[str, Any] = {
        "runs": times,
        "mean_row": mean_row,
        "mean_prompt": assumed.mean_prompt,
        "longest_row": longest_row,
        "without": [
            f"{name}: {known[name].no_estimate or known[name].error if name in known else 'not compiled'}"
            for name, each in seconds.items()
            if each is None
        ],
        "decode_ms_per_token": None if decode is None else decode / config.rollout.chunk * 1e3,
    }
    report |= dict.fromkeys(("step_seconds", "reckoned", "tokens_per_second_per_chip", "mfu_bound", "hours", "dollars"))
    if report["without"]:
        return report
    parts = [(count, known[name]) for name, count in times.items()]
    step = sum(count * sum(result.estimated.values()) for count, result in parts)
    rows = config.batch.queries * (1 if config.algorithm == "sft" else config.batch.rollouts)
    hours, price = config.steps * step / 3600, assumed.dollars_per_chip_hour
    return report | {
        "step_seconds": step,
        "reckoned": sum(count * result.estimated["reckoned"] for count, result in parts) / step,
        "tokens_per_second_per_chip": rows * mean_row / step / chips,
        "mfu_bound": sum(count * result.teraflops for count, result in parts) / (step * chips * chip.teraflops),
        "hours": hours,
        "dollars": None if price is None else hours * chips * price,
    }


def in_words(report: dict[str, Any], steps: int) -> str:
    """The section `estimate` of the report for a terminal."""
    decode = report["decode_ms_per_token"]
    token = f"decoding takes {decode:.3g} ms a token; " if decode is not None else ""
    if report["without"]:
        return f"{token}a step has no estimate ({'; '.join(report['without'])})."
    run = " + ".join(f"{count:g} x {name}" for name, count in report["runs"].items())
    cost = f", {report['dollars']:,.0f} dollars" if report["dollars"] is not None else ""
    return (
        f"A step takes {report['step_seconds']:.3g} s on the devices, {report['reckoned']:.0%} of it reckoned: {run}.\n"
        f"{token}{report['tokens_per_second_per_chip']:,.0f} tokens a second and chip; {report['mfu_bound']:.0%} of "
        f"the chips' peak; {steps} steps: {report['hours']:,.1f} hours{cost}."
    )
