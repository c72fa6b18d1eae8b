"""Every benchmark is what `evaluation.benchmarks.Benchmark` asks for."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from actfer_jax import plugins
from actfer_jax.config import read_config
from actfer_jax.evaluation.benchmarks import BenchmarkConfig
from actfer_jax.evaluation.metrics import Outcome

LABELS = ("anger", "disgust", "fear")


def outcomes(seed: int, count: int = 40) -> list[Outcome]:
    random = np.random.default_rng(seed)
    return [
        Outcome(
            labels=LABELS,
            emotion=str(random.choice(LABELS)),
            predicted=str(random.choice(LABELS)) if random.random() < 0.9 else None,
            answered=True,
            aus=frozenset({4, 9}) if random.random() < 0.8 else None,
            predicted_aus=frozenset({4}),
            strata=("subtle",) if random.random() < 0.5 else (),
            inspected=bool(random.random() < 0.5),
            regions=("mouth",),
            calls=(("zoom", True),),
            turns=2,
            truncated=False,
            choices=LABELS,
            response=f"<answer>{random.choice(LABELS)}</answer>",
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", [*plugins.names("evaluation.benchmarks"), "examples.top_confusions"])
def test_a_benchmark_keeps_the_contract(name):
    config = read_config({"name": name}, BenchmarkConfig, "benchmark")
    benchmark = plugins.load("evaluation.benchmarks", name)
    played = {"normal": outcomes(0), "no_tools": outcomes(1), "blank_crop": outcomes(2, count=1)}
    summaries = {control: benchmark.measure(one, config=config, seed=3) for control, one in played.items()}
    # JSON that reads back to the same, the same again, and every control in the lines that are printed.
    assert json.loads(json.dumps(summaries, allow_nan=False)) == summaries
    assert benchmark.measure(played["normal"], config=config, seed=3) == summaries["normal"]
    assert all(control in benchmark.report(summaries) for control in played)
    drawn = list(benchmark.figures(summaries))
    assert len(drawn) == len(benchmark.FIGURES) and all(isinstance(figure, Figure) for figure in drawn)


def test_confusions_are_counted_as_they_are():
    benchmark = plugins.load("evaluation.benchmarks", "examples.top_confusions")
    played = outcomes(5)
    summary = benchmark.measure(played, config=benchmark.Config(most=1), seed=0)
    wrong = [(one.emotion, one.predicted or "no label") for one in played if one.emotion != one.predicted]
    (pair,) = summary["confusions"]
    assert summary["wrong"] == len(wrong) and pair["times"] == max(map(wrong.count, wrong))
    assert wrong.count((pair["truth"], pair["answer"])) == pair["times"]
