"""Stands in for `python -m actfer_jax.train` and `.evaluate`: the same flags and files, in a tenth of a second.

What it writes is a function of the settings alone, so that what a study says of it can be known: a policy of METHOD and
seed s is right on sample n where `truth(METHOD, s)[n]`. It looks at every face of the stratum "subtle".
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

SAMPLES, STEPS = 40, 6
SKILL = {"strong": 0.9, "weak": 0.5}
CLASSES = ("anger", "fear")


def truth(method: str, seed: int, split: str = "test", rate: float = 1.0) -> list[bool]:
    """Whether each sample is right: some are harder for all; the best rate is 2."""
    hard, own = random.Random(split), random.Random(f"{method} {split} {seed}")
    return [own.random() < SKILL[method] + hard.uniform(-0.2, 0.2) - 0.1 * abs(rate - 2) for _ in range(SAMPLES)]


def strata(n: int) -> list[str]:
    return ["subtle" if n % 4 < 2 else "plain"]


def main(arguments: list[str]) -> None:
    program, *flags = arguments
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
    if given["config"] == os.environ.get("STAND_IN_FAILS"):
        sys.exit(f"error: {given['config']} was told to fail")
    if program == "actfer_jax.train":
        train(given, Path(given["workdir"]))
    else:
        evaluate(given, Path(given["out"]))


def train(given: dict[str, str], workdir: Path) -> None:
    (workdir / "policy").mkdir(parents=True, exist_ok=True)
    metrics = workdir / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    with open(metrics, "a") as file:
        for step in range(done + 1, STEPS + 1):
            values = {"reward/total": step / STEPS, "perf/step_s": time.time(), "uc/ema/class/anger": 0.25}
            tokens = {"length/policy_tokens": 30.0, "length/tool_tokens": 10.0}
            file.write(json.dumps({"step": step} | values | tokens) + "\n")
            file.flush()
            time.sleep(float(os.environ.get("STAND_IN_STEP", "0")))
    config = {"batch": {"queries": 2, "rollouts": 4}}
    (workdir / "manifest.json").write_text(json.dumps({"config": config}))
    rate = given.get("config.optimizer.learning_rate", "1")
    (workdir / "policy" / "model.safetensors").write_text(f"{given['config']} {given['config.seed']} {rate}")


def evaluate(given: dict[str, str], out: Path) -> None:
    method, seed, rate = (Path(given["checkpoint"]) / "model.safetensors").read_text().split()
    split = given.get("config.data.split", "test")
    right = truth(method, int(seed), split, float(rate))
    records, index, results = [], [], {}
    looked = ["subtle" in strata(n) for n in range(SAMPLES)]
    rates = {"zoom_rate": 0.5, "zoom_rate_in": {"subtle": 1.0, "plain": 0.0}}
    for control in ("normal", "blank_crop"):
        solved = [is_right and (control == "normal" or not look) for is_right, look in zip(right, looked, strict=True)]
        subtle = sum(solved[n] for n in range(SAMPLES) if looked[n]) / sum(looked)
        results[control] = {
            "accuracy": {"value": sum(solved) / SAMPLES, "low": None, "high": None},
            "strata": {"subtle": {"accuracy": {"value": subtle}}},
            "zoom": {"rate": {"value": sum(looked) / SAMPLES}},
            "classes": dict.fromkeys(CLASSES, rates),
        }
        for n in range(SAMPLES):
            line = {"id": f"{control}/faces/{n}", "dataset": "faces", "image": str(n), "class": CLASSES[n % 2]}
            line |= {"outcome": "right" if solved[n] else "wrong", "looked": looked[n], "strata": strata(n)}
            line["reward"] = {"task": 0.85 * solved[n]}
            records.append(json.dumps(episode(line)) + "\n")
            index.append(json.dumps(line | {"bytes": len(records[-1])}) + "\n")
    (out / "episodes").mkdir(parents=True, exist_ok=True)
    (out / "episodes" / "step-00000000-host0.jsonl").write_text("".join(records))
    (out / "episodes" / "step-00000000-host0.index").write_text("".join(index))
    made = {"dataset": "faces", "split": split, "size": SAMPLES}
    (out / "results.json").write_text(json.dumps({"provenance": made, "results": results}))


def episode(line: dict[str, Any]) -> dict[str, Any]:
    """A record of one turn. Its seconds are another every time, as a tool's are."""
    turn = {"text": line["outcome"], "call": None, "reply": None, "view": None, "seconds": time.time() % 1}
    record = {key: line[key] for key in ("id", "dataset", "image", "reward")}
    record |= dict.fromkeys(("token_ids", "loss_mask", "logprobs", "raw_logprobs", "prediction", "reference"))
    return record | {"turns": [turn], "advantage": 0.0, "images": []}


if __name__ == "__main__":
    main(sys.argv[1:])
