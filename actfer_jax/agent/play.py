"""Plays the episodes of a policy whose model runs elsewhere, in transformers or on a server of one's own."""

from dataclasses import fields

from etils import epath

from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import Environment, EpisodeConfig, Observation
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.policy_card import FILE_NAME, PolicyCard
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import read_config
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.images import load_image
from actfer_jax.faces.views import ViewConfig


def rules_of(card: PolicyCard) -> tuple[EpisodeConfig, ViewConfig]:
    """The rules and the sizes of views that a policy was trained with.

    Raises:
      ConfigError: its card is damaged.
    """
    known = {field.name for field in fields(EpisodeConfig)}
    rules = {key: value for key, value in card.rollout.items() if key in known}
    return read_config(rules, EpisodeConfig, FILE_NAME), read_config(card.views, ViewConfig, f"{FILE_NAME}: views")


def begin(policy: epath.PathLike, photo: epath.PathLike, base: str = "") -> tuple[Environment, Observation]:
    """Begins an episode of a photograph by the rules and with the tools that a policy was trained with.

    Args:
      policy: a directory with its card (`actfer.json`).
      photo: a picture file.
      base: the directory with the tokenizer and chat template, where `policy` has none: of an adapter its base.

    Returns:
      The environment, whose `step` takes the turns of the model, and what the model reads first.

    Raises:
      FileNotFoundError, ValueError: the policy has no card or no tokenizer, or it is damaged.
      ImageError: the picture cannot be read.
    """
    card = PolicyCard.load(policy)
    rules, views = rules_of(card)
    environment = Environment(
        rules,
        Chat.from_pretrained(base or str(policy)),
        Toolbox(FaceDetector(), views),
        lambda view: view.height * view.width // views.multiple**2,
    )
    sample = Sample("photographs", str(photo), (load_image(photo),), Reference(card.labels))
    return environment, environment.reset(sample)
