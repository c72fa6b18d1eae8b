"""The whole of a training run: open the workdir, load, step after step, evaluate, write the policy."""

import dataclasses
import hashlib
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from actfer_jax.agent.environment import load_format
from actfer_jax.agent.prompts import prompts_hash
from actfer_jax.config import ConfigError, FieldError
from actfer_jax.data.cache import open_cache
from actfer_jax.data.sources import excluded, label_sets, open_face_store, open_source
from actfer_jax.episodes.background import BackgroundWriter
from actfer_jax.episodes.picture import episode_caption, episode_picture, episode_text
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.models import Qwen3VL
from actfer_jax.models.frozen import fingerprint, split_frozen
from actfer_jax.models.huggingface import POLICY, write_model_directory
from actfer_jax.models.layers import Params
from actfer_jax.models.peft import ADAPTER, save_adapter
from actfer_jax.outputs import OutputError, check_apart, check_directory, same_place
from actfer_jax.parallel import hosts
from actfer_jax.parallel.finite import NotFiniteError, Watch, listed, not_finite
from actfer_jax.parallel.hosts import Interrupted, Termination
from actfer_jax.parallel.sharding import Meshes, make_meshes
from actfer_jax.rollout.agent import Agent, load_agent
from actfer_jax.runs.alarms import Alarms
from actfer_jax.runs.checkpoints import Checkpoints
from actfer_jax.runs.lease import Lease
from actfer_jax.runs.manifest import MANIFEST, add_to_manifest, check_workdir, date_changes, write_manifest
from actfer_jax.runs.metrics import (
    Goodput,
    MetricWriter,
    Progress,
    ResourceMeter,
    WorkdirError,
    compilations_told,
    read_metrics,
)
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.evaluations import Evaluations
from actfer_jax.training.model_card import policy_files
from actfer_jax.training.optimizer import learning_rate, make_optimizer
from actfer_jax.training.profiling import Profiler
from actfer_jax.training.rewind import POLICY_NAME, rewind
from actfer_jax.training.rl_steps import rl_steps
from actfer_jax.training.sft_steps import sft_steps, whitened
from actfer_jax.training.state import Episodes, RunState, abstract_state, check_base, initial_state

log = logging.getLogger(__name__)

SHOWN = (
    *("sft/loss", "reward/total", "reward/emotion", "zoom_rate", "policy/entropy", "mismatch/logp_abs_diff"),
    *("sft/skipped_updates", "policy/skipped_updates"),
)
"""Metrics in the line of progress, as far as the run has them: each by itself, or what it is in each stratum."""


def train(
    config: TrainConfig,
    workdir: epath.Path,
    raw_config: ml_collections.ConfigDict,
    stop: Termination,
    allow_changes: Sequence[str] = (),
    hparams: Mapping[str, Any] | None = None,
) -> None:
    """Runs the whole training of a config in a workdir.

    Args:
      allow_changes: keys that may have other values than before where the run in the workdir goes on, although they
        change what is computed (`check_workdir`).
      hparams: what TensorBoard's table of runs shows of the config.

    Raises:
      Interrupted: the run was told to stop; it has saved what was done.
      WorkdirError: another run trains in the workdir, or has taken it over.
      NotFiniteError: numbers became NaN or infinite; nothing of that step is written.
    """
    with Lease(workdir) as lease, compilations_told():
        _train(config, workdir, raw_config, stop, lease, allow_changes, hparams or {})


def _train(
    config: TrainConfig,
    workdir: epath.Path,
    raw_config: ml_collections.ConfigDict,
    stop: Termination,
    lease: Lease,
    allow_changes: Sequence[str],
    hparams: Mapping[str, Any],
) -> None:
    _keep_programs(workdir / "compilation_cache")
    started, every = _open_workdir(workdir, config, raw_config, stop, lease, allow_changes)
    meshes = make_meshes(config.mesh)
    config.check_meshes(meshes)
    agent = _load_agent(config, meshes)
    source = hosts.first_before_others(lambda: open_source(config.data))
    _check(stop, "loading")
    frozen = split_frozen(agent.params, config.model.frozen, config.model.dtype)[1]
    base = fingerprint(frozen, meshes.update)
    _tell_sizes(config.data.name, len(source), _count(agent.params), _count(frozen))
    optimizer = make_optimizer(config.optimizer, config.steps * config.batch.updates)
    if config.model.initialise == "random":
        agent = whitened(agent, source, config.traces, config.seed)
    kept = config.checkpoint
    lease.check()
    hosts.from_first(partial(add_to_manifest, workdir, excluded=excluded(source) or {}))
    with (
        BackgroundWriter(EpisodeWriter(workdir, jax.process_index())) as records,
        Checkpoints(
            workdir / "checkpoints",
            keep=kept.keep,
            best=kept.best,
            best_metric=kept.best_metric,
            confirm=lease.confirm,
            ready=records.wait,
        ) as checkpoints,
    ):
        wanted = abstract_state(config, agent.model_config, meshes.update)[1].without_frozen
        restored = checkpoints.restore_latest(wanted)
        if restored:
            start, state = restored[:2]
            _check_restored(config, workdir, start, state, meshes.update)
            check_base(workdir / "checkpoints" / str(start), restored[2], base, config.model.path)
            state = state.with_frozen(frozen)
            log.info("continuing after step %d of %d", start, config.steps)
        else:
            start, state = 0, initial_state(agent.params, optimizer, config, meshes.update)
        _check(stop, "loading")
        # Beside what was done since the last checkpoint, what was done while that one was on its way.
        lost = 2 * every if start < checkpoints.cut_off <= start + every else every
        lease.check()
        hosts.from_first(partial(rewind, workdir, start, start + lost))
        hosts.from_first(partial(date_changes, workdir, start))
        evaluations = Evaluations(config, agent, workdir, stop, lease)
        evaluations.before(agent.params)
        make_step = sft_steps if config.algorithm == "sft" else rl_steps
        step_function = make_step(config, agent, source, optimizer, start, stop)
        # Lets go of what was loaded, where a checkpoint has taken its place.
        agent = dataclasses.replace(agent, params=state.train.weights)
        del frozen
        progress, watch = Progress(config.steps), Watch(meshes.update, config.alarms.skipped_in_a_row)
        goodput = Goodput(started, restored[2]["productive_s"] if restored else 0.0)
        with (
            MetricWriter(workdir) if hosts.is_first() else nullcontext() as writer,
            Profiler(config.logging, workdir) as profiler,
            closing(ResourceMeter()) as meter,
        ):
            if writer is not None:
                writer.write_board(hparams)
                alarms = Alarms(config.alarms, read_metrics(workdir))
            try:
                for number, step in enumerate(range(start + 1, config.steps + 1), start=1):
                    # First of the step that a start goes on from, if a kill left it undone.
                    evaluations.while_training(start, state.train.weights)
                    with profiler.step(number):
                        began = time.perf_counter()
                        output = step_function(state, step)
                        took = time.perf_counter() - began
                    state, metrics = output.state, output.metrics
                    watch.check(step, state.train, metrics)
                    goodput.add(took)
                    metrics["learning_rate"] = _learning_rate(config, step, metrics)
                    metrics |= {"perf/step_s": took, "perf/goodput": goodput.share()} | meter.metrics()
                    lease.check()
                    records.check()
                    if writer is not None:
                        _report(config, step, metrics, writer, progress, alarms)
                    if output.episodes is not None:
                        _show_episodes(config, step, output.episodes, writer, records)
                    # Before the next step samples: the episodes hold the pixels of every view.
                    del output
                    saved = {"seed": config.seed, "productive_s": goodput.productive, "base": base}
                    if step % config.checkpoint.every == 0 or step == config.steps:
                        checkpoints.save(step, state.without_frozen, saved, metrics)
                    start = step
                    stop.check()
            except Interrupted:
                # A rollout that was under way is dropped; the state is that of the last whole step.
                lease.check()
                if start > (restored[0] if restored else 0):
                    checkpoints.save(start, state.without_frozen, saved, metrics)
                checkpoints.wait()
                _say_stopped(start, config.steps)
                raise
        params = state.train.weights
    lease.check()
    save_policy(config, agent.graphdef, params, workdir / POLICY_NAME, workdir, config.steps)
    evaluations.after(params)
    # A process that leaves long before another, which writes the policy, takes it along.
    hosts.gather(None)


def _load_agent(config: TrainConfig, meshes: Meshes) -> Agent:
    """The agent, with the face store of the data; checked for what the episodes of training and evaluation need."""
    store = open_face_store(config.data)
    if config.evaluation is not None:
        open_cache(config.evaluation.data.cache_directory)
    agent = load_agent(
        config.model,
        config.views,
        config.rollout,
        faces=config.faces,
        seed=config.seed,
        store=store,
        meshes=meshes,
        lora=config.lora,
    )
    if config.lora is None and config.model.stored_adapter is not None:
        raise FieldError(
            "config.model.path",
            f"is {config.model.path!r}, an adapter; it must be a whole model without a section config.lora",
        )
    for data in (config.data, *(() if config.evaluation is None else (config.evaluation.data,))):
        for labels in label_sets(data):
            agent.check_prompt(labels)
    return agent


def _report(
    config: TrainConfig,
    step: int,
    metrics: Mapping[str, Any],
    writer: MetricWriter,
    progress: Progress,
    alarms: Alarms,
) -> None:
    """Writes the metrics of a step and shows the progress, now and then; logs what they set off, at every step."""
    progress.count(step)
    if step % config.logging.every == 0 or step == config.steps:
        writer.write(step, metrics)
        progress.tell(_shown(metrics))
    for alarm in alarms.update(step, metrics):
        log.warning("step %d: %s", step, alarm)


def _learning_rate(config: TrainConfig, step: int, metrics: Mapping[str, Any]) -> float:
    """The rate of the last update up to a step that was not skipped: the schedule counts no others."""
    skipped = sum(int(value) for name, value in metrics.items() if name.endswith("/skipped_updates"))
    schedule = learning_rate(config.optimizer, config.steps * config.batch.updates)
    return float(schedule(max(step * config.batch.updates - skipped - 1, 0)))


def _shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of `SHOWN`."""
    names = [name for shown in SHOWN for name in metrics if name == shown or name.rpartition("/")[0] == shown]
    return {name: float(metrics[name]) for name in names}


def _check(stop: Termination, doing: str) -> None:
    """Raises Interrupted if the run was told to stop. For phases that have nothing to save."""
    try:
        stop.check()
    except Interrupted:
        log.warning("told to stop while %s; the same command starts again", doing)
        raise


def _say_stopped(step: int, steps: int) -> None:
    if step:
        log.warning("told to stop: saved step %d of %d; the same command goes on from there", step, steps)
    else:
        log.warning("told to stop before the first step was done; the same command starts again")


def _check_restored(config: TrainConfig, workdir: epath.Path, step: int, state: RunState, mesh: Mesh | None) -> None:
    """Makes sure that the run can go on from a checkpoint.

    Raises:
      ConfigError: the run has more steps than the config.
      NotFiniteError: the checkpoint holds numbers that are not finite.
    """
    if step > config.steps:
        raise ConfigError(
            f"config.steps is {config.steps}, but {workdir} has trained {step}; give at least as many, or export an "
            "earlier checkpoint"
        )
    if named := not_finite(state, mesh):
        raise NotFiniteError(
            f"{workdir / 'checkpoints' / str(step)}: {len(named)} arrays are not finite ({listed(named)}); move this "
            "directory away, and the run goes on from the checkpoint before it"
        )


def _keep_programs(directory: epath.Path) -> None:
    """Keeps compiled programs for the next start of this run, unless the user has set another place for them.

    Must be called before anything is compiled.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        # XLA's programs for CPUs lose the order of their collectives on disk: read back, they may wait for ever.
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _open_workdir(
    workdir: epath.Path,
    config: TrainConfig,
    raw_config: ml_collections.ConfigDict,
    stop: Termination,
    lease: Lease,
    allow_changes: Sequence[str],
) -> tuple[float, int]:
    """Makes the workdir a workdir of this run alone, and makes sure that every process can use it.

    Returns:
      When the run first started, seconds since 1970, and the fewest steps between two of its checkpoints.

    Raises:
      WorkdirError, ConfigError: one of them cannot, or another run trains there.
      OutputError: the policy could not be written into it at the end.
    """

    def begin() -> tuple[float, int]:
        # Again: who had the lease until now may have begun a run of another config.
        check_workdir(workdir, raw_config, allow_changes)
        check_policy_directory(config, workdir, workdir / POLICY_NAME)
        manifest = write_manifest(workdir, raw_config, prompts_hash(load_format(config.rollout).make_prompt))
        return manifest["started"], manifest["checkpoint_every"]

    hosts.from_first(partial(check_workdir, workdir, raw_config, allow_changes))
    lease.take(partial(_check, stop, "waiting for the workdir"))
    started, every = hosts.from_first(begin)
    manifest = workdir / MANIFEST
    seen = hosts.gather(hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else "")
    if len(set(seen)) > 1:
        raise ConfigError(
            f"the workdir {workdir} of process 0 is not seen by all processes: give a --workdir on a file system "
            "that every host has mounted, or in a bucket"
        )
    problem = ""
    if not hosts.is_first():
        # By now the manifest is there, with the config of process 0.
        try:
            check_workdir(workdir, raw_config)
        except WorkdirError as error:
            problem = str(error)
    if problems := list(filter(None, hosts.gather(problem))):
        raise WorkdirError(problems[0])
    return started, every


def _show_episodes(
    config: TrainConfig, step: int, episodes: Episodes, writer: MetricWriter | None, records: BackgroundWriter
) -> None:
    """Writes the records of the episodes that this process owns. On the first process, TensorBoard gets the rewards and
    advantages of all, and now and then two of the process's own episodes: one at random and the worst."""
    rollouts, scores, advantages = episodes
    played = [
        (q, g, rollout) for q, group in enumerate(rollouts) for g, rollout in enumerate(group) if not rollout.failure
    ]
    owned = [(q, g, rollout) for q, g, rollout in played if rollout.owner == jax.process_index()]
    if config.logging.records_every and step % config.logging.records_every == 0:
        records.write(
            step,
            (
                to_record(
                    rollout,
                    id=f"{step}-{q}-{g}",
                    reward=scores[q][g],
                    advantage=float(advantages[q, g]),
                    trained_on=config.trained_on,
                )
                for q, g, rollout in owned
            ),
        )
    if writer is None:
        return
    if step % config.logging.every == 0 or step == config.steps:
        rewards = np.array([scores[q][g]["total"] for q, g, _ in played])
        spread = {"rewards": rewards, "advantages": np.array([advantages[q, g] for q, g, _ in played])}
        writer.write_histograms(step, spread)
    if owned and config.logging.episodes_every and step % config.logging.episodes_every == 0:
        worst = min(owned, key=lambda one: scores[one[0]][one[1]]["total"])
        for name, (q, g, rollout) in (("at random", random.Random(step).choice(owned)), ("worst", worst)):
            caption = episode_caption(rollout, scores[q][g]["total"])
            writer.write_images(step, {f"episodes/{name}": episode_picture(rollout, caption)})
            writer.write_texts(step, {f"episodes/{name}, text": f"{episode_text(rollout)}\n\n{caption}"})


def check_policy_directory(
    config: TrainConfig, workdir: epath.Path, directory: epath.Path, *, merged: bool = False
) -> None:
    """Makes sure that a policy of a run can be written to a directory, and takes nothing from the run.

    Args:
      merged: as for `save_policy`.

    Raises:
      OutputError: it cannot, or would; the message says what is in the way.
    """
    check_apart(directory, workdir)
    for key in ("path", "adapter"):
        began = getattr(config.model, key)
        if began not in ("", "demo") and same_place(directory, began):
            raise OutputError(f"{directory} is config.model.{key}, which the run began with; choose another place")
    check_directory(directory, POLICY if config.lora is None or merged else ADAPTER)


def save_policy(
    config: TrainConfig,
    graphdef: nnx.GraphDef[Qwen3VL],
    params: Params,
    directory: epath.Path,
    workdir: epath.Path,
    step: int,
    *,
    merged: bool = False,
) -> None:
    """Writes a run's policy of a step as a Hugging Face directory that can be evaluated, analysed with, and trained on.

    Args:
      merged: write a whole model where adapters were trained, too, in place of the adapters.
    """
    model = nnx.merge(graphdef, params)
    model.source = str(config.model.directory)
    # Frozen parameters may be of a shorter type.
    model.execution = dataclasses.replace(model.execution, param_dtype=config.model.param_dtype)
    is_adapter = config.lora is not None and not merged
    files = policy_files(config, workdir, step, directory, is_adapter=is_adapter) if hosts.is_first() else {}
    if config.lora is None or merged:
        write_model_directory(model, directory, files)
    else:
        save_adapter(model, directory, config.lora, config.model.base, files)
    if hosts.is_first():
        log.info("the policy is in %s", directory)


def _tell_sizes(name: str, samples: int, parameters: int, frozen: int) -> None:
    log.info(
        "%s: %d samples; the model has %s parameters, of which %s are trained",
        *(name, samples),
        *(f"{count:,}" for count in (parameters, parameters - frozen)),
    )


def _count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
