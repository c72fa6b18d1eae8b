"""The manifest of a run, and what of its config may change when the run goes on."""

import fnmatch
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

import actfer_jax
from actfer_jax.config import ConfigError, flatten, nearest, plain_config, with_new_names
from actfer_jax.files import file_errors, reason, write_atomically
from actfer_jax.runs.metrics import EVALUATION, METRICS, WorkdirError
from actfer_jax.runs.provenance import git_state

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Where things lie on the disks of a host, and how many threads it has: these keys may differ between hosts, too.
HOST_KEYS = (
    *("data.cache_directory", "data.parts.*.cache_directory", "evaluation.data.cache_directory"),
    "rollout.tool_threads",
)
# A run may go on with other values of these keys. Except for rounding they do not change what a step computes. They
# change the number of steps (and so the schedules), where and in which pieces steps are computed, and what is kept,
# shown and evaluated.
FREE_KEYS = (
    *("steps", "checkpoint.*", "logging.*", "alarms.*", "evaluation.*", "mesh.*"),
    *("batch.microbatches", "batch.chunk", "batch.length_buckets", "rollout.chunk", "rollout.fill_rows"),
    *("model.remat", "loss.reference_offload", *HOST_KEYS),
)
# A run may go on with larger values of these keys: an episode that had room enough is the same with more.
GROWING_KEYS = (
    *("batch.length", "traces.readings_length", "rollout.images"),
    *("rollout.prompt_tokens", "rollout.reply_tokens", "rollout.max_length"),
)
# Keys that came later, with the values that runs of before had in effect.
_LATER_KEYS = {
    "rollout.ask_aus": True,
    "rollout.images": 1,
    "estimator.std_ddof": 0,
    "data.exclude": [],
    "model.adapter": "",
    "model.frozen": [],
}
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers", "tensorflow-datasets"),
    *("dlib", "dlib-bin"),
)


def write_manifest(workdir: epath.PathLike, config: Mapping[str, Any], prompts_hash: str) -> dict[str, Any]:
    """Writes `manifest.json`: config, seed, versions, git commit (null outside a checkout), devices, prompts' hash.

    Returns:
      The manifest. Three of its keys are kept over all starts of a run: `started`, the time of the first start in
      seconds since 1970; the smallest `checkpoint_every`, the steps between two checkpoints; and `changes`, the config
      keys that later starts changed, each with its `old` and its `new` value and the last `step` with the old one.
      `add_to_manifest` adds `excluded`.
    """
    commit, modified = git_state()
    devices = jax.devices()
    plain = plain_config(config)
    path = epath.Path(workdir) / MANIFEST
    before = json.loads(path.read_text()) if path.exists() else {}
    every = plain.get("checkpoint", {}).get("every")
    workdir = path.parent
    changes = [{"step": None, **change._asdict()} for change in _changes(workdir, config)] if _begun(workdir) else []
    manifest = {
        "started": before.get("started", time.time()),
        "checkpoint_every": min(before.get("checkpoint_every", every), every) if every else None,
        "changes": [*before.get("changes", []), *changes],
        "config": plain,
        "seed": plain.get("seed"),
        "versions": {"python": platform.python_version(), "actfer_jax": actfer_jax.__version__, **_versions()},
        "git_commit": commit,
        "git_modified": modified,
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
        "prompts_hash": prompts_hash,
    }
    write_atomically(path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def add_to_manifest(workdir: epath.PathLike, **keys: Any) -> None:
    """Writes keys into the manifest that are known only after the start."""
    path = epath.Path(workdir) / MANIFEST
    write_atomically(path, json.dumps(json.loads(path.read_text()) | keys, indent=1, sort_keys=True) + "\n")


def date_changes(workdir: epath.PathLike, step: int) -> None:
    """Writes into the manifest that this start goes on after `step`: there begin its changes, and those of earlier
    starts whose steps are done anew."""
    path = epath.Path(workdir) / MANIFEST
    manifest = json.loads(path.read_text())
    dated = [
        change | {"step": step if change["step"] is None else min(step, change["step"])}
        for change in manifest["changes"]
    ]
    if dated != manifest["changes"]:
        write_atomically(path, json.dumps(manifest | {"changes": dated}, indent=1, sort_keys=True) + "\n")


def manifest_config(workdir: epath.PathLike) -> dict[str, Any]:
    """The config of the run in a workdir, from its manifest.

    Sections and keys that older versions named otherwise get their new names (`config.with_new_names`). So does the
    cache of rendered faces, which was `data.directory`.

    Raises:
      ValueError, KeyError: the file is not a manifest.
      OSError, tf.errors.OpError: the file does not exist.
    """
    path = epath.Path(workdir) / MANIFEST
    config = json.loads(path.read_text())["config"]
    if not isinstance(config, dict):
        raise ValueError(f"its config is {config!r}")
    for holder in (config, config.get("evaluation")):
        data = holder.get("data") if isinstance(holder, dict) else None
        if isinstance(data, dict) and data.get("name") == "synth_faces" and data.get("directory"):
            log.info("%s: data.directory, %r, is read as data.cache_directory", path, data["directory"])
            data["cache_directory"], data["directory"] = data["directory"], ""
    return dict(with_new_names(config))


def check_workdir(workdir: epath.PathLike, config: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
    """Makes the workdir, and checks that this process can write to it and that the run may resume the one in it.

    `FREE_KEYS` of the config may differ from those of the run in the workdir, and `GROWING_KEYS` may be larger. Only
    `HOST_KEYS` may differ between hosts.

    Args:
      allowed: other keys that may differ, because the user said so.

    Raises:
      ConfigError: an allowed key exists neither here nor there.
      WorkdirError: it cannot be made or written, or holds a run of another config; the message names the keys.
    """
    workdir = epath.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        write_atomically(probe, b"")
        probe.unlink()
    except file_errors() as error:
        message = f"workdir {workdir} cannot be written ({reason(error)}): choose another with --workdir"
        raise WorkdirError(message) from error
    changes = _changes(workdir, config)
    # A key that the run had, and the config has no longer, may be allowed too.
    known = flatten(plain_config(config)).keys() | {change.key for change in changes}
    for key in allowed:
        if key not in known:
            near = nearest(key, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"--allow_changes={key}: the config has no such key{hint}")
    if jax.process_index() > 0:
        # By now the manifest is that of this start, written by the first process.
        refused, remedy = [c for c in changes if not matches(c.key, HOST_KEYS)], "start all processes with one config"
    else:
        refused = [change for change in changes if not _is_free(change, allowed)] if _begun(workdir) else []
        remedy = _remedy(workdir, [*allowed, *(change.key for change in refused)])
    if refused:
        listed = ", ".join(f"{c.key} ({c.old!r} there, {c.new!r} here{_only(c)})" for c in refused)
        raise WorkdirError(f"workdir {workdir} holds a run of another config: {listed}; {remedy}")


class _Change(NamedTuple):
    """A config key with its value in the manifest and its value now, "absent" where it has none."""

    key: str
    old: Any
    new: Any


def _changes(workdir: epath.Path, config: Mapping[str, Any]) -> list[_Change]:
    """The keys whose values are not those of the manifest; none without a manifest.

    Raises:
      WorkdirError: the file is not a manifest.
    """
    if not (workdir / MANIFEST).exists():
        return []
    try:
        old = flatten(manifest_config(workdir))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WorkdirError(
            f"{workdir / MANIFEST} cannot be read: it is not a manifest of a run; choose another --workdir"
        ) from error
    new = flatten(plain_config(config))
    old = {key: value for key, value in _LATER_KEYS.items() if key in new} | old
    return [
        _Change(key, old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _begun(workdir: epath.Path) -> bool:
    """Whether the run in a workdir has done anything: a start that failed before its first step leaves a manifest only,
    and the next one may be of another run."""
    return any((workdir / name).exists() for name in (METRICS, EVALUATION))


def _is_free(change: _Change, allowed: Sequence[str]) -> bool:
    grows = matches(change.key, GROWING_KEYS) and type(change.old) is type(change.new) is int
    return matches(change.key, FREE_KEYS) or change.key in allowed or (grows and change.new > change.old)


def _only(change: _Change) -> str:
    return "; it may only grow" if matches(change.key, GROWING_KEYS) else ""


def _remedy(workdir: epath.Path, keys: Sequence[str]) -> str:
    policy = workdir / "policy"
    path = f"--config.model.path={policy if policy.exists() else 'DIR'}"
    export = "" if policy.exists() else f", after `python -m actfer_jax.export --workdir={workdir} --out=DIR`"
    return (
        "use the values that are there; or go on with those that are here, which the manifest then says, with "
        f"--allow_changes={','.join(keys)}; or begin a new run from these weights, in another --workdir, with "
        f"{path}{export}"
    )


def matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _versions() -> dict[str, str]:
    installed = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
