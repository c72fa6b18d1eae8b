"""The whole configuration of a training run, as dataclasses that check themselves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import ml_collections
from jax.sharding import Mesh

from actfer_jax.config import (
    ConfigError,
    Count,
    FieldError,
    Seed,
    at_least,
    check_fields,
    one_of,
    read_config,
    with_new_names,
)
from actfer_jax.data.sources import DataConfig
from actfer_jax.evaluation.controls import CONTROLS
from actfer_jax.faces.detector import FaceConfig
from actfer_jax.faces.views import ViewConfig
from actfer_jax.models.lora import LoraConfig
from actfer_jax.parallel.resharding import common_mesh
from actfer_jax.parallel.sharding import MeshConfig, Meshes, check_multiple, row_shards, shared_rows
from actfer_jax.rl.estimators import EstimatorConfig
from actfer_jax.rl.loss import LossConfig
from actfer_jax.rl.rewards import BaseRewardConfig, RewardConfig
from actfer_jax.rl.ucgrpo import UCGRPOConfig
from actfer_jax.rollout.agent import ModelConfig
from actfer_jax.rollout.engine import RolloutConfig
from actfer_jax.runs.alarms import AlarmConfig
from actfer_jax.training.optimizer import OptimizerConfig
from actfer_jax.training.recorded import read_traces
from actfer_jax.training.traces import TraceConfig


@dataclass(frozen=True)
class BatchConfig:
    """What one step takes in, and how the update divides it; every number at least 1.

    Attributes:
      queries: samples a step, a multiple of microbatches.
      rollouts: episodes of each: 1 in supervised training, and at least 2 from rollouts, which are compared.
      length: positions a row is padded to in the update, and most that it may have.
      length_buckets: lengths below `length`. The rows of rollouts are padded to the least that the longest of a batch
        fits into, after `rollout.prompt_tokens` for the prompt that a group shares. Each length that occurs compiles an
        update of its own.
      microbatches: slices of whole groups whose gradients are added up.
      updates: passes over the batch, each one an update.
      chunk: tokens whose logits exist at one time.
    """

    queries: Count = 32
    rollouts: Count = 8
    length: Count = 3072
    length_buckets: tuple[Count, ...] = ()
    microbatches: Count = 1
    updates: Count = 1
    chunk: Count = 1024

    def __post_init__(self) -> None:
        check_fields(self)
        for index, length in enumerate(self.length_buckets):
            if length >= self.length:
                raise FieldError(
                    f"length_buckets[{index}]", f"is {length}; it must be below length, which is {self.length}"
                )
        if self.queries % self.microbatches:
            raise FieldError(
                "queries", f"is {self.queries}; it must be a multiple of microbatches ({self.microbatches})"
            )


@dataclass(frozen=True)
class RowLayout:
    """How the rows of rollouts lie in an update.

    Attributes:
      group_size: rows that share their scenes and the start of their prompt: those of a group that lie on one device.
      prefix: room for that start. It is in every length, since attention goes over both.
      lengths: to which rows are padded, in ascending order.
    """

    group_size: int
    prefix: int
    lengths: tuple[int, ...]

    def padded(self, longest: int) -> int:
        """The least length for rows that need `longest` positions (`rollout.batch.longest_row`)."""
        return next((length for length in self.lengths if length >= longest), self.lengths[-1])


def row_layout(size: BatchConfig, rollout: RolloutConfig, mesh: Mesh | None) -> RowLayout:
    """The layout on an update mesh. The longest of its lengths takes every row that a rollout can leave."""
    group_size = shared_rows(size.rollouts, size.queries * size.rollouts // size.microbatches, mesh)
    prefix = rollout.prompt_tokens if group_size > 1 else 0
    longest = max(size.length, prefix + rollout.suffix_tokens) if prefix else size.length
    return RowLayout(group_size, prefix, (*sorted(b for b in size.length_buckets if b > prefix), longest))


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which of them stay; every number at least 1.

    Attributes:
      every: steps between two of them.
      keep: how many of the newest stay.
      best: how many of the best stay in addition.
      best_metric: the metric that is highest in the best, such as "reward/total"; "" keeps the newest only.
    """

    every: Count = 20
    keep: Count = 2
    best: Count = 1
    best_metric: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LoggingConfig:
    """What is shown while the run goes on.

    Attributes:
      every: steps between two rows of metrics, at least 1.
      episodes_every: steps between two looks at episodes in TensorBoard, one at random and the worst; 0 for none.
      records_every: steps between two files of episode records; 0 for none.
      profile_start, profile_steps: the window that the profiler records: the first step, counted from 1 at each start,
        and how many; 0 for none.
      memory_profile_step: after which step of this start the contents of device memory are noted; 0 for none.
    """

    every: Count = 1
    episodes_every: Annotated[int, at_least(0)] = 10
    records_every: Annotated[int, at_least(0)] = 20
    profile_start: Count = 10
    profile_steps: Annotated[int, at_least(0)] = 0
    memory_profile_step: Annotated[int, at_least(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy evaluation before and after training, and on a part of the samples meanwhile.

    Attributes:
      data: the held-out samples.
      controls: what is evaluated in addition to the unchanged policy: "no_tools", "blank_crop", "low_res_crop",
        "always_zoom", "never_zoom".
      queries: samples at a time, at least 1.
      every: steps between two evaluations while training; 0 for none.
      size: how many of the samples these take, which are always the same; at least 1, and all where there are fewer.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(split="test", size=700))
    controls: tuple[Annotated[str, one_of(*CONTROLS)], ...] = ("no_tools", "blank_crop", "low_res_crop")
    queries: Count = 64
    every: Annotated[int, at_least(0)] = 0
    size: Count = 128

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      algorithm: "sft" learns from traces, "rl" from rollouts.
      seed: of everything that is random; from 0 to 2^32 - 1.
      steps: how many, at least 1.
      mesh: over which devices are arranged.
      evaluation: None for no evaluation.
      lora: the adapters to train; None to train the model's own parameters.
    """

    algorithm: Annotated[str, one_of("sft", "rl")]
    seed: Seed
    steps: Count
    model: ModelConfig
    data: DataConfig
    views: ViewConfig
    rollout: RolloutConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    faces: FaceConfig = field(default_factory=FaceConfig)
    traces: TraceConfig = field(default_factory=TraceConfig)
    reward: BaseRewardConfig = field(default_factory=RewardConfig)
    estimator: EstimatorConfig = field(default_factory=UCGRPOConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    evaluation: EvaluationConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_frozen()
        if self.model.param_dtype != "float32":
            raise FieldError(
                "model.param_dtype",
                f"is {self.model.param_dtype!r}; it must be float32 in training: an update is smaller than what "
                "bfloat16 resolves, so that most weights would never move (model.dtype, of the computation, may be "
                "bfloat16)",
            )
        if self.algorithm == "sft" and self.batch.rollouts != 1:
            raise FieldError("batch.rollouts", f"is {self.batch.rollouts}; it must be 1 in supervised training")
        if self.algorithm == "rl" and self.batch.rollouts < 2:
            raise FieldError(
                "batch.rollouts",
                f"is {self.batch.rollouts}; it must be at least 2: a rollout is compared with others of "
                "its sample, and alone it teaches nothing",
            )
        if self.algorithm == "rl" and self.estimator.forced_arm_rate and self.batch.rollouts < 4:
            raise FieldError(
                "batch.rollouts",
                f"is {self.batch.rollouts}; it must be at least 4 where arms are forced "
                "(estimator.forced_arm_rate above 0): two are told to zoom and two to answer",
            )
        if self.algorithm == "rl" and self.estimator.forced_arm_rate and self.rollout.max_turns < 3:
            raise FieldError(
                "rollout.max_turns",
                f"is {self.rollout.max_turns}; it must be at least 3 where arms are forced "
                "(estimator.forced_arm_rate above 0): to align, to zoom and to answer",
            )
        if self.algorithm == "rl" and not self.rollout.temperature:
            raise FieldError(
                "rollout.temperature",
                "is 0; it must be above 0, 1 for example: a policy that does not sample has nothing to compare",
            )
        if self.estimator.differs_by_token and self.loss.ratio == "sequence":
            raise FieldError(
                "loss.ratio",
                "is 'sequence'; it must be sequence_token or token where the estimator "
                "gives the tokens of a row different credit (estimator.credit is 'decision')",
            )
        for name, allowed in self.estimator.LOSS.items() if self.algorithm == "rl" else ():
            if (value := getattr(self.loss, name)) not in allowed:
                raise FieldError(
                    f"loss.{name}",
                    f"is {value!r}; it must be {' or '.join(allowed)} where estimator.name is {self.estimator.name!r}, "
                    "whose loss that is",
                )
        if self.algorithm == "sft" and (needed := self.traces.turns) > self.rollout.max_turns:
            raise FieldError(
                "rollout.max_turns",
                f"is {self.rollout.max_turns}; it must be at least {needed}, the most turns of a "
                "trace (fewer with traces.two_zooms=0)",
            )
        if self.algorithm == "rl" and self.batch.length < self.rollout.max_length:
            raise FieldError(
                "batch.length",
                f"is {self.batch.length}; it must be at least rollout.max_length, the most tokens of a "
                f"rollout, which is {self.rollout.max_length}",
            )

    def _check_frozen(self) -> None:
        """Raises FieldError if what is frozen does not fit the rest."""
        if self.lora is not None and self.model.frozen:
            raise FieldError(
                "model.frozen", f"is {self.model.frozen}; it must be () beside lora, which freezes all but the adapters"
            )
        if (self.lora is not None or self.model.frozen) and self.model.initialise == "random":
            raise FieldError(
                "model.initialise",
                "is 'random'; it must be 'pretrained' where parameters are frozen (lora, model.frozen): these would "
                "stay random",
            )
        if self.lora is None and self.model.adapter:
            raise FieldError(
                "model.adapter",
                f"is {self.model.adapter!r}; it must be '' without a section lora, which trains it (a variant such as "
                "configs/ucgrpo.py:lora has one); to train all parameters, merge it into its base first "
                "(`python -m actfer_jax.export --merged`)",
            )

    @property
    def policy_tokens(self) -> int | None:
        """The most tokens of an episode that are trained on; None where that may be all."""
        everything = self.algorithm == "sft" and self.traces.loss_on_prompt
        return None if everything else self.rollout.policy_tokens

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Data sets behind the policy: those of the weights that it began with, those behind the traces that
        it learns from, and the run's own."""
        told = read_traces(self.traces.file) if self.algorithm == "sft" and self.traces.file else ()
        tellers = [name for trace in told for name in trace.trained_on]
        return tuple(dict.fromkeys((*self.model.trained_on, *tellers, *self.data.lineage)))

    @property
    def dropout_seed(self) -> int | None:
        """The seed of the adapters' dropout; None without one."""
        return self.seed if self.lora is not None and self.lora.dropout else None

    def check_meshes(self, meshes: Meshes) -> None:
        """Raises ConfigError, naming what would do, if a mesh cannot divide a batch evenly or the two do not fit."""
        if meshes.update is not None and meshes.rollout is not None:
            common_mesh(meshes.update, meshes.rollout)
        size, updating, playing = self.batch, row_shards(meshes.update), row_shards(meshes.rollout)
        why = f"config.mesh.update divides the rows of each of {size.microbatches} microbatches into {updating} parts"
        # Queries x rollouts must be a multiple of parts x microbatches, and no microbatch may cut a group.
        rows = updating * size.microbatches
        unit = math.lcm(rows // math.gcd(rows, size.rollouts), size.microbatches)
        if self.algorithm == "rl":
            why += f", and config.mesh.rollout divides queries into {playing}"
            unit = math.lcm(unit, playing)
        check_multiple("config.batch.queries", size.queries, unit, why)
        why = f"config.mesh.rollout divides rows into {playing} parts"
        if self.algorithm == "rl" or self.evaluation is not None:
            check_multiple("config.rollout.fill_rows", self.rollout.fill_rows, playing, why)
        if self.evaluation is not None:
            check_multiple("config.evaluation.queries", self.evaluation.queries, playing, why)


def read_train_config(raw_config: ml_collections.ConfigDict | Mapping[str, Any]) -> TrainConfig:
    """The config of a training run.

    Raises:
      ConfigError: as `read_config`; or it is for another command.
    """
    if "algorithm" not in raw_config and "controls" in raw_config:
        raise ConfigError(
            "this is a config for `python -m actfer_jax.evaluate`; training takes one such as configs/ucgrpo.py"
        )
    return read_config(with_new_names(raw_config), TrainConfig, "config")
