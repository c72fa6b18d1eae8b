"""What a practitioner plots of a step of reinforcement learning, from its episodes. Names are those of TensorBoard."""

from collections import Counter

import numpy as np

from actfer_jax import facs
from actfer_jax.agent.tools import TOOLS
from actfer_jax.rollout.engine import Rollout

_ARMS = {"zoom": True, "direct": False}


def rollout_metrics(rollouts: list[list[Rollout]], scores: list[list[dict[str, float]]]) -> dict[str, float]:
    """Metrics of a step from its rollouts [B][G] and their rewards; what a batch cannot tell is left out, never NaN."""
    flat = [rollout for group in rollouts for rollout in group]
    flat_scores = [score for group in scores for score in group]
    metrics = _reward_metrics(scores, flat_scores) | _tool_metrics(flat) | _zoom_metrics(flat, flat_scores)
    metrics |= _arm_outcomes(rollouts, scores)
    policy_tokens = np.array([sum(rollout.sequence.loss_mask) for rollout in flat])
    prompt_tokens = np.array([rollout.sequence.loss_mask.index(True) for rollout in flat])
    all_tokens = np.array([len(rollout.sequence.tokens) for rollout in flat])
    metrics |= {
        "turns": float(np.mean([len(rollout.episode.turns) for rollout in flat])),
        "length/policy_tokens": float(policy_tokens.mean()),
        "length/tool_tokens": float((all_tokens - policy_tokens - prompt_tokens).mean()),
        "length/truncated": float(np.mean([any(turn.truncated for turn in r.episode.turns) for r in flat])),
        "length/no_answer": float(np.mean([rollout.episode.answer is None for rollout in flat])),
    }
    return metrics


def _reward_metrics(scores: list[list[dict[str, float]]], flat_scores: list[dict[str, float]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for part in ("total", "format", "tool", "au", "region", "emotion", "task"):
        values = np.array([score[part] for score in flat_scores])
        metrics |= {f"reward/{part}": float(values.mean()), f"reward/{part}_std": float(values.std())}
    totals = np.array([[score["total"] for score in group] for group in scores])
    metrics["reward/frac_zero_std"] = float((np.ptp(totals, axis=1) < 1e-6).mean())
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


def _zoom_metrics(rollouts: list[Rollout], scores: list[dict[str, float]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    inspected = np.array([rollout.episode.inspected for rollout in rollouts])
    right = np.array([score["emotion"] for score in scores])
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
    regions = Counter(zoom.region for rollout in rollouts for zoom in rollout.episode.zooms)
    for region in (*facs.REGIONS, "bbox"):
        metrics[f"zoom_region/{region}"] = regions[region] / max(regions.total(), 1)
    return metrics


def _arm_outcomes(rollouts: list[list[Rollout]], scores: list[list[dict[str, float]]]) -> dict[str, float]:
    """The direct-by-zoom table: share of groups whose rollouts of an arm were all wrong, mixed, all right, absent."""
    metrics: dict[str, float] = {}
    for arm, zoomed in _ARMS.items():
        counts: Counter[str] = Counter()
        for group, group_scores in zip(rollouts, scores, strict=True):
            right = [
                score["emotion"]
                for rollout, score in zip(group, group_scores, strict=True)
                if rollout.episode.inspected == zoomed
            ]
            outcome = "absent" if not right else "mixed" if 0 < np.mean(right) < 1 else "right" if right[0] else "wrong"
            counts[outcome] += 1
        metrics |= {
            f"outcome/{arm}/{name}": counts[name] / len(rollouts) for name in ("wrong", "mixed", "right", "absent")
        }
    return metrics
