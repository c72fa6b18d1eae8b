"""A policy that reads pictures: what `actfer analyze` and people's own programs call.

import actfer_jax

policy = actfer_jax.load_policy("runs/ucgrpo/policy")  # or "demo"
reading = policy.look("photo.jpg")
print(reading.emotion, reading.probability, reading.aus)
open("photo.html", "w").write(reading.html)
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from numpy.typing import NDArray

from actfer_jax import facs
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.cli import printable
from actfer_jax.episodes.page import Card, call_text, card, page, why_no_answer
from actfer_jax.evaluation import command
from actfer_jax.evaluation.confidence import confidence
from actfer_jax.faces.choice import largest_first, most_faces, moved, surroundings
from actfer_jax.faces.detector import Face
from actfer_jax.faces.images import ImageError, load_image
from actfer_jax.faces.views import View, compose
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.engine import Query, Rollout

RENDERED_ONLY = (
    "This model was trained on rendered faces only. Its readings of photographs show how the agent works; "
    "they are not to be relied upon."
)


def caveat(trained_on: Sequence[str]) -> str:
    """A caution about a policy that was trained on these data sets, or ""."""
    return RENDERED_ONLY if trained_on and set(trained_on) <= {"synth_faces", "synth_faces_2"} else ""


@dataclass(frozen=True)
class Reading:
    """What a policy read in one face, or in a whole picture.

    Attributes:
      name: of the picture.
      image: uint8 [H, W, 3], the whole picture.
      faces: all faces that were found in it, the largest first.
      number: which of them was read, from 1; None where none was found or the whole picture was read.
      crop: the part of the picture that the policy was shown, (left, top, right, bottom); None for the whole.
      rollout: the episode. Its views map to pixels of the whole picture.
      probability: of the answered label, given the policy's own words before it; None without a label.
      policy: the policy's name.
      note: a caution about the policy, or "".
    """

    name: str
    image: NDArray[np.uint8]
    faces: tuple[Face, ...]
    number: int | None
    crop: tuple[int, int, int, int] | None
    rollout: Rollout
    probability: float | None
    policy: str
    note: str

    @property
    def emotion(self) -> str | None:
        """The answered label by its canonical name; None without one."""
        answer = self.rollout.episode.answer
        return None if answer is None or answer.answer is None else facs.normalise_emotion(answer.answer)

    @property
    def aus(self) -> frozenset[int] | None:
        """The action units that were named; None without an answer, or where none were asked for."""
        answer = self.rollout.episode.answer
        return None if answer is None else answer.aus

    @property
    def face(self) -> Face | None:
        return None if self.number is None else self.faces[self.number - 1]

    @property
    def views(self) -> list[View]:
        """What the policy saw: the scene, then each view that it asked for."""
        return self.rollout.views

    @property
    def text(self) -> str:
        """The episode as lines for a terminal."""
        lines = [] if self.faces else ["  no face was found in this picture: what follows is a guess"]
        if self.number is not None and len(self.faces) > 1:
            lines = [f"  face {self.number} of {len(self.faces)}"]
        for number, turn in enumerate(self.rollout.episode.turns, start=1):
            parsed = turn.parsed
            lines += _indented(f"  {number}  ", parsed.think if parsed.well_formed else turn.text)
            if parsed.calls:
                lines += _indented("     ", call_text(parsed.call) if parsed.call else "unreadable call")
            if turn.reply is not None:
                lines += _indented("     -> ", turn.reply.text)
        return "\n".join([*lines, f"  {_answer_line(self.rollout.episode, self.probability)}"])

    @property
    def card(self) -> Card:
        """The reading as a part of a page."""
        return card(
            self.name,
            self.image,
            self.rollout,
            self.faces,
            number=self.number,
            crop=self.crop,
            probability=self.probability,
        )

    @property
    def html(self) -> str:
        """A page of its own, which needs no other file."""
        return page([self.card], heading=f"1 picture, read by {self.policy}.", note=self.note)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page, in a frame of its own."""
        return f'<iframe srcdoc="{escape(self.html)}" width="100%" height="640" frameborder="0"></iframe>'


class Policy:
    """A policy that looks at pictures one at a time, by its likeliest tokens.

    Args:
      agent: the model with its tools.
      card: what is known about its training.
      name: what it is called on pages.
    """

    def __init__(self, agent: Agent, card: PolicyCard, name: str):
        self.agent, self.card, self.name = agent, card, name
        self.note = caveat(card.trained_on)
        fast = replace(agent, rollout=replace(agent.rollout, fill_rows=1))  # One row, so that the answer comes early.
        self._engine = fast.engine(queries=1, group_size=1, greedy=True)

    def look(self, image: str | os.PathLike[str] | NDArray[np.uint8], *, name: str = "") -> Reading:
        """Reads the largest face of a picture; the whole picture where no face is found.

        Args:
          image: a file, or uint8 [H, W, 3].
          name: of the picture; by default the file's.

        Raises:
          ImageError: the file cannot be read, the array is no such image, or a face tool failed on it.
        """
        return next(self.look_at_faces(image, "largest", name=name))

    def look_at_faces(
        self, image: str | os.PathLike[str] | NDArray[np.uint8], which: str = "all", *, name: str = ""
    ) -> Iterator[Reading]:
        """Reads several faces of a picture, one episode each, the largest first.

        Where a picture has several faces, the policy is shown the part around one, and its tools know of that face
        alone. A request that names one of several would be in words that no policy was trained on, and a scene of a
        whole group leaves few pixels for each face. The views' maps lead to the whole picture all the same.

        Args:
          image, name: as for `look`.
          which: "largest", "all", a number (the most faces), or "whole": one episode on the picture as it is, in which
            the policy chooses among all faces.

        Raises:
          ImageError: as `look`.
          UserError: `which` is none of these.
        """
        most = most_faces(which)
        if isinstance(image, str | os.PathLike):
            name = name or os.fspath(image)
            image = load_image(os.fspath(image))
        name = name or "picture"
        found = self.agent.toolbox.detector.detect(image)
        faces = largest_first(found)
        if not faces or most == 0:
            yield self._read(name, image, faces, None, None, found)
        elif len(faces) == 1:
            yield self._read(name, image, faces, 1, None, found)
        else:
            for number, face in enumerate(faces[:most], start=1):
                crop = surroundings(image, face)
                yield self._read(name, image, faces, number, crop, (moved(face, *crop[:2]),))

    def _read(
        self,
        name: str,
        image: NDArray[np.uint8],
        faces: tuple[Face, ...],
        number: int | None,
        crop: tuple[int, int, int, int] | None,
        known: tuple[Face, ...],
    ) -> Reading:
        """One episode, in which the tools know of the faces `known`, in pixels of the part that is shown."""
        left, top, right, bottom = crop or (0, 0, image.shape[1], image.shape[0])
        shown = np.ascontiguousarray(image[top:bottom, left:right])
        query = Query("pictures", name, (shown,), Reference(labels=self.card.labels))
        self.agent.toolbox.remember(query.key, known)
        rollout = self._engine.run(self.agent.params, [query], seed=0, step=0).rollouts[0][0]
        if rollout.failure:
            raise ImageError(f"{name}: a face tool failed ({rollout.failure})")
        probability = confidence(self.agent.chat, rollout)
        if crop is not None:
            rollout = _in_whole_picture(rollout, left, top)
        return Reading(name, image, faces, number, crop, rollout, probability, self.name, self.note)


def load_policy(checkpoint: str, dtype: str = "float32", landmarks: str = "") -> Policy:
    """Loads a policy that looks at pictures.

    Args:
      checkpoint: a Hugging Face directory, a name on the hub, gs://..., or "demo", the one in the package.
      dtype: of weights and activations: "float32" or "bfloat16".
      landmarks: a file with a landmark model, instead of the installed one.

    Raises:
      ConfigError: something is missing or does not fit; the message says what.
    """
    return Policy(*command.load_policy(checkpoint, dtype, landmarks), checkpoint)


def _in_whole_picture(rollout: Rollout, left: int, top: int) -> Rollout:
    """A rollout on a part of a picture that begins at (left, top), with views that map to the whole picture."""
    shift = np.array([[1.0, 0.0, left], [0.0, 1.0, top]])

    def place(view: View) -> View:
        return replace(view, to_original=compose(shift, view.to_original))

    turns = [
        turn
        if turn.reply is None or turn.reply.view is None
        else replace(turn, reply=replace(turn.reply, view=place(turn.reply.view)))
        for turn in rollout.episode.turns
    ]
    return replace(rollout, episode=replace(rollout.episode, turns=turns), views=[place(v) for v in rollout.views])


def _answer_line(episode: Episode, probability: float | None) -> str:
    answer = episode.answer
    if answer is None:
        return f"no answer: {why_no_answer(episode)}"
    parts = [] if answer.answer is None else [printable(answer.answer)]
    if probability is not None:
        parts[0] += f" ({probability:.1%})"
    if answer.aus is not None:
        parts.append(", ".join(f"AU{au} {facs.AU_NAMES[au]}" for au in sorted(answer.aus)) or "no action units")
    return ": ".join(parts)


def _indented(start: str, text: str) -> list[str]:
    first, *rest = [line for line in printable(text).split("\n") if line.strip()] or [""]
    return [(start + first).rstrip(), *(" " * len(start) + line for line in rest)]
