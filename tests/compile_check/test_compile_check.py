"""The check of a run for a TPU pod that is not there, as a person starts it, and its formulas against counts."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from actfer_jax.compile_check import check as compile_check
from actfer_jax.compile_check import flops
from actfer_jax.compile_check.results import Result
from actfer_jax.config import ConfigError, read_config
from actfer_jax.models import Qwen3VL, Qwen3VLConfig, demo_checkpoint
from actfer_jax.parallel.sharding import make_meshes
from actfer_jax.rollout.batch import ViewSlots, abstract_batch, episode_log_probs
from actfer_jax.training.config import TrainConfig, row_layout
from configs import ucgrpo

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "actfer_jax.compile_check", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)


@needs_libtpu
@pytest.mark.slow
def test_every_program_of_a_run_is_compiled_and_measured(tmp_path: Path) -> None:
    """But for those of the evaluation, which `test_a_run_that_cannot_fit_is_refused_by_name` compiles."""
    report = tmp_path / "report.json"
    names = ["rollout weights", "prefill", "decode chunk", "slot fill", "reference log-probs", "update"]
    done = run(
        "--config=configs/ucgrpo.py:demo",
        "--topology=v5e:2x2",
        f"--programs={','.join(names)}",
        f"--json={report}",
        "--loop_trips=1",  # float32 has no kernel: attention to the cache is a loop as long as the longest row
        "--config.loss.kl=0.1",
        "--config.mesh.rollout=(2,1,2)",
        "--config.batch.chunk=512",
        "--config.batch.queries=4",
        "--config.batch.rollouts=4",
        "--config.rollout.max_length=224",
        "--config.batch.length=224",
        "--config.batch.length_buckets=()",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["chips"] == 4 and found["meshes"] == {"update": [1, 4, 1], "rollout": [2, 1, 2]}
    programs = {program["name"]: program for program in found["programs"]}
    reference = found["kept_bytes"]["reference"]
    assert reference > 0
    assert list(programs) == names
    for name, program in programs.items():
        assert program["others"].get("reference", 0) == (0 if "reference log-probs" in name else reference)
        assert program["fits"] and not program["error"]
        assert name in done.stdout
        assert program["total"] == program["peak"] + sum(program["others"].values())
    # Float32 parameters and both moments, a quarter on each chip, but for norms and tiles that are not full.
    parameters = found["kept_bytes"]["params"]
    assert found["kept_bytes"]["optimizer"] == pytest.approx(2 * parameters, rel=0.01)
    assert programs["update"]["arguments"] >= 3 * parameters
    # Keys and values of 4 layers and 2 heads of 32, in float32: of 4 prompts, and of what 16 rows add to them. Divided
    # by rows and by heads.
    assert found["kept_bytes"]["cache"] == 2 * 4 * 2 * 32 * 4 * (4 * 32 + 16 * 224) // 4
    assert found["kept_bytes"]["evaluation: cache"] == 2 * 4 * 2 * 32 * 4 * 72 * (32 + 224) // 4
    assert programs["update"]["collectives"]["all-gather"] > 0
    assert programs["update"]["teraflops"] > programs["reference log-probs"]["teraflops"] > 0
    # 16 rows of up to 3 turns, of 32 tokens each and decoded in chunks of 16, and a fill of 32 rows between two turns.
    estimated = {name: program["estimated_seconds"] for name, program in programs.items()}
    times = {
        "rollout weights": 1,
        "prefill": 1,
        "decode chunk": 6,
        "slot fill": 2,
        "reference log-probs": 1,
        "update": 1,
    }
    assert found["estimate"]["runs"] == times
    step = sum(count * estimated[name] for name, count in times.items())
    assert found["estimate"]["step_seconds"] == pytest.approx(step)
    assert found["estimate"]["decode_ms_per_token"] == pytest.approx(estimated["decode chunk"] / 16 * 1e3)
    assert estimated["update"] > estimated["reference log-probs"] > 0
    assert f"A step takes {step:.3g} s" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_one_program_for_two_slices(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run(
        "--config=configs/ucgrpo.py:demo",
        "--topology=2xv5e:2x2",
        "--programs=rollout weights",
        f"--json={report}",
        "--config.mesh.slices=2",
        "--config.mesh.update=(2,-1,1)",
        "--config.loss.kl=0.1",
        "--config.loss.reference_offload=True",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["chips"] == 8 and found["meshes"]["update"] == [2, 4, 1]
    assert [program["name"] for program in found["programs"]] == ["rollout weights"]
    assert "reference" not in found["kept_bytes"]
    done = run("--config=configs/ucgrpo.py:demo", "--topology=v5e:2x2", "--programs=updates")
    assert done.returncode == 1
    assert "'updates'" in done.stderr and "decode chunk, slot fill" in done.stderr and "Traceback" not in done.stderr


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.slow
def test_the_compiler_refuses_what_is_said_not_to_fit(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small training step beside an array that fills what is left of the memory, or a little more."""
    for name, value in compile_check.NO_TPU.items():
        monkeypatch.setenv(name, value)
    chip, devices = compile_check.topology_devices(topology)
    on_chip = jax.sharding.SingleDeviceSharding(devices[0])

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=on_chip)

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda x, weight: (jnp.tanh(x @ weight.astype(x.dtype)), None))
        return jax.lax.scan(layer, x, weights)[0].astype(jnp.float32).sum()

    def step(weights: jax.Array, pieces: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        add = lambda total, piece: (total + jax.grad(loss)(weights, piece), None)  # noqa: E731
        return weights - jax.lax.scan(add, jnp.zeros_like(weights), pieces)[0], rest + 1

    def check(rest: float, others: float = 0.0) -> Result:
        sizes = array(12, 2048, 2048), array(4, 8192, 2048, dtype=jnp.bfloat16), array(int(rest * 2**28))
        jitted = jax.jit(step, donate_argnums=(0, 2))
        kept = {"kept": array(int(others * 2**28))}
        return compile_check.check(compile_check.Program("step", jitted, sizes, kept, 0.0, ""), chip)

    own = check(1.0).peak / 2**30 - 1
    fits, refused = check(chip.hbm - own - 0.1), check(chip.hbm - own + 0.1)
    assert fits.fits and not fits.error
    assert not refused.fits and refused.error
    assert check(1.0, others=chip.hbm - own - 1.1).fits
    assert not check(1.0, others=chip.hbm - own - 0.9).fits


@needs_libtpu
@pytest.mark.slow
def test_a_run_that_cannot_fit_is_refused_by_name() -> None:
    done = run("--config=configs/sft.py:demo", "--topology=v5e:2x2", "--config.batch.queries=262144")
    assert done.returncode == 1
    assert "error: update does not fit on v5e:2x2" in done.stderr
    for name in ("rollout weights", "prefill", "decode chunk", "slot fill"):
        assert re.search(rf"^evaluation: {name} .* fits ", done.stdout, re.MULTILINE)
    assert "config.batch.microbatches=4" in done.stderr
    assert "Traceback" not in done.stderr


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e-16", "v5e:3x3", "h100:2x2", "0xv5e:2x2"])
@pytest.mark.slow
def test_an_unknown_topology_is_named_with_those_that_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in compile_check.NO_TPU.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"'{name}' is not known.* v5e:4x4"):
        compile_check.topology_devices(name)


def test_without_the_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install libtpu"):
        compile_check.topology_devices("v5e:2x2")


def test_a_run_has_programs_for_each_length_and_for_its_evaluation() -> None:
    raw = ucgrpo.get_config("demo")
    raw.loss.kl, raw.loss.importance_cap, raw.batch.length, raw.batch.length_buckets = 0.1, 2.0, 208, (144, 128)
    config = read_config(raw, TrainConfig, "config")
    model_config = Qwen3VLConfig.from_json(config.model.config_file)
    found = {
        one.name: one for one in compile_check.programs(config, model_config, make_meshes(config.mesh, jax.devices()))
    }
    rollout = ["prefill", "decode chunk", "slot fill"]
    lengths = [" of 128", " of 144", ""]
    updates = [f"{name}{of}" for of in lengths for name in ("log-probs", "reference log-probs", "update")]
    # The evaluation's weights are cast by the program of rollouts.
    assert list(found) == ["rollout weights", *rollout, *updates, *(f"evaluation: {name}" for name in rollout)]
    shortest, middle, longest = (found[f"update{of}"].flops for of in lengths)
    assert longest > middle > shortest > found["log-probs of 128"].flops > 0


def test_the_rows_of_the_flagship_suit_the_attention_kernel_and_hold_every_episode() -> None:
    config, _ = compile_check.load_config(ucgrpo.get_config())
    layout = row_layout(config.batch, config.rollout, None)
    assert (layout.group_size, layout.prefix) == (8, config.rollout.prompt_tokens)
    assert layout.lengths == (*config.batch.length_buckets, config.batch.length)
    # Splash attention takes multiples of 128, of queries and of keys.
    assert all(length % 128 == (length - layout.prefix) % 128 == 0 for length in layout.lengths)
    calls = (config.rollout.max_turns - 1) * (config.rollout.turn_tokens + 1 + config.rollout.reply_tokens)
    assert layout.prefix + 1 + calls + config.rollout.turn_tokens <= layout.lengths[-1]


def products(jaxpr: Any) -> float:
    """Multiplications and additions of all matrix products in a program, loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * float(np.prod(equation.outvars[0].aval.shape)) * float(inner)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner_jaxpr = getattr(part, "jaxpr", part)
                if hasattr(inner_jaxpr, "eqns"):
                    total += products(inner_jaxpr) * equation.params.get("length", 1)
    return total


def test_the_formula_counts_every_matrix_product() -> None:
    config = Qwen3VLConfig.from_json(Path(demo_checkpoint()) / "config.json")
    model = nnx.eval_shape(lambda: Qwen3VL(config, attention="xla", unroll=1, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model, nnx.Param)
    rows, groups, length, prefix = 4, 2, 65, 16
    slots = ViewSlots(scene=36, view=24, views=2)
    batch = abstract_batch(rows, rows // groups, length, slots, config, prefix=prefix, policy_tokens=32)

    def program(params: nnx.State, batch: Any) -> jax.Array:
        return episode_log_probs(nnx.merge(graph, params), batch, temperature=1.0, banned_V=None, chunk=64)[0]

    text = config.text
    pairs = 4 * text.num_hidden_layers * text.num_attention_heads * text.head_dim
    # The plain kernel computes masked pairs too.
    masked = rows * pairs * ((length - prefix) * length - (length * (length + 1) - prefix * (prefix + 1)) / 2)
    masked += groups * pairs * (prefix**2 - prefix * (prefix + 1) / 2)
    counted = products(jax.make_jaxpr(program)(params, batch).jaxpr)
    assert flops.forward(config, batch) + masked == pytest.approx(counted, rel=1e-6)


def test_the_formulas_of_a_rollout_count_every_matrix_product() -> None:
    config = read_config(ucgrpo.get_config("demo"), TrainConfig, "config")
    model_config = Qwen3VLConfig.from_json(config.model.config_file)
    meshes = make_meshes(config.mesh, jax.devices())
    programs = {program.name: program for program in compile_check.programs(config, model_config, meshes)}
    counted = {name: products(one.jitted.trace(*one.arguments).jaxpr.jaxpr) for name, one in programs.items()}

    text, queries, length = model_config.text, config.batch.queries, config.rollout.prompt_tokens
    pairs = 4 * text.num_hidden_layers * text.num_attention_heads * text.head_dim
    # The plain kernel computes masked pairs too.
    masked = queries * pairs * (length**2 - length * (length + 1) / 2)
    assert programs["prefill"].flops + masked == pytest.approx(counted["prefill"], rel=1e-6)
    # The jaxpr has the bodies of loops of unknown length once: one token, and of each cache one block, which of a short
    # prompt is all.
    beyond = config.rollout.max_length - 128 - length
    rows = queries * config.batch.rollouts
    # A new token also sees itself, by no matrix product.
    assert programs["decode chunk"].flops / config.rollout.chunk == pytest.approx(
        counted["decode chunk"] + rows * pairs * beyond, rel=1e-6
    )
    filled = config.rollout.fill_rows * (config.rollout.reply_tokens + 2)
    assert programs["slot fill"].flops == pytest.approx(counted["slot fill"] + filled * pairs * beyond, rel=1e-6)
