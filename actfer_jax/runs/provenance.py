"""The provenance of a result, which heads every table, plot and file of results."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import actfer_jax


def provenance(dataset: str, split: str, size: int, policy: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The provenance of a result that this code measures now.

    Args:
      dataset, split, size: the samples.
      policy: a checkpoint, or a workdir and a step.
      notes: what has to be said wherever the result is shown.

    Returns:
      The arguments, `version`, `git_commit` and `git_modified` (None outside a checkout), `date` (UTC, ISO 8601).
    """
    commit, modified = git_state()
    return {
        "dataset": dataset,
        "split": split,
        "size": size,
        "policy": policy,
        "notes": list(notes),
        "version": actfer_jax.__version__,
        "git_commit": commit,
        "git_modified": modified,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def heading(found: Mapping[str, Any] | None) -> str:
    """A `provenance` as one line; None for a result of an older version, which did not keep it."""
    if found is None:
        return "made by an older version, which did not keep where it comes from"
    commit = f"commit {found['git_commit'][:10]}" if found["git_commit"] else "no commit"
    changed = ", changed" if found["git_modified"] else ""
    samples = f"{found['dataset']} {found['split']}, {found['size']} samples"
    made = (samples, found["policy"], f"actfer_jax {found['version']}, {commit}{changed}", found["date"])
    return " | ".join([*made, *found.get("notes", ())])


def git_state() -> tuple[str | None, bool | None]:
    """The commit of this package's checkout, and whether tracked files differ from it; (None, None) without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
