"""Compiles every program of a run for TPUs, and reports the memory, work and communication of each."""

import dataclasses
import importlib.util
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import topologies

import actfer_jax.models
from actfer_jax.compile_check import flops, hlo
from actfer_jax.compile_check.chips import CHIPS, Chip
from actfer_jax.compile_check.collectives import collectives
from actfer_jax.compile_check.estimate import estimate
from actfer_jax.compile_check.results import GIB, Result, table
from actfer_jax.compile_check.step import FULL, Assumed, estimate_step
from actfer_jax.config import ConfigError
from actfer_jax.models import KVCache, Qwen3VLConfig, on_mesh
from actfer_jax.parallel import sharding
from actfer_jax.parallel.sharding import Meshes, make_meshes
from actfer_jax.rollout.batch import ViewSlots, abstract_batch
from actfer_jax.rollout.engine import view_slots
from actfer_jax.rollout.programs import Fill, Programs, RowState, row_keys
from actfer_jax.training.config import TrainConfig, read_train_config, row_layout
from actfer_jax.training.optimizer import make_optimizer
from actfer_jax.training.state import abstract_state
from actfer_jax.training.update import PolicyBatch, make_log_probs, make_policy_update, make_sft_update, split_batch

EVALUATION = "evaluation: "
PUBLISHED = Path(actfer_jax.models.__file__).parent / "qwen3_vl_4b.json"
"""Sizes of Qwen3-VL-4B-Instruct, as published in its config.json."""


TOPOLOGY = re.compile(r"(?:([1-9]\d*)x)?((\w+):\S*)")
"""Slices (one if not given), the topology of each, and its generation."""

NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment in which libtpu does not look for a TPU, which takes minutes, nor lock out other processes."""


@dataclasses.dataclass
class Program:
    """One program to compile.

    Attributes:
      name: for the table.
      jitted, arguments: the function, and its arguments as abstract arrays with shardings.
      others: other arrays in memory while it runs, by name.
      flops: of the model, for all chips, by formula.
      advice: settings that make it smaller.
    """

    name: str
    jitted: Any
    arguments: tuple[Any, ...]
    others: dict[str, Any]
    flops: float
    advice: str


def topology_devices(name: str) -> tuple[Chip, list[Any]]:
    """The chips of a TPU topology, `v5e:4x4`, or of several slices of it, `2xv5e:4x4`.

    Raises:
      ConfigError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu is not installed; `pip install libtpu` brings the TPU's compiler (no TPU is needed)")
    known = ", ".join(f"{family}:{size}" for family, chip in CHIPS.items() for size in chip.topologies)
    parts = TOPOLOGY.fullmatch(name)
    chip = CHIPS.get(parts[3]) if parts else None
    if parts is None or chip is None:
        raise ConfigError(f"topology {name!r} is not known; there are {known}")
    options: dict[str, Any] = {}
    if parts[1]:
        options["num_slices"] = int(parts[1])
        chip = dataclasses.replace(chip, link=0)
    if parts[2].endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)  # Else a host is taken to have four chips.
    try:
        return chip, list(topologies.get_topology_desc(platform="tpu", topology_name=parts[2], **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"topology {name!r} is not known ({reason}); there are {known}") from error


def programs(config: TrainConfig, model_config: Qwen3VLConfig, meshes: Meshes) -> Iterator[Program]:
    """Every program of a run, with the other arrays in memory."""
    graphdef, (state, _) = abstract_state(config, model_config, meshes.update)
    params = state.weights
    dtype = jnp.dtype(config.model.dtype)
    optimizer = make_optimizer(config.optimizer, config.steps * config.batch.updates)
    slots = view_slots(config.rollout, config.views, model_config, dtype)
    kept = {"params": params, "optimizer": (state.opt_state, state.skipped)}
    reference = jax.eval_shape(partial(sharding.cast, dtype=dtype), state.params)
    reference = sharding.place_parameters(reference, meshes.update)
    if config.loss.kl and not config.loss.reference_offload:
        kept["reference"] = reference
    rollout_programs = partial(_rollout_programs, config, model_config, meshes, graphdef, kept, slots)
    if config.algorithm == "sft":
        yield from _sft_programs(config, model_config, meshes, graphdef, optimizer, state, slots)
    else:
        size = config.batch
        advice = "fewer config.batch.queries or config.batch.rollouts"
        yield from rollout_programs("", size.queries, size.rollouts, config.rollout.temperature, advice)
        yield from _update_programs(config, model_config, meshes, graphdef, optimizer, state, reference, slots)
    if config.evaluation is not None:
        yield from rollout_programs(EVALUATION, config.evaluation.queries, 1, 0.0, "fewer config.evaluation.queries")


def _sft_programs(
    config: TrainConfig,
    model_config: Qwen3VLConfig,
    meshes: Meshes,
    graphdef: Any,
    optimizer: Any,
    state: Any,
    slots: ViewSlots,
) -> Iterator[Program]:
    size, mesh = config.batch, meshes.update
    update = make_sft_update(graphdef, optimizer, chunk=size.chunk, mesh=mesh)
    batches = {"update": (size.queries, size.length, slots, config.policy_tokens)}
    if config.traces.readings_steps:
        one_view = dataclasses.replace(slots, scene=slots.view, scenes=1, views=0)
        rows = size.queries * len(config.traces.readings_views)
        batches["readings: update"] = (rows, config.traces.readings_length, one_view, None)
    for name, (rows, length, views, room) in batches.items():
        batch = abstract_batch(rows, 1, length, views, model_config, policy_tokens=room)
        work = flops.update(model_config, batch)
        microbatches = _split(batch, size.microbatches, mesh)
        yield Program(
            name, update, (state, microbatches), {"next batch": microbatches}, work, _update_advice(config, meshes)
        )


def _rollout_programs(
    config: TrainConfig,
    model_config: Qwen3VLConfig,
    meshes: Meshes,
    graphdef: Any,
    kept: dict[str, Any],
    slots: ViewSlots,
    prefix: str,
    queries: int,
    group_size: int,
    temperature: float,
    fewer_rows: str,
) -> Iterator[Program]:
    """The rollout's programs: its weights, prefill, a decode chunk, and a slot fill."""
    rollout, mesh = config.rollout, meshes.rollout
    rows, vocabulary = queries * group_size, model_config.text.vocab_size
    jitted = Programs(
        on_mesh(graphdef, kept["params"], mesh),
        group_size=group_size,
        length=rollout.max_length,
        suffix=rollout.suffix_tokens,
        chunk=rollout.chunk,
        turn_tokens=rollout.turn_tokens,
        turn_end_id=0,
        temperature=temperature,
        banned_V=np.zeros(vocabulary, bool),
        meshes=meshes,
    )
    others = {name: tree for name, tree in kept.items() if name != "params"}
    shared, moved = jitted.split(kept["params"])
    dtype = jitted.dtype(kept["params"])
    advice = ", or ".join([*_reference_advice(config), 'more of the "tensor" axis in config.mesh.rollout'])
    if prefix != EVALUATION or config.algorithm == "sft":  # Else evaluation uses the rollout's program for weights.
        yield Program(
            f"{prefix}rollout weights", jitted.reshard, (moved, dtype), others | {"shared": shared}, 0.0, advice
        )

    copies = jax.eval_shape(partial(jitted._reshard, dtype=dtype), moved)
    weights = nnx.merge_state(shared, sharding.place_parameters(copies, mesh))
    kept = others | {"params": moved}  # The others are among the weights.
    prompt = abstract_batch(queries, 1, rollout.prompt_tokens, dataclasses.replace(slots, views=0), model_config)
    keys = jax.eval_shape(lambda: row_keys(0, 0, jnp.zeros(queries, jnp.uint32), group_size))
    count, valid = (jax.ShapeDtypeStruct((queries,), dtype) for dtype in (jnp.int32, jnp.bool))
    inputs = (prompt.tokens, count, prompt.positions, prompt.image_index, prompt.scenes, valid, keys)
    inputs = sharding.place(inputs, mesh, "rows")
    advice = f"{fewer_rows}, or a smaller config.rollout.max_length, or {advice}"
    work = flops.prefill(model_config, prompt)
    yield Program(f"{prefix}prefill", jitted.prefill, (weights, *inputs), kept, work, advice)

    state: RowState = jax.eval_shape(jitted._prefill, weights, *inputs)
    parts: dict[str, Any] = {
        name: sharding.place(x, mesh, *(("layers", "rows", "kv_heads") if isinstance(x, KVCache) else ("rows",)))
        for name, x in state._asdict().items()
    }
    state = RowState(**parts)
    work = flops.decode(model_config, rows, rollout.chunk, rollout.max_length)
    yield Program(f"{prefix}decode chunk", jitted.decode, (weights, state), kept, work, advice)

    if rollout.max_turns == 1:  # No tool is called.
        return
    filled, length = rollout.fill_rows, rollout.reply_tokens + 2
    one_view = dataclasses.replace(slots, scene=slots.view, scenes=1, views=0)
    replies = abstract_batch(filled, 1, length, one_view, model_config)
    row: Any = jax.ShapeDtypeStruct((filled,), jnp.int32)
    fill = Fill(row, replies.tokens, row, replies.positions, row, replies.image_index, replies.scenes)
    fill = sharding.place(fill, mesh, "rows")
    work = flops.fill(model_config, replies, rollout.max_length)
    advice = f"fewer config.rollout.fill_rows, or {advice}"
    yield Program(f"{prefix}slot fill", jitted.fill, (weights, state, fill), kept, work, advice)


def _update_programs(
    config: TrainConfig,
    model_config: Qwen3VLConfig,
    meshes: Meshes,
    graphdef: Any,
    optimizer: Any,
    state: Any,
    reference: Any,
    slots: ViewSlots,
) -> Iterator[Program]:
    """The update's programs: log-probabilities for importance correction and of the reference, and the update."""
    size, mesh = config.batch, meshes.update
    rows = size.queries * size.rollouts
    layout = row_layout(size, config.rollout, mesh)
    rooms: dict[str, Any] = {"prefix": layout.prefix, "policy_tokens": config.policy_tokens}
    options: dict[str, Any] = {
        "temperature": config.rollout.temperature,
        "banned_V": np.zeros(model_config.text.vocab_size, bool),
        "chunk": size.chunk,
        "mesh": mesh,
    }
    advice, less = _update_advice(config, meshes), _update_advice(config, meshes, offload=False)
    log_probs = make_log_probs(graphdef, **options)
    optimizer_state = {"optimizer": (state.opt_state, state.skipped)}
    kept = {"reference": reference} if config.loss.kl and not config.loss.reference_offload else {}
    update = make_policy_update(graphdef, optimizer, config.loss, **options)
    for length in layout.lengths:
        suffix = "" if length == layout.lengths[-1] else f" of {length}"
        batch = abstract_batch(rows, layout.group_size, length, slots, model_config, **rooms)
        microbatches = _split(batch, size.microbatches, mesh)
        forward = flops.forward(model_config, batch)
        if config.loss.importance_cap:
            others = kept | optimizer_state
            yield Program(f"log-probs{suffix}", log_probs, (state.weights, microbatches), others, forward, advice)
        if config.loss.kl:
            others = {"params": state.params} | optimizer_state
            arguments = nnx.merge_state(reference, state.frozen), microbatches
            yield Program(f"reference log-probs{suffix}", log_probs, arguments, others, forward, less)
        values = _split(jax.ShapeDtypeStruct((rows, length), jnp.float32), size.microbatches, mesh)
        policy_batch = PolicyBatch(microbatches, values, values, values, values if config.loss.kl else None)
        work = flops.update(model_config, batch)
        yield Program(f"update{suffix}", update, (state, policy_batch), kept, work, advice)


def _split(batch: Any, microbatches: int, mesh: Any) -> Any:
    return sharding.place(jax.eval_shape(partial(split_batch, microbatches=microbatches), batch), mesh, None, "rows")


def _update_advice(config: TrainConfig, meshes: Meshes, offload: bool = True) -> str:
    """Settings that make an update smaller, the cheapest first."""
    size = config.batch
    advice = []
    with suppress(ConfigError, ValueError):  # With one row of a microbatch on a device, more microbatches do not work.
        more = dataclasses.replace(size, microbatches=2 * size.microbatches)
        dataclasses.replace(config, batch=more).check_meshes(meshes)
        advice.append(f"config.batch.microbatches={more.microbatches}")
    if config.model.remat != "full":
        advice.append("config.model.remat=full")
    advice += [*_reference_advice(config, offload), "a smaller config.batch.length"]
    return ", or ".join([*advice, 'more of the "fsdp" axis in config.mesh.update'])


def _reference_advice(config: TrainConfig, offload: bool = True) -> list[str]:
    """Settings that take the reference off the devices. Without `offload`, offloading is not among them."""
    if not config.loss.kl:
        return []
    less = ["config.loss.kl=0, which needs no reference"]
    return ["config.loss.reference_offload=True", *less] if offload and not config.loss.reference_offload else less


def check(program: Program, chip: Chip, assumed: Assumed = FULL) -> Result:
    """Compiles one program."""
    result = Result(program.name, teraflops=program.flops / 1e12, advice=program.advice)
    result.others = {name: bytes_on_a_chip(tree) for name, tree in program.others.items()}
    began = time.perf_counter()
    try:
        compiled = program.jitted.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        # The TPU's compiler refuses a program that does not fit on its own.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used [\d.]+\w? of [\d.]+\w? hbm", str(error))
        result.error = used[0] if used else str(error).splitlines()[0][:200]
        result.seconds = time.perf_counter() - began
        return result
    result.seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    result.arguments = memory.argument_size_in_bytes
    # Results that overwrite donated arguments do not count.
    result.outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # The compiler refuses programs by this peak. Its `temp_size_in_bytes` counts memory once for each temporary that
    # reuses it.
    result.temporaries = memory.peak_memory_in_bytes - result.arguments - result.outputs
    result.peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    result.total = result.peak + sum(result.others.values())
    result.fits = result.total <= chip.hbm * GIB
    text = hlo.read(compiled.as_text(), assumed.loop_trips)
    sent = collectives(text)
    result.collectives, result.per_iteration = sent.total, sent.unknown_loops
    found = estimate(text, chip, sum(sent.total.values()), assumed.filled)
    result.estimated_seconds, result.no_estimate = found.seconds, "; ".join(found.unreckoned)
    result.estimated = {"compiler": found.compiler, "collectives": found.collectives, "reckoned": found.reckoned}
    return result


def bytes_on_a_chip(tree: Any) -> int:
    """Bytes of abstract arrays on one device, without the padding of tiles."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_check(
    config: TrainConfig,
    model_config: Qwen3VLConfig,
    topology: str,
    only: Sequence[str] = (),
    assumed: Assumed = FULL,
) -> tuple[dict[str, Any], str]:
    """Compiles the programs of a config for a topology.

    Args:
      only: names of the programs to compile; all if empty.
      assumed: what the estimates take as given.

    Returns:
      The content of the `--json` file (the topology, meshes, sizes of arrays that stay in memory, a `Result` of each
      program, and `estimate_step`), and its `table`.

    Raises:
      ConfigError: the topology is not known, the config does not fit its meshes, or a named program does not exist, or
        the assumed rows have no room.
    """
    assumed = assumed.within(config)
    chip, devices = topology_devices(topology)
    meshes = make_meshes(config.mesh, devices)
    config.check_meshes(meshes)
    assert meshes.update is not None and meshes.rollout is not None
    shapes = {name: tuple(mesh.shape.values()) for name, mesh in meshes._asdict().items()}
    print(f"{topology}: {len(devices)} chips; update mesh {shapes['update']}, rollout mesh {shapes['rollout']}")
    found = {program.name: program for program in programs(config, model_config, meshes)}
    for name in only:
        if name not in found:
            raise ConfigError(f"--programs has {name!r}; the programs of this config are {', '.join(found)}")
    results: list[Result] = []
    kept: dict[str, int] = {}
    for name, program in found.items():
        kept |= {other: bytes_on_a_chip(tree) for other, tree in program.others.items()}
        if name.endswith("decode chunk"):
            kept["rollout weights"] = bytes_on_a_chip(program.arguments[0])
            state = program.arguments[1]
            kept[name.replace("decode chunk", "cache")] = bytes_on_a_chip((state.cache, state.prompt))
        if name in only or not only:
            print(f"  compiling {name} ...", file=sys.stderr, flush=True)
            results.append(check(program, chip, assumed))
    report = {
        "topology": topology,
        "chips": len(devices),
        "hbm_gib": chip.hbm,
        "meshes": shapes,
        "kept_bytes": kept,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax")},
        "programs": [dataclasses.asdict(result) for result in results],
        "estimate": estimate_step(config, list(found), results, chip, len(devices), assumed),
    }
    return report, table(results, chip, len(devices))


def load_config(raw: ml_collections.ConfigDict) -> tuple[TrainConfig, Qwen3VLConfig]:
    """The config of a run and the sizes of its model."""
    published = "model" in raw and not raw.model.path
    if published:
        with raw.unlocked():
            raw.model.path = str(PUBLISHED)
    config = read_train_config(raw)
    try:
        return config, Qwen3VLConfig.from_json(PUBLISHED if published else config.model.config_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.model.path: {error}") from error
