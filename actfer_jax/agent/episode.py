"""Episodes: what happened in one attempt of the policy at one sample, and what is known about that sample."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actfer_jax.agent.parser import ParsedTurn, answer_start, parse_turn
from actfer_jax.faces.images import ImageError, check_image
from actfer_jax.faces.views import Box, View


@dataclass(frozen=True)
class Reference:
    """What a data set knows about one sample.

    Attributes:
      labels: the emotion labels of the data set, in its own order and spelling. Without any, only action units are
        asked for.
      emotion: the true label (any spelling that `facs.normalise_emotion` knows), or None if unlabelled.
      aus: the action units that are present, or None if AUs are not annotated.
      known_aus: the action units that were annotated at all, or None for every AU.
      aus_from: the annotator that found `aus`, such as "LibreFace"; "" where people coded them.
      fine_aus: those of `aus` that only a zoom resolves, as far as the data set knows.
      strata: names of the parts of the data set that the sample belongs to, such as "occluded" or "female". Metrics
        are shown for each. A name has letters, digits, "_", "-" and ".".
      busy_region: the region of which the aligned view shows that there is more to see than it resolves; "" for none,
        or where nobody said.
      face_box: where the face that is meant is, (left, top, right, bottom) in pixels; None where there is one only.
      extra: what else the data set records; never shown to the policy, but for its own "prompt", to a passive model.

    Raises:
      ValueError: a stratum has no such name.
    """

    labels: tuple[str, ...]
    emotion: str | None = None
    aus: frozenset[int] | None = None
    known_aus: frozenset[int] | None = None
    fine_aus: frozenset[int] = frozenset()
    strata: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    aus_from: str = ""
    busy_region: str = ""
    face_box: Box | None = None

    def __post_init__(self) -> None:
        for stratum in self.strata:
            if not re.fullmatch(r"[\w.-]+", stratum):
                raise ValueError(f"strata has {stratum!r}; a name has letters, digits, _, - and . only")

    @property
    def has_aus(self) -> bool:
        """Whether any action unit was annotated."""
        return self.aus is not None and self.known_aus != frozenset()


@dataclass(frozen=True)
class Sample:
    """One image, or several that belong together, with what is known about them.

    Attributes:
      dataset, name: where it comes from; the pair is unique.
      images: uint8 [H, W, 3] each, in the order in which they are shown. Of several, such as the onset and the apex of
        an expression, the reference is about the last.
      which: which of several faces is meant, in words that the request takes in, such as "on the left"; "" where there
        is one only.

    Raises:
      ImageError: there is no image, or one is no such array.
    """

    dataset: str
    name: str
    images: tuple[np.ndarray, ...]
    reference: Reference
    which: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        where = f"{self.dataset}/{self.name}"
        if not isinstance(self.images, tuple) or not self.images:
            raise ImageError(f"{where}: images is no tuple of one image or more")
        for index, image in enumerate(self.images):
            try:
                check_image(image)
            except ImageError as error:
                number = f", image {index}" if len(self.images) > 1 else ""
                raise ImageError(f"{where}{number}: {error}") from error

    @property
    def key(self) -> tuple[str, str]:
        """What the faces found in the images are remembered by."""
        return self.dataset, self.name


@dataclass(frozen=True)
class Reply:
    """What a tool call brought: one line of text and, if it executed, perhaps a view.

    Attributes:
      text: the line that the policy reads.
      ok: whether the call executed.
      tool: the tool's name; "" where the call could not be read.
      view: the new view, or None.
      region: the named region of a zoom; "bbox" for a zoom into a box; "" otherwise.
      inspects: the call is a zoom into a region of a face, or into a box with at least half of its area inside the
        aligned view of a face, and with an area of 0.05 to 0.9 of the face box's.
      found_by: the step of the search (`config.faces.steps`) that found the faces of the image; "" without any.
    """

    text: str
    ok: bool
    tool: str = ""
    view: View | None = None
    region: str = ""
    inspects: bool = False
    found_by: str = ""


@dataclass
class Turn:
    """One assistant turn and the reply to it.

    Attributes:
      text: what the policy wrote, without the end-of-turn token.
      parsed: the same, read by the turn grammar.
      reply: the reply, or None after an answer or a malformed turn.
      seconds: wall-clock time spent in the tool.
      truncated: the turn ran into its length limit, and its end was inserted.
      answer_start: the index in `text` at which an answer begins, well formed or not; -1 if none does.
    """

    text: str
    parsed: ParsedTurn
    reply: Reply | None = None
    seconds: float = 0.0
    truncated: bool = False
    answer_start: int = -1


@dataclass
class Episode:
    """One attempt at one sample.

    Attributes:
      turns: the turns in order. The episode is over when the last one answers, is malformed, or ran out of room.
      forced: "" (free), "zoom" or "answer": the arm that the instruction in the reply assigned.
      ask_aus: action units were asked for.
    """

    turns: list[Turn] = field(default_factory=list)
    forced: str = ""
    ask_aus: bool = True

    @classmethod
    def from_texts(cls, *texts: str, replies: tuple[Reply, ...] = ()) -> "Episode":
        """An episode from what the policy wrote, turn by turn; calls without a reply are taken to have executed."""
        episode = cls()
        for index, text in enumerate(texts):
            parsed = parse_turn(text)
            reply = None
            if parsed.calls:
                tool = parsed.call.name if parsed.call else ""
                default = Reply("done", ok=parsed.call is not None, tool=tool)
                reply = replies[index] if index < len(replies) else default
            start = -1 if parsed.calls else answer_start(text)
            episode.turns.append(Turn(text, parsed, reply, answer_start=start))
        return episode

    @property
    def answer(self) -> ParsedTurn | None:
        """The last turn, if it answers."""
        last = self.turns[-1].parsed if self.turns else None
        return last if last is not None and last.answers else None

    @property
    def replies(self) -> list[Reply]:
        return [turn.reply for turn in self.turns if turn.reply is not None]

    @property
    def zooms(self) -> list[Reply]:
        """The zooms that executed."""
        return [reply for reply in self.replies if reply.ok and reply.tool == "zoom"]

    @property
    def inspected(self) -> bool:
        """The z of UC-GRPO: the rollout executed a zoom into the face."""
        return any(zoom.inspects for zoom in self.zooms)

    @property
    def decided(self) -> bool:
        """The c of UC-GRPO: the rollout inspected, or began an answer. One that failed before either is in no arm."""
        return self.inspected or any(turn.answer_start >= 0 for turn in self.turns)
