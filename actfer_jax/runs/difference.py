"""Where two runs differ in their settings, their metrics and the arrays of their checkpoints."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from actfer_jax.config import flatten
from actfer_jax.files import file_errors, reason
from actfer_jax.runs.manifest import HOST_KEYS, MANIFEST, manifest_config, matches
from actfer_jax.runs.metrics import WorkdirError, is_timing

# What the manifest has beside the config that may explain a difference.
_VERSIONS = ("versions", "git_commit", "prompts_hash", "devices")


def settings_differences(one: epath.Path, other: epath.Path) -> list[str]:
    """The keys of the config, and then the versions, commits, prompts and devices, that two workdirs do not share; each
    with both values. Where things lie on a host (`manifest.HOST_KEYS`) does not count.

    Raises:
      WorkdirError: one of them is not the workdir of a training run.
    """
    found = []
    for name, read in (("config", _config), ("versions", _versions)):
        ours, theirs = read(one), read(other)
        for key in sorted(ours.keys() | theirs.keys()):
            mine, its = ours.get(key, "absent"), theirs.get(key, "absent")
            if mine != its:
                found.append(f"{name}: {key} is {mine!r} in the first run, {its!r} in the second")
    return found


def metrics_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The metrics of a step that differ, the first with its values; "" if none do. What measures the machine does not
    count."""
    names = [name for name in sorted(one.keys() | other.keys()) if not is_timing(name)]
    different = [name for name in names if one.get(name, "absent") != other.get(name, "absent")]
    if not different:
        return ""
    name = different[0]
    more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
    return f"metric {name}: {one.get(name, 'absent')} in the first run, {other.get(name, 'absent')} in the second{more}"


def parameters_difference(one: epath.Path, other: epath.Path) -> str:
    """The first array in which two checkpoints (`checkpoints/<step>`) differ, with its digests and by how much; "" if
    all are the same bit for bit. One array of each is in memory at a time."""
    ours, theirs = dict(_readers(one)), dict(_readers(other))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            return f"parameters: {name} only in the {'first' if name in ours else 'second'} run"
        mine, its = ours[name](), theirs[name]()
        if mine.dtype != its.dtype or mine.shape != its.shape or mine.tobytes() != its.tobytes():
            return (
                f"parameters: {name} is {_digest(mine)} in the first run, {_digest(its)} in the second{_by(mine, its)}"
            )
    return ""


def _config(workdir: epath.Path) -> dict[str, Any]:
    try:
        flat = flatten(manifest_config(workdir))
    except file_errors(ValueError, KeyError) as error:
        raise WorkdirError(f"{workdir} is not the workdir of a training run ({MANIFEST}: {reason(error)})") from error
    return {key: value for key, value in flat.items() if not matches(key, HOST_KEYS)}


def _versions(workdir: epath.Path) -> dict[str, Any]:
    manifest = json.loads((workdir / MANIFEST).read_text())
    return flatten({key: manifest.get(key) for key in _VERSIONS})


def _readers(step_directory: epath.Path) -> Iterator[tuple[str, Any]]:
    """The name of each array of a checkpoint, with a function that reads it."""
    handler, state = ocp.PyTreeCheckpointHandler(), step_directory / "state"
    leaves, structure = jax.tree_util.tree_flatten_with_path(handler.metadata(state).tree)
    whole = jax.tree.unflatten(structure, [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))

    def read(index: int) -> np.ndarray:
        wanted = [leaf if i == index else ocp.PLACEHOLDER for i, (_, leaf) in enumerate(leaves)]
        arguments = ocp.args.PyTreeRestore(jax.tree.unflatten(structure, wanted), restore_args=whole)
        restored = jax.tree.leaves(handler.restore(state, args=arguments))
        return np.asarray(next(leaf for leaf in restored if leaf is not ocp.PLACEHOLDER))

    for index, (path, _) in enumerate(leaves):
        yield jax.tree_util.keystr(path), lambda index=index: read(index)


def _digest(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:12]}"


def _by(one: np.ndarray, other: np.ndarray) -> str:
    if one.shape != other.shape:
        return ""
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return f"; {np.count_nonzero(apart)} of {apart.size} numbers differ, by at most {apart.max():.3g}"
