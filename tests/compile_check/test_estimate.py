"""What programs are said to take, against programs whose time is known, and the sum of a step."""

import dataclasses
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from actfer_jax.compile_check import hlo
from actfer_jax.compile_check.check import NO_TPU, topology_devices
from actfer_jax.compile_check.chips import CHIPS
from actfer_jax.compile_check.collectives import collectives
from actfer_jax.compile_check.estimate import Estimate, Filled, estimate
from actfer_jax.compile_check.hlo import Array
from actfer_jax.compile_check.kernels import Work, reckon
from actfer_jax.compile_check.results import Result
from actfer_jax.compile_check.step import FULL, Assumed, estimate_step, in_words, runs
from actfer_jax.config import ConfigError, read_config
from actfer_jax.models.attention import attention
from actfer_jax.training.config import TrainConfig
from configs import sft, ucgrpo

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
V5E = CHIPS["v5e"]


def cycles(count: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


PROGRAM = f"""\
HloModule jit_f, is_scheduled=true

%fused (a: f32[8]) -> f32[8] {{
  ROOT %inside = f32[8] add(%a, %a), {cycles(10**9)}
}}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %product = f32[8] fusion(%x), kind=kOutput, calls=%fused, {cycles(700)}
  ROOT %tuple = (s32[], f32[8]) tuple(%i, %product)
}}

%five (p.1: (s32[], f32[8])) -> pred[] {{
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

%outer (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %loop = (s32[], f32[8]) while(%t), condition=%five, body=%inner
  ROOT %sum = f32[8] fusion(%loop), kind=kLoop, calls=%fused, {cycles(20)}
}}

%unknown (p.3: (s32[], s32[])) -> pred[] {{
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}

%short (x.1: f32[8]) -> f32[8] {{
  ROOT %one = f32[8] fusion(%x.1), kind=kLoop, calls=%fused, {cycles(3)}
}}

%long (x.2: f32[8]) -> f32[8] {{
  ROOT %two = f32[8] fusion(%x.2), kind=kLoop, calls=%fused, {cycles(90_000)}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8] parameter(0)
  %known = (s32[], f32[8]) while(%t), condition=%unknown, body=%outer, backend_config={{"known_trip_count":{{"n":"3"}}}}
  %chosen = f32[8] conditional(%k, %x, %x), branch_computations={{%short, %long}}
  %gathered = bf16[1024,512] all-gather(%y), channel_id=1, dimensions={{0}}
  %summed = f32[1000] all-reduce(%z), channel_id=2, to_apply=%add
  %named = f32[8] custom-call(%x), custom_call_target="ConcatBitcast"
  ROOT %result = f32[8] copy(%named), {cycles(1)}
}}
"""


def of_text(text: str, loop_trips: int = 0) -> Estimate:
    program = hlo.read(text, loop_trips)
    return estimate(program, V5E, sum(collectives(program).total.values()))


def test_loops_count_as_often_as_they_run_and_of_branches_the_longest() -> None:
    found = of_text(PROGRAM)
    assert found.compiler == pytest.approx((3 * (5 * 700 + 20) + 90_000 + 1) / 1.5e9)
    # A gather sends its result and a sum twice its operand, at 100 GB/s.
    assert found.collectives == pytest.approx((1024 * 512 * 2 + 2 * 1000 * 4) / 100e9)
    assert found.reckoned == 0 and not found.unreckoned
    assert found.seconds == pytest.approx(found.compiler + found.collectives)


def test_a_loop_of_unknown_length_runs_as_often_as_is_given() -> None:
    unknown = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    assert of_text(unknown).seconds is None
    assert of_text(unknown).unreckoned == ("loop known, of unknown length",)
    assert of_text(unknown, loop_trips=3) == of_text(PROGRAM)
    assert of_text(PROGRAM, loop_trips=7) == of_text(PROGRAM)


def test_a_kernel_that_nobody_reckons_leaves_no_figure_and_is_named() -> None:
    found = of_text(PROGRAM.replace("%named = ", "%my_kernel.7 = ").replace("ConcatBitcast", "tpu_custom_call"))
    assert found.seconds is None
    assert found.unreckoned == ("custom call my_kernel.7 (tpu_custom_call)",)


def test_what_slices_send_each_other_leaves_no_figure() -> None:
    program, two_slices = hlo.read(PROGRAM), dataclasses.replace(V5E, link=0)
    assert estimate(program, two_slices, 0).seconds is not None
    assert estimate(program, two_slices, 1).unreckoned == ("what slices send each other",)


def compiled(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = jnp.bfloat16
) -> Estimate:
    """A program as one v5e runs it."""
    for name, value in NO_TPU.items():
        monkeypatch.setenv(name, value)
    chip, devices = topology_devices("v5e:2x2")
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    place = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes]
    text = jax.jit(lambda *given: function(mesh, *given)).lower(*arguments).compile().as_text()
    return estimate(hlo.read(text), chip, 0)


@needs_libtpu
def test_a_product_in_a_loop_takes_its_flops_as_often_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2048

    def products(times: int) -> Callable[..., jax.Array]:
        return lambda mesh, x, w: jax.lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ w), x)

    five, nine = (compiled(monkeypatch, products(times), (size, size), (size, size)) for times in (5, 9))
    assert five.seconds and nine.seconds
    each = (nine.seconds - five.seconds) / 4
    best = 2 * size**3 / 197e12
    assert best < each < 2 * best
    assert five.seconds == pytest.approx(5 * each, rel=0.1)


@needs_libtpu
def test_splash_attention_takes_the_flops_of_the_blocks_that_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, length, heads, kv_heads, dim = 2, 1024, 4, 2, 128

    def loss(causal: bool, mesh: Mesh, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        segments = jnp.ones((rows, length), jnp.int32)
        output = attention(query, key, value, segments, causal=causal, backend="splash", mesh=mesh)
        return output.astype(jnp.float32).sum()

    shapes = (rows, length, heads, dim), (rows, length, kv_heads, dim), (rows, length, kv_heads, dim)
    # Blocks of 512 x 512 in up to 3 kernels, of 2, 3 and 4 products; a causal mask hides one of the 4 blocks.
    for function, kernels, products, blocks in (
        (jax.grad(partial(loss, True), argnums=(1, 2, 3)), 3, 2 + 3 + 4, 3),
        (partial(loss, False), 1, 2, 4),
    ):
        found = compiled(monkeypatch, function, *shapes)
        flops = 2 * products * rows * heads * blocks * 512 * 512 * dim
        steps = kernels * rows * heads * 4
        assert not found.unreckoned
        assert found.reckoned == pytest.approx(flops / (0.4 * 197e12) + steps * 0.35e-6, rel=1e-6)


@pytest.mark.parametrize(("filled", "read"), [(None, 3072), (3072, 3072), (1536, 1536), (1300, 1536)])
@pytest.mark.parametrize("pasts", [64, 8])
def test_attention_to_the_cache_takes_the_bytes_of_what_rows_have_filled(
    filled: int | None, read: int, pasts: int
) -> None:
    """Of each row, or of each group of eight that shares it; 64 queries a step of the grid or those of one past."""
    rows, kv_heads, group, dim, turn = 64, 2, 4, 128, 322

    def work(queries: int) -> Work:
        scalars = [Array("s32", (size,)) for size in (1, pasts, pasts)]
        cache = Array("bf16", (36, 256, kv_heads, 3072, dim))
        new = [Array("f32", (rows, kv_heads, queries, width)) for width in (1, 1, dim)]
        query = Array("bf16", (rows, kv_heads, queries, dim))
        found = reckon("ragged_attention.3", [*scalars, query, *new, cache, cache], new, filled)
        assert found is not None
        return found

    own = rows * kv_heads * group * (dim * 2 + 2 * (dim + 2) * 4)
    decoded = pasts * kv_heads * read * dim * 2 * 2 + own
    assert work(group).seconds(V5E) == pytest.approx(decoded / (0.8 * 819e9) + 4 * 0.35e-6)
    flops = 4 * rows * kv_heads * group * turn * read * dim
    assert work(group * turn).seconds(V5E) == pytest.approx(flops / (0.4 * 197e12) + pasts * 0.35e-6)


def test_what_rows_share_and_what_is_their_own_are_reckoned_at_their_lengths() -> None:
    arrays = "s32[1] s32[8] s32[8] bf16[8,2,4,128] f32[8,2,4,1] f32[8,2,4,1] f32[8,2,4,128]".split()
    arrays += ["bf16[36,8,2,2048,128]"] * 2
    given = "\n".join(f"  %a.{n} = {array} parameter({n})" for n, array in enumerate(arrays))
    call = f"custom-call({', '.join(f'%a.{n}' for n in range(len(arrays)))}), custom_call_target="
    result = "(f32[8,2,4,1], f32[8,2,4,1], f32[8,2,4,128])"

    def seconds(*names: str) -> float:
        calls = "\n".join(
            f'  %ragged_attention.{n} = {result} {call}"tpu_custom_call", metadata={{op_name="jit(f)/{name}/call"}}'
            for n, name in enumerate(names)
        )
        text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{given}\n{calls}\n}}\n"
        return estimate(hlo.read(text), V5E, 0, Filled(1060, 640)).reckoned

    block = 8 * 2 * 256 * 128 * 2 * 2 / (0.8 * 819e9)
    assert seconds("shared") - seconds("own") == pytest.approx((5 - 3) * block)
    assert seconds("shared", "own") == pytest.approx(seconds("shared") + seconds("own"))


def train_config(module: Any, **values: Any) -> TrainConfig:
    raw = module.get_config()
    raw.model.path = "demo"
    for name, value in values.items():
        section, key = name.split("__")
        raw[section][key] = value
    return read_config(raw, TrainConfig, "config")


def result(name: str, seconds: float, reckoned: float = 0.0, teraflops: float = 0.0) -> Result:
    parts = {"compiler": seconds - reckoned, "collectives": 0.0, "reckoned": reckoned}
    return Result(name, teraflops=teraflops, estimated_seconds=seconds, estimated=parts)


ROLLOUT = [result("rollout weights", 0.1), result("prefill", 0.5), result("decode chunk", 1.28, 0.32, 100.0)]
UPDATES = [result("reference log-probs", 4.0), result("update of 2048", 8.0), result("update", 12.0, 2.0, 20_000.0)]


def test_a_step_is_the_sum_of_its_programs() -> None:
    config = train_config(ucgrpo)
    results = [*ROLLOUT, result("slot fill", 0.2), *UPDATES]
    names = [one.name for one in results]
    report = estimate_step(config, names, results, V5E, 16, Assumed(dollars_per_chip_hour=1.2))
    # 4 turns of 192 tokens in chunks of 64; 3 replies to each of 256 rows, 32 at a time.
    assert report["step_seconds"] == pytest.approx(0.1 + 0.5 + 12 * 1.28 + 24 * 0.2 + 4 + 12)
    assert report["decode_ms_per_token"] == pytest.approx(1.28 / 64 * 1e3)
    assert report["reckoned"] == pytest.approx((12 * 0.32 + 2) / report["step_seconds"])
    assert report["tokens_per_second_per_chip"] == pytest.approx(256 * 3072 / report["step_seconds"] / 16)
    assert report["mfu_bound"] == pytest.approx((12 * 100 + 20_000) / (197 * 16 * report["step_seconds"]))
    assert report["hours"] == pytest.approx(500 * report["step_seconds"] / 3600)
    assert report["dollars"] == pytest.approx(report["hours"] * 16 * 1.2)
    assert "36.8 s" in in_words(report, config.steps) and "500 steps" in in_words(report, config.steps)


def test_shorter_rows_take_the_shorter_update() -> None:
    config = train_config(ucgrpo, loss__kl=0.0)
    names = ["update of 1536", "update of 2048", "update"]
    for longest, update in ((1000, "update of 1536"), (1536, "update of 1536"), (1537, "update of 2048")):
        assert runs(config, names, longest)[update] == 1
        assert len([name for name in runs(config, names, longest) if name.startswith("update")]) == 1
    assert runs(config, names, 2049)["update"] == 1


def test_a_step_with_a_part_that_has_no_estimate_has_none_and_says_which() -> None:
    config = train_config(ucgrpo)
    unknown = Result("slot fill", no_estimate="custom call paged.1 (tpu_custom_call)")
    results = [*ROLLOUT, unknown, UPDATES[-1]]
    report = estimate_step(config, [one.name for one in (*results, *UPDATES)], results, V5E, 16, Assumed())
    assert report["step_seconds"] is None and report["mfu_bound"] is None
    assert report["without"] == [
        "slot fill: custom call paged.1 (tpu_custom_call)",
        "reference log-probs: not compiled",
    ]
    assert report["decode_ms_per_token"] == pytest.approx(20.0)
    assert "paged.1" in in_words(report, config.steps)


def test_a_step_of_supervised_training_is_an_update_and_readings_count_by_their_share() -> None:
    config = train_config(sft)
    times = runs(config, ["update"], config.batch.length)
    assert times == {"update": 1}
    readings = train_config(sft, traces__readings_steps=config.steps // 4)
    assert runs(readings, [], 1) == {"readings: update": 0.25, "update": 0.75}
    report = estimate_step(config, ["update"], [result("update", 3.0, 0.0, 10.0)], V5E, 16, Assumed())
    assert report["tokens_per_second_per_chip"] == pytest.approx(config.batch.queries * config.batch.length / 3 / 16)
    assert report["decode_ms_per_token"] is None and report["dollars"] is None


@pytest.mark.parametrize("assumed", [Assumed(longest_row=3073), Assumed(mean_row=2000, longest_row=1999)])
def test_rows_for_which_there_is_no_room_are_refused(assumed: Assumed) -> None:
    with pytest.raises(ConfigError, match=r"room for 3072 positions.*--mean_row"):
        assumed.within(train_config(ucgrpo))


def test_of_rows_the_prompt_is_as_long_as_is_given_or_as_there_is_room_for() -> None:
    config = train_config(ucgrpo)
    assert Assumed(mean_row=1700, mean_prompt=1060).within(config).filled == (1060, 640)
    assert Assumed(mean_row=1700).within(config).filled == (1280, 420)
    assert FULL.within(config).filled == (1280, 1792)
    with pytest.raises(ConfigError, match="1280 positions.*--mean_prompt=1281"):
        Assumed(mean_prompt=1281).within(config)
