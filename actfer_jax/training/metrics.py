"""What a practitioner plots of a step of reinforcement learning, from its episodes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from actfer_jax import facs
from actfer_jax.agent.tools import TOOLS
from actfer_jax.rollout.engine import Rollout

_ARMS = {"zoom": True, "direct": False}

Scored = tuple[Rollout, dict[str, float]]
"""A rollout and its reward."""


def rollout_metrics(
    rollouts: list[list[Rollout]], scores: list[list[dict[str, float]]], decided_BxG: np.ndarray
) -> dict[str, float]:
    """Metrics of a step from its rollouts [B][G] and their rewards; what a batch cannot tell is left out, never NaN.

    Rollouts that failed on the host are counted, and in nothing else.

    Args:
      decided_BxG: as in `Groups`. What compares the arms, leaves out those that did not decide.
    """
    groups = [
        [one for one in zip(*group, strict=True) if not one[0].failure]
        for group in zip(rollouts, scores, decided_BxG, strict=True)
    ]
    groups = [group for group in groups if group]
    flat = [one for group in groups for one in group]
    played = [rollout for rollout, _, _ in flat]
    arms = [[(rollout, score) for rollout, score, decided in group if decided] for group in groups]
    metrics = _reward_metrics([[score for _, score, _ in group] for group in groups]) | _tool_metrics(played)
    metrics |= _zoom_metrics([one for group in arms for one in group]) | _arm_outcomes(arms)
    regions = Counter(zoom.region for rollout in played for zoom in rollout.episode.zooms)
    metrics |= {
        f"zoom_region/{region}": regions[region] / max(regions.total(), 1) for region in (*facs.REGIONS, "bbox")
    }
    policy_tokens = np.array([sum(rollout.sequence.loss_mask) for rollout in played])
    prompt_tokens = np.array([rollout.sequence.loss_mask.index(True) for rollout in played])
    all_tokens = np.array([len(rollout.sequence.tokens) for rollout in played])
    metrics |= {
        "turns": float(np.mean([len(rollout.episode.turns) for rollout in played])),
        "undecided": float(np.mean([not decided for _, _, decided in flat])),
        "rollout/failed": float(sum(map(len, rollouts)) - len(flat)),
        **_spread("length/policy_tokens", policy_tokens),
        **_spread("length/tool_tokens", all_tokens - policy_tokens - prompt_tokens),
        "length/truncated": float(np.mean([any(turn.truncated for turn in r.episode.turns) for r in played])),
        "length/no_answer": float(np.mean([rollout.episode.answer is None for rollout in played])),
    }
    return metrics


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_min": float(values.min()), f"{name}_max": float(values.max())}


def forced_metrics(rollouts: Sequence[Rollout], forced: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of the rollouts whose arm was to be instructed, the share in which the instruction was not given.

    Args:
      forced: the arm that each rollout [B][G] was to be instructed in: "", "zoom" or "answer".
    """
    asked = [arm for group in forced for arm in group]
    dropped = [not rollout.episode.forced for rollout, arm in zip(rollouts, asked, strict=True) if arm]
    return {"uc/forced_dropped": float(np.mean(dropped))} if dropped else {}


def _reward_metrics(scores: list[list[dict[str, float]]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    flat_scores = [score for group in scores for score in group]
    for part in ("total", "format", "tool", "au", "region", "emotion", "task"):
        values = np.array([score[part] for score in flat_scores])
        metrics |= {f"reward/{part}": float(values.mean()), f"reward/{part}_std": float(values.std())}
    spreads = [np.ptp([score["total"] for score in group]) for group in scores]
    metrics["reward/frac_zero_std"] = float(np.mean(np.array(spreads) < 1e-6))
    return metrics


def _tool_metrics(rollouts: list[Rollout]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    replies = [(turn.reply, turn.seconds) for rollout in rollouts for turn in rollout.episode.turns if turn.reply]
    for tool in TOOLS:
        calls = [(reply.ok, seconds) for reply, seconds in replies if reply.tool == tool]
        metrics[f"tool/{tool}/rate"] = len(calls) / len(rollouts)
        if calls:
            executed, seconds = zip(*calls, strict=True)
            metrics[f"tool/{tool}/success"] = float(np.mean(executed))
            metrics[f"tool/{tool}/latency_p50"] = float(np.percentile(seconds, 50))
            metrics[f"tool/{tool}/latency_p95"] = float(np.percentile(seconds, 95))
    return metrics


def _zoom_metrics(scored: list[Scored]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    rollouts = [rollout for rollout, _ in scored]
    inspected = np.array([rollout.episode.inspected for rollout in rollouts], bool)
    right = np.array([score["emotion"] for _, score in scored])
    classes = np.array([facs.normalise_emotion(rollout.query.reference.emotion or "") for rollout in rollouts])
    for name in sorted(set(classes) - {""}):
        member = classes == name
        metrics[f"zoom_rate/class/{name}"] = float(inspected[member].mean())
        for arm, mask in (("acc_zoom", member & inspected), ("acc_nozoom", member & ~inspected)):
            if mask.any():
                metrics[f"{arm}/class/{name}"] = float(right[mask].mean())
    strata = [rollout.query.reference.strata for rollout in rollouts]
    for name in sorted(set().union(*strata)):
        member = np.array([name in of_one for of_one in strata])
        metrics[f"zoom_rate/{name}"] = float(inspected[member].mean())
    return metrics


def _arm_outcomes(groups: list[list[Scored]]) -> dict[str, float]:
    """The direct-by-zoom table: share of groups whose rollouts of an arm were all wrong, mixed, all right, absent."""
    metrics: dict[str, float] = {}
    for arm, zoomed in _ARMS.items():
        counts: Counter[str] = Counter()
        for group in groups:
            right = [score["emotion"] for rollout, score in group if rollout.episode.inspected == zoomed]
            outcome = "absent" if not right else "mixed" if 0 < np.mean(right) < 1 else "right" if right[0] else "wrong"
            counts[outcome] += 1
        metrics |= {
            f"outcome/{arm}/{name}": counts[name] / len(groups) for name in ("wrong", "mixed", "right", "absent")
        }
    return metrics
