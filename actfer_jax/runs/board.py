"""What TensorBoard shows of a run: few groups with plain names, and a page of charts by question.

`metrics.jsonl` has other names, which stay as they are; docs/metrics.md has both.
"""

import re

from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent

_EVALUATED = r"(accuracy|macro_f1|au_f1_sample|zoom_rate)"
# The first pattern that matches a whole name gives its plain name.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"reward/total", "learning/reward"),
    (r"reward/total_std", "learning/reward, spread"),
    (r"reward/frac_zero_std", "learning/share of groups with equal rewards"),
    (r"reward/(.+)_std", r"learning/reward of \1, spread"),
    (r"reward/(.+)", r"learning/reward of \1"),
    (r"(?:sft|policy)/loss", "learning/loss"),
    (r"learning_rate", "learning/learning rate"),
    (r"adv/(.+)", r"learning/advantage, \1"),
    (r"advantages", "learning/advantages of a step"),
    (r"rewards", "learning/rewards of a step"),
    (r"refill/batches", "learning/batches sampled again"),
    (r"refill/left", "learning/share of groups with equal rewards, after sampling again"),
    (r"zoom_rate/class/(.+)", r"looking/share that looks, class \1"),
    (r"zoom_rate/(.+)", r"looking/share that looks, \1"),
    (r"acc_zoom/class/(.+)", r"looking/accuracy with a look, class \1"),
    (r"acc_nozoom/class/(.+)", r"looking/accuracy without a look, class \1"),
    (r"zoom_region/(.+)", r"looking/share of zooms, \1"),
    (r"outcome/zoom/(.+)", r"looking/groups with a look, \1"),
    (r"outcome/direct/(.+)", r"looking/groups without a look, \1"),
    (r"uc/ema/class/(.+)", r"looking/gain of looking, class \1"),
    (r"uc/weight/class/(.+)", r"looking/weight of the decision, class \1"),
    (r"uc/d", "looking/gain of looking"),
    (r"uc/d_randomised", "looking/gain of looking, assigned arms"),
    (r"uc/(.+)", r"looking/calibration, \1"),
    (r"tool/([^/]+)/rate", r"looking/calls of \1"),
    (r"tool/([^/]+)/success", r"health/success of \1"),
    (r"tool/([^/]+)/latency_(.+)", r"time/\1, \2"),
    (r"turns", "looking/turns"),
    (r"undecided", "health/share undecided"),
    (r"rollout/failed", "health/failed episodes"),
    (r"length/truncated", "health/share cut short"),
    (r"length/no_answer", "health/share without an answer"),
    (r"length/policy_tokens", "health/tokens of the policy"),
    (r"length/policy_tokens_(min|max)", r"health/tokens of the policy, \1"),
    (r"length/tool_tokens", "health/tokens of the tools"),
    (r"length/tool_tokens_(min|max)", r"health/tokens of the tools, \1"),
    (r"(?:sft|policy)/grad_norm", "health/gradient norm"),
    (r"(?:sft|policy)/skipped_updates", "health/skipped updates"),
    (r"(?:sft|policy)/(.+)", r"health/policy, \1"),
    (r"mismatch/(.+)", r"health/sampler against trainer, \1"),
    (r"vision/sensitivity_(.+)", r"health/sensitivity to crops, \1"),
    (r"perf/tokens_per_s", "time/tokens a second"),
    (r"perf/(.+)_s", r"time/seconds, \1"),
    (r"perf/(.+)", r"time/\1"),
    (r"eval(_part)?/gain/(.+)", r"evaluation\1/gain of looking over \2"),
    (rf"eval(_part)?/{_EVALUATED}", r"evaluation\1/\2"),
    (rf"eval(_part)?/{_EVALUATED}/(.+)", r"evaluation\1/\2, \3"),
    (rf"eval(_part)?/([^/]+)/{_EVALUATED}", r"evaluation\1/\3 under \2"),
    (rf"eval(_part)?/([^/]+)/{_EVALUATED}/(.+)", r"evaluation\1/\3 under \2, \4"),
)

LAYOUT: dict[str, dict[str, tuple[str, ...]]] = {
    "Is it learning?": {
        "reward": ("learning/reward$",),
        "its levels": ("learning/reward of (format|tool|au|region|emotion)$",),
        "loss": ("learning/loss$",),
        "groups that teach nothing": ("learning/share of groups",),
        "learning rate": ("learning/learning rate$",),
    },
    "Is it looking?": {
        "share that looks": ("looking/share that looks, (?!class )",),
        "share that looks, by class": ("looking/share that looks, class ",),
        "gain of looking": ("looking/gain of looking(, assigned arms)?$",),
        "accuracy by class, with and without a look": ("looking/accuracy with",),
        "calls": ("looking/calls of ", "looking/turns$"),
        "where": ("looking/share of zooms, ",),
    },
    "Is it broken?": {
        "episodes": ("health/share ", "health/failed episodes$"),
        "tokens of the policy: mean, shortest, longest": ("health/tokens of the policy",),
        "entropy": ("health/policy, entropy$",),
        "distance from the reference": ("health/policy, kl$",),
        "sampler against trainer": ("health/sampler against trainer, ",),
        "gradient norm": ("health/gradient norm$",),
        "skipped updates": ("health/skipped updates$",),
        "tools that succeed": ("health/success of ",),
        "what crops change": ("health/sensitivity to crops, ",),
    },
    "Where does the time go?": {
        "seconds of a step": ("time/seconds, ",),
        "tokens a second": ("time/tokens a second$",),
        "share of the time that counted": ("time/goodput$",),
        "programs compiled": ("time/compilations$",),
        "bytes": ("time/host_rss$", "time/hbm_peak$"),
    },
    "Evaluation": {
        "accuracy": ("evaluation/accuracy( under [^,]+)?$",),
        "gain of looking": ("evaluation/gain of looking",),
        "share that looks": ("evaluation/zoom_rate, ",),
        "accuracy, while training": ("evaluation_part/accuracy( under [^,]+)?$",),
        "gain of looking, while training": ("evaluation_part/gain of looking",),
    },
}
"""The charts of each question, with patterns of plain names: TensorBoard matches them at the start of a name."""


def plain_name(name: str) -> str:
    """The name of a metric in TensorBoard. One that is not ours, such as a user's estimator's, stays as it is."""
    for pattern, plain in _NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(plain)
    return name


def layout() -> Layout:
    """`LAYOUT` as TensorBoard's custom-scalars page reads it."""
    return Layout(
        category=[
            Category(
                title=question,
                chart=[
                    Chart(title=title, multiline=MultilineChartContent(tag=patterns))
                    for title, patterns in charts.items()
                ],
            )
            for question, charts in LAYOUT.items()
        ]
    )
