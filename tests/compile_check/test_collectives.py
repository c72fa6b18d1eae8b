"""What compiled programs send, against programs whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from actfer_jax.compile_check.collectives import collectives
from actfer_jax.compile_check.hlo import read

HLO = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %gather = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, dimensions={0}
  ROOT %tuple = (s32[], bf16[8,128]{1,0}) tuple(%i, %y)
}

%less (p.1: (s32[], bf16[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(36)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%unknown (p.2: (s32[], s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer (p.3: (s32[], s32[])) -> (s32[], s32[]) {
  %loop = (s32[], bf16[8,128]{1,0}) while(%t), condition=%less, body=%inner
  %sum = (f32[16]{0}, f32[4,4]{1,0}) all-reduce(%u, %v), channel_id=2, to_apply=%add
  ROOT %tuple = (s32[], s32[]) tuple(%i, %j)
}

%all-reduce-scatter (q: f32[16]) -> f32[4] {
  %all = f32[16]{0} all-reduce(%q), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[4]{0} dynamic-slice(%all, %k), dynamic_slice_sizes={4}
}

%begin (r: bf16[8,128]) -> bf16[32,128] {
  ROOT %gather.1 = bf16[32,128]{1,0} all-gather(%r), channel_id=5, dimensions={0}
}

%finish (r.1: bf16[8,128]) -> bf16[32,128] {
  ROOT %gather.2 = bf16[32,128]{1,0} all-gather(%r.1), channel_id=5, dimensions={0}
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%x), channel_id=3, dimensions={0}
  %done = bf16[8,128]{1,0} all-gather-done(%start)
  %known = (s32[], s32[]) while(%t), condition=%unknown, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %scattered = f32[4]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
  %beside = bf16[32,128]{1,0} fusion(%done), kind=kCustom, calls=%begin
  %after = bf16[32,128]{1,0} fusion(%beside), kind=kCustom, calls=%finish
  %rows = f32[2]{0} reduce-scatter(%h), channel_id=6, replica_groups=[4,2]<=[8], to_apply=%add
  %axes = f32[2]{0} reduce-scatter(%h), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %one = f32[8]{0} all-to-all(%h), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  %two = f32[4]{0} all-to-all(%h), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  ROOT %result = bf16[8,128]{1,0} copy(%done)
}
"""
GATHER, SUM = 32 * 128 * 2, 2 * 2 * 16 * 4


def test_everything_counts_as_often_as_it_runs() -> None:
    found = collectives(read(HLO))
    gathers = 8 * 128 * 2 + 5 * 36 * GATHER + GATHER  # an operation in two parts counts once
    scatters = 16 * 4 + 2 * (2 * 4) + 4 * (2 * 4)
    exchanges = (8 + 4) * 4  # of one channel, as those that are written as such are
    sums = {"all-reduce": 5 * SUM, "reduce-scatter": scatters}
    assert found.total == {"all-gather": gathers, "all-to-all": exchanges, **sums}
    assert found.unknown_loops == []


def test_a_loop_of_unknown_length_counts_once_and_is_named() -> None:
    found = collectives(read(HLO.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")))
    assert found.total["all-reduce"] == SUM
    assert found.unknown_loops == [36 * GATHER + SUM]


def test_a_program_on_one_device_sends_nothing() -> None:
    mesh = Mesh(jax.devices()[:1], ("data",))
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    assert collectives(read(jax.jit(lambda x: x @ x).lower(x).compile().as_text())).total == {}


@pytest.mark.parametrize("text", ["", "HloModule empty"])
def test_text_without_a_program_sends_nothing(text: str) -> None:
    assert collectives(read(text)).total == {}
