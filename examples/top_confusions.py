"""A benchmark of your own: which emotions are taken for which.

    python -m actfer_jax.evaluate --config=configs/eval/synth_faces.py \\
        --config.benchmark.name=examples.top_confusions --config.benchmark.most=3 --checkpoint=demo --out=confusions
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from actfer_jax.config import Count
from actfer_jax.evaluation.benchmarks import BenchmarkConfig
from actfer_jax.evaluation.metrics import Outcome, Summary

FIGURES = ()


@dataclass(frozen=True)
class Config(BenchmarkConfig):
    """Its constants.

    Attributes:
      most: how many confusions are listed, at least 1.
    """

    most: Count = 5


def measure(outcomes: Sequence[Outcome], *, config: Config, seed: int) -> Summary:
    known = [outcome for outcome in outcomes if outcome.emotion is not None]
    wrong = Counter((outcome.emotion, outcome.predicted or "no label") for outcome in known if not outcome.correct)
    pairs = [{"truth": truth, "answer": answer, "times": n} for (truth, answer), n in sorted(wrong.items())]
    pairs.sort(key=lambda pair: -pair["times"])
    return {"n": len(known), "wrong": sum(wrong.values()), "confusions": pairs[: config.most]}


def report(summaries: Mapping[str, Summary]) -> str:
    lines = []
    for control, summary in summaries.items():
        lines.append(f"{control}: {summary['wrong']} of {summary['n']} are wrong")
        lines += [f"  {pair['truth']} taken for {pair['answer']}: {pair['times']}" for pair in summary["confusions"]]
    return "\n".join(lines)


def figures(summaries: Mapping[str, Summary]) -> Sequence[Figure]:
    return ()
