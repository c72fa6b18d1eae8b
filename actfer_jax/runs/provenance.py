"""Where a result comes from: what every table, plot and file of results says first."""

import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import actfer_jax


def provenance(dataset: str, split: str, size: int, policy: str) -> dict[str, Any]:
    """What a result was measured on and with: by this code, now.

    Args:
      dataset, split, size: the samples.
      policy: a checkpoint, or a workdir and a step.

    Returns:
      These, and `version`, `git_commit` (None outside a checkout), `git_modified` and `date` (UTC, ISO 8601), for JSON.
    """
    commit, modified = git_state()
    return {
        "dataset": dataset,
        "split": split,
        "size": size,
        "policy": policy,
        "version": actfer_jax.__version__,
        "git_commit": commit,
        "git_modified": modified,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def heading(found: Mapping[str, Any] | None) -> str:
    """A `provenance` as one line; None is that of a result of an older version, which did not keep it."""
    if found is None:
        return "made by an older version, which did not keep where it comes from"
    commit = f"commit {found['git_commit'][:10]}" if found["git_commit"] else "no commit"
    changed = ", changed" if found["git_modified"] else ""
    samples = f"{found['dataset']} {found['split']}, {found['size']} samples"
    return f"{samples} | {found['policy']} | actfer_jax {found['version']}, {commit}{changed} | {found['date']}"


def git_state() -> tuple[str | None, bool | None]:
    """The commit of the checkout that this package runs from, and whether tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
