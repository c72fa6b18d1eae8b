"""Reckons what a run takes on one GPU: arguments by their shapes, temporaries by a formula. Nothing is compiled.

The formula counts what has to exist at one time: gradients, what layers keep for the backward pass, one layer at work,
a chunk of logits, image tokens, and results. It leaves out what a compiler adds: padding, copies, and the workspaces of
kernels. So leave some room. A step that was measured is reckoned within 5% (docs/hardware.md).
"""

import math
import re
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp

from actfer_jax.compile_check.check import Program, bytes_on_a_chip, programs
from actfer_jax.compile_check.results import GIB, Result
from actfer_jax.evaluation.tables import align
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.parallel.sharding import make_meshes
from actfer_jax.rollout.batch import EpisodeBatch
from actfer_jax.training.config import TrainConfig

_GPU = re.compile(r"gpu:([1-9]\d*)")
_FLOAT = 4  # bytes


def gpu_memory(topology: str) -> int | None:
    """The gigabytes (10^9 bytes) of "gpu:80"; None for other topologies."""
    found = _GPU.fullmatch(topology)
    return int(found[1]) if found else None


def report(config: TrainConfig, model_config: Qwen3VLConfig, topology: str) -> tuple[dict[str, Any], str]:
    """What `compile_check` gives, of one GPU: the content of the `--json` file, and a table of GiB.

    Args:
      topology: "gpu:80".

    Raises:
      ConfigError: the config does not fit one device.
    """
    limit = (gpu_memory(topology) or 0) * 10**9
    meshes = make_meshes(config.mesh, jax.devices("cpu")[:1])
    config.check_meshes(meshes)
    results, kept = list[Result](), dict[str, int]()
    for program in programs(config, model_config, meshes):
        result = Result(program.name, teraflops=program.flops / 1e12, advice=program.advice)
        result.arguments = bytes_on_a_chip(_arrays(program.arguments))
        result.temporaries = _temporaries(program, config, model_config)
        result.peak = result.arguments + result.temporaries
        result.others = {name: bytes_on_a_chip(tree) for name, tree in program.others.items()}
        result.total = result.peak + sum(result.others.values())
        result.fits = result.total <= limit
        results.append(result)
        kept |= result.others
    rows = [["program", "arguments", "temporaries (reckoned)", "others", "total", f"of {limit / GIB:.1f}"]]
    for one in results:
        sizes = (one.arguments, one.temporaries, sum(one.others.values()), one.total)
        rows.append([one.name, *(f"{size / GIB:.2f}" for size in sizes), "fits" if one.fits else "NO"])
    found = {"topology": topology, "reckoned": True, "kept_bytes": kept, "programs": list(map(asdict, results))}
    return found, align(rows, left=1)


def _arrays(arguments: tuple[Any, ...]) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(arguments) if hasattr(leaf, "sharding")]


def _temporaries(program: Program, config: TrainConfig, model: Qwen3VLConfig) -> int:
    kind = program.name.removeprefix("evaluation: ").removeprefix("readings: ").partition(" of ")[0]
    short, arguments = jnp.dtype(config.model.dtype).itemsize, program.arguments
    if kind == "rollout weights":
        copies = sum(leaf.size for leaf in jax.tree.leaves(arguments[0]))
        return copies * short
    if kind == "decode chunk":
        rows = len(arguments[1].length)
        scores = rows * model.text.num_attention_heads * config.rollout.max_length
        return _FLOAT * (2 * scores + 3 * rows * model.text.vocab_size) + _layer(model, rows, short)
    if kind == "prefill":
        rows, length = arguments[1].shape
        cache = 2 * model.text.num_hidden_layers * model.text.num_key_value_heads * model.text.head_dim * short
        # The result, which nothing is there for yet: prompts, and room for what rows add to them.
        states = (rows * length + len(arguments[-1]) * config.rollout.suffix_tokens) * cache
        return states + _layer(model, rows * length, short) + _vision(model, arguments[5].mask.shape, short)
    if kind == "slot fill":
        fill = arguments[2]
        kept = 2 * len(fill.rows) * model.text.num_key_value_heads * config.rollout.max_length * model.text.head_dim
        return kept * short + _layer(model, fill.tokens.size, short) + _vision(model, fill.views.mask.shape, short)
    batch = arguments[1] if isinstance(arguments[1], EpisodeBatch) else arguments[1].episodes
    return _of_batch(kind, program, batch, config, model)


def _of_batch(kind: str, program: Program, batch: EpisodeBatch, config: TrainConfig, model: Qwen3VLConfig) -> int:
    """Of log-probabilities or an update, whose batch comes in microbatches."""
    short, (_, rows, length) = jnp.dtype(config.model.dtype).itemsize, batch.tokens.shape
    own, groups, text = batch.suffix_index.shape[2], batch.scenes.mask.shape[1], model.text
    tokens = rows * own + groups * (length - own)  # A group computes the start of its rows once.
    slots = batch.scenes.mask.shape[2] + batch.views.mask.shape[2]
    by_slot = config.model.remat == "full"
    patches = max(math.prod(part.mask.shape[1:]) // (part.mask.shape[2] or 1) for part in (batch.scenes, batch.views))
    features = sum(math.prod(part.mask.shape[1:]) for part in (batch.scenes, batch.views)) // model.vision.merge_unit
    features *= text.hidden_size * (1 + len(model.vision.deepstack_visual_indexes)) * short
    # DeepStack's features are also laid out by token.
    features += tokens * text.hidden_size * len(model.vision.deepstack_visual_indexes) * short
    at_once = patches * (1 if by_slot else slots)
    logits = max(config.batch.chunk, rows) * text.vocab_size * _FLOAT
    tower = _vision(model, (1, at_once), short)
    if kind != "update":
        return features + max(_layer(model, tokens, short) + 2 * tokens * text.hidden_size * short, 2 * logits, tower)
    state = program.arguments[0]
    gradients = bytes_on_a_chip(state.params)
    kept = text.num_hidden_layers * tokens * text.hidden_size * short
    if not by_slot:
        kept = text.num_hidden_layers * _layer(model, tokens, short)
    views = model.vision.depth * at_once * model.vision.hidden_size * short
    return gradients + 2 * features + kept + views + max(2 * _layer(model, tokens, short), 3 * logits, 2 * tower)


def _layer(model: Qwen3VLConfig, tokens: int, short: int) -> int:
    """The activations of one decoder layer."""
    text = model.text
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    return tokens * short * (3 * text.hidden_size + heads * text.head_dim + 3 * text.intermediate_size)


def _vision(model: Qwen3VLConfig, shape: tuple[int, ...], short: int) -> int:
    """The activations of one block of the vision tower over all patches of views [..., P]."""
    vision = model.vision
    return math.prod(shape) * short * (6 * vision.hidden_size + 2 * vision.intermediate_size)
