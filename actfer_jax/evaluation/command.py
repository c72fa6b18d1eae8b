"""Loads a policy for the commands that run a checkpoint."""

import logging
from dataclasses import replace

from etils import epath

from actfer_jax import facs
from actfer_jax.agent.policy_card import FILE_NAME, PolicyCard
from actfer_jax.config import ConfigError, read_config
from actfer_jax.faces.detector import DEFAULT_FACES, FaceConfig
from actfer_jax.faces.store import FaceStore
from actfer_jax.faces.views import ViewConfig
from actfer_jax.parallel import hosts
from actfer_jax.rollout.agent import Agent, ModelConfig, load_agent
from actfer_jax.rollout.engine import RolloutConfig

log = logging.getLogger(__name__)

_LIMITS = ("prompt_tokens", "turn_tokens", "reply_tokens", "max_length")
_WORDS = 96  # Most tokens that a prompt and its tools say more where there are several images.


def load_policy(
    checkpoint: str,
    dtype: str,
    landmarks: str = "",
    faces: FaceConfig = DEFAULT_FACES,
    store: FaceStore | None = None,
    images: int = 1,
) -> tuple[Agent, PolicyCard]:
    """Loads a checkpoint for acting only, with the views and capacities of its training.

    A Qwen3-VL that was not trained here has no `actfer.json`. It acts with the default views and capacities, and its
    labels are all emotions.

    Args:
      checkpoint: a Hugging Face directory, or one with an adapter; "demo" is the one in the package.
      dtype: of weights and activations: "float32" or "bfloat16".
      landmarks: a file with a landmark model, instead of the installed one.
      faces, store: as for `load_agent`.
      images: as for `read_card`.

    Raises:
      ConfigError: something is missing or does not fit, or jax finds no device; the message says what.
    """
    hosts.start_devices()
    try:
        model = ModelConfig(path=checkpoint, dtype=dtype, param_dtype=dtype, remat="none", landmarks=landmarks)
        card, views, rollout = read_card(model.card_directory, images)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"checkpoint {checkpoint!r} cannot be used: {error}") from error
    return load_agent(model, views, rollout, faces=faces, store=store), card


def read_card(directory: epath.PathLike, images: int = 1) -> tuple[PolicyCard, ViewConfig, RolloutConfig]:
    """The card of a model directory with its views and capacities, or the defaults where there is none.

    Args:
      images: images of a sample that there must be room for, where the policy's training had less.

    Raises:
      ValueError: the card cannot be read.
    """
    if (epath.Path(directory) / FILE_NAME).exists():
        card = PolicyCard.load(directory)
    else:
        log.info("%s has no %s: it acts with the default views and capacities", directory, FILE_NAME)
        card = PolicyCard(facs.EMOTIONS, (), {}, {})
    views = read_config(card.views, ViewConfig, f"{FILE_NAME}: views")
    limits = dict(card.rollout)
    if set(_LIMITS) <= set(limits) and all(type(limits[name]) is int for name in _LIMITS):
        # Before a cut turn's end token was reckoned with, the tightest rows were one token shorter.
        prompt, turn, reply, length = (limits[name] for name in _LIMITS)
        limits["max_length"] = length + (length == prompt + 2 * turn + reply)
    return card, views, _with_room(read_config(limits, RolloutConfig, f"{FILE_NAME}: rollout"), images, views)


def _with_room(rollout: RolloutConfig, images: int, views: ViewConfig) -> RolloutConfig:
    if images <= rollout.images:
        return rollout
    room = (images - rollout.images) * (views.scene_max_tokens + _WORDS)
    return replace(
        rollout,
        images=images,
        prompt_tokens=rollout.prompt_tokens + room,
        max_length=rollout.max_length + room,
    )
