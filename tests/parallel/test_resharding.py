"""Parameters from mesh to mesh, on eight devices of a second process, against `jax.device_put`."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np

EIGHT = [(data, fsdp, 8 // data // fsdp) for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if data * fsdp <= 8]
PROGRAM = """
import json, re, sys
import jax, numpy as np
from flax import nnx
from jax.sharding import Mesh
from actfer_jax.parallel.resharding import reshard
from actfer_jax.parallel.sharding import AXES, place_parameters

def parameter(names, *shape):
    values = np.random.default_rng(len(names)).normal(size=shape).astype(np.float32)
    return nnx.Param(values, out_sharding=names, eager_sharding=False)

params = nnx.State({
    "mlp": parameter(("layers", "embed", "mlp"), 3, 16, 24),
    "down": parameter(("layers", "mlp", "embed"), 3, 24, 16),
    "table": parameter(("vocab", None), 48, 16),
    "keys": parameter(("layers", "embed", "kv_heads", None), 3, 8, 2, 5),  # fewer heads than devices
    "odd": parameter(("embed", "mlp"), 6, 10),
    "norm": parameter(("layers", None), 3, 7),
})
for source, target in json.loads(sys.argv[1]):
    meshes = [Mesh(np.array(jax.devices()).reshape(shape), AXES) for shape in (source, target)]
    before, expected = (place_parameters(params, mesh) for mesh in meshes)
    program = jax.jit(lambda params: reshard(params, *meshes))
    found = program(before)
    for name, value in expected.items():
        assert found[name].sharding.is_equivalent_to(value[...].sharding, value.ndim), (source, target, name)
        np.testing.assert_array_equal(found[name][...], value[...])
    held = 0
    for name in ("mlp", "down", "table"):
        part = max(tree[name].addressable_shards[0].data.size for tree in (before, expected))
        one = {"x": before[name]}
        text = jax.jit(lambda params: reshard(params, *meshes)).lower(one).compile().as_text()
        sizes = [np.prod([int(size) for size in shape.split(",")]) for shape in re.findall(r"f32\\[([\\d,]+)\\]", text)]
        held = max(held, max(sizes) / part)
    print(json.dumps([source, target, held]), flush=True)
"""


def test_parameters_go_from_mesh_to_mesh() -> None:
    pairs = list(itertools.product(EIGHT, EIGHT))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    chosen = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))[:12]]
    command = [sys.executable, "-c", PROGRAM, json.dumps(chosen)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(chosen)
    # No device holds more of a parameter at any time than before or afterwards.
    assert [report for report in reports if report[2] > 1] == []
