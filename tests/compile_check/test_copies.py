"""What the TPU's compiler copies in the decode program of Qwen3-VL-4B: no weight, and nothing of the cache."""

import dataclasses
import importlib.util
import re
from math import prod

import jax
import pytest

from actfer_jax.compile_check import check
from actfer_jax.config import read_config
from actfer_jax.models import Qwen3VLConfig
from actfer_jax.parallel.sharding import make_meshes
from actfer_jax.training.config import TrainConfig
from configs import ucgrpo

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
COPIES = ("copy", "copy-start", "dynamic-slice", "slice", "transpose")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%[\w.\-]+ = \(?(\w+)\[([\d,]*)\].*? ([a-z][a-z\-]*)\(")
BYTES = {"bf16": 2, "f32": 4}


def dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In whatever order, without those of one element."""
    return tuple(sorted(size for size in shape if size > 1))


def copied_bytes(text: str, arrays: list[tuple[int, ...]]) -> int:
    """Bytes that the instructions of a compiled program copy of arrays, or of layers of them, each counted once."""
    wanted = {dimensions(shape) for array in arrays for shape in (array, array[1:])}
    roots, fused, copies, name = {}, set(), [], ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            name = head[1]
        elif found := INSTRUCTION.match(line):
            root, dtype, sizes, operation = found.groups()
            shape = tuple(int(size) for size in sizes.split(",") if size)
            called = re.search(r"fusion\(.*calls=%?([\w.\-]+)", line)
            if called:
                fused.add(called[1])
            if root:
                roots[name] = operation
            if dimensions(shape) in wanted:
                copies.append((name, operation, called and called[1], BYTES.get(dtype, 1) * prod(shape)))
    return sum(
        size
        for name, operation, called, size in copies
        if name not in fused and (roots[called] if called else operation) in COPIES
    )


TEXT = """
%fused_slice (param_0: bf16[36,2560,1024], param_1: s32[]) -> bf16[1,2560,1024] {
  %param_0 = bf16[36,2560,1024]{1,2,0:T(8,128)(2,1)} parameter(0)
  ROOT %dynamic-slice.1 = bf16[1,2560,1024]{1,2,0:T(8,128)(2,1)S(1)} dynamic-slice(%param_0, %param_1)
}

%fused_product (param_0: bf16[36,2560,1024], param_1: s32[], param_2: bf16[64,2560]) -> bf16[64,1024] {
  %dynamic-slice.2 = bf16[1,2560,1024]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1)
  ROOT %convolution.1 = bf16[64,1024]{1,0:T(8,128)(2,1)} convolution(%param_2, %dynamic-slice.2)
}

ENTRY %main (param_0: bf16[36,2560,1024]) -> bf16[64,1024] {
  %copy.1 = bf16[36,2560,1024]{1,2,0:T(8,128)(2,1)} copy(%param_0)
  %fusion.1 = bf16[1,2560,1024]{1,2,0:T(8,128)(2,1)S(1)} fusion(%copy.1, %i), kind=kLoop, calls=%fused_slice
  ROOT %fusion.2 = bf16[64,1024]{1,0} fusion(%param_0, %i, %x), kind=kOutput, calls=%fused_product
}
"""


def test_a_slice_within_a_product_is_no_copy():
    """Of a stack in another layout, and of one layer out of it."""
    assert copied_bytes(TEXT, [(36, 2560, 1024)]) == 37 * 2560 * 1024 * 2
    assert copied_bytes(TEXT.replace("copy.1 = bf16[36,2560,1024]", "copy.1 = bf16[64,1024]"), [(36, 2560, 1024)]) == (
        2560 * 1024 * 2
    )
    assert copied_bytes(TEXT, [(36, 2432, 2560)]) == 0


@needs_libtpu
@pytest.mark.slow
def test_decoding_copies_no_weights_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the flagship's width, with tensor 4. A loop of few layers shows what all do (of two, all fit in VMEM)."""
    for name, value in check.NO_TPU.items():
        monkeypatch.setenv(name, value)
    raw = ucgrpo.get_config()
    raw.model.path = str(check.PUBLISHED)
    raw.batch.queries = 8
    sizes = Qwen3VLConfig.from_json(check.PUBLISHED)
    text = dataclasses.replace(sizes.text, num_hidden_layers=8)
    vision = dataclasses.replace(sizes.vision, depth=2, deepstack_visual_indexes=(1,))
    _, devices = check.topology_devices("v5e:2x2")
    config = read_config(raw, TrainConfig, "config")
    programs = check.programs(
        config, dataclasses.replace(sizes, text=text, vision=vision), make_meshes(config.mesh, devices)
    )
    decode = next(program for program in programs if program.name == "decode chunk")
    weights, state = decode.arguments
    arrays = [*jax.tree.leaves(weights["language_model"]["layers"]), *state.cache, *state.prompt]
    compiled = decode.jitted.lower(*decode.arguments).compile().as_text()
    assert "ragged_attention" in compiled
    shapes = [x.sharding.shard_shape(x.shape) for x in arrays if x.ndim > 2]
    assert len(shapes) == 11
    assert copied_bytes(compiled, shapes) == 0
