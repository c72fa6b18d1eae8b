"""What a run takes on one GPU, as it is reckoned without a compiler."""

import ml_collections
import pytest

from actfer_jax.compile_check import gpu
from actfer_jax.compile_check.check import GIB, load_config
from configs import sft, ucgrpo


def reckoned(raw: ml_collections.ConfigDict, topology: str) -> dict[str, dict]:
    report, _ = gpu.report(*load_config(raw), topology)
    return {program["name"]: program for program in report["programs"]}


@pytest.mark.parametrize("module", [ucgrpo, sft])
def test_adapters_of_4b_fit_a_gpu_of_24_gb_with_every_key_of_the_variant(module):
    programs = reckoned(module.get_config("one_device"), "gpu:24")
    assert all(program["fits"] for program in programs.values())
    # 36 layers of keys and values, 8 heads of 128 numbers, 2 bytes each: at 1280 positions of a prompt, which 8 rows
    # share in training, and at 1792 of each row.
    positions = 2 * 1280 + 16 * 1792 if module is ucgrpo else 8 * (1280 + 1792)
    decode = programs["decode chunk" if module is ucgrpo else "evaluation: decode chunk"]
    weights, cache = 2 * (4.438e9 + 33.0e6), positions * 36 * 2 * 8 * 128 * 2
    assert decode["arguments"] == pytest.approx(weights + cache, rel=1e-3)
    # The base is there once: beside the weights of rollouts are the adapters in float32 and both moments of Adam.
    assert sum(decode["others"].values()) < 33.1e6 * 4 * 3.6


def test_a_step_that_was_measured_is_reckoned_at_what_it_took():
    """74 GiB on an H200 (docs/results.md), when a group did not yet share the start of its rows."""
    raw = ucgrpo.get_config()
    raw.batch.queries = raw.batch.microbatches = 4
    raw.rollout.fill_rows, raw.rollout.prompt_tokens, raw.rollout.max_length = 16, 512, 2048
    raw.batch.length, raw.batch.length_buckets = 2048, ()
    raw.mesh.rollout, raw.loss.kl, raw.evaluation = (-1, 1, 1), 0.0, None
    programs = reckoned(raw, "gpu:141")
    assert max(program["total"] for program in programs.values()) / GIB == pytest.approx(74, rel=0.05)
