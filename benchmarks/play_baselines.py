"""Does every config of a published method train, and does dynamic sampling do the same when it is interrupted?

    python benchmarks/play_baselines.py

Trains the small policy for three steps by each file of configs/baselines. DAPO's run is done again in two starts, and
`python -m actfer_jax.diff` must find no difference. With ACTFER_QWEN3_VL, a directory with a Qwen3-VL's tokenizer,
template and processor, each method then takes a step at the sizes of Qwen3-VL-4B with a model of small width, on random
weights, so that DAPO samples all groups again. Prints a line a run; exits with 1 where one fails. Takes a quarter of
an hour on two cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actfer_jax.runs.metrics import read_metrics

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from flagship import WORDS, write_narrow_model  # noqa: E402

SHOWN = ("reward/total", "policy/loss", "policy/grad_norm", "refill/batches", "refill/left")
COMMON = ("--config.evaluation=None", "--config.checkpoint.every=1", "--config.alarms.vision_every=0")
SMALL = (
    "--config.batch.queries=4",
    "--config.batch.rollouts=4",
    "--config.data.size=64",
    "--config.rollout.fill_rows=4",
)
TRUE = (
    *(
        "--config.batch.queries=2",
        "--config.batch.rollouts=2",
        "--config.batch.microbatches=2",
        "--config.data.size=16",
    ),
    *("--config.rollout.fill_rows=2", "--config.mesh.rollout=(-1,1,1)", "--config.model.initialise=random"),
    "--config.rollout.turn_tokens=16",  # of nonsense
)


def run(*arguments: str) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return done.stdout


def train(config: Path, variant: str, workdir: Path, *arguments: str) -> None:
    began = time.perf_counter()
    name = f"--config={config.relative_to(ROOT)}{variant}"
    run("actfer_jax.train", name, f"--workdir={workdir}", *COMMON, *arguments)
    metrics = read_metrics(workdir)[-1]
    shown = " ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
    print(f"{workdir.name:34} {time.perf_counter() - began:4.0f} s  step {metrics['step']}: {shown}", flush=True)


def main() -> None:
    configs = sorted((ROOT / "configs" / "baselines").glob("*.py"))
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{here}/programs"
        cache = f"--config.data.cache_directory={here}/data"
        for config in configs:
            train(config, ":demo", here / config.stem, cache, *SMALL, "--config.steps=3")
        dapo = ROOT / "configs" / "baselines" / "dapo.py"
        for steps in (1, 3):
            train(dapo, ":demo", here / "dapo, interrupted", cache, *SMALL, f"--config.steps={steps}")
        print(run("actfer_jax.diff", f"{here}/dapo", f"{here}/dapo, interrupted"), end="")
        if WORDS:
            model = f"--config.model.path={write_narrow_model(here / 'narrow')}"
            for config in configs:
                more = ("--config.estimator.refills=1",) if config == dapo else ()
                workdir = here / f"{config.stem}, 4B's words and sizes"
                train(config, "", workdir, cache, *TRUE, model, "--config.steps=1", *more)


if __name__ == "__main__":
    main()
