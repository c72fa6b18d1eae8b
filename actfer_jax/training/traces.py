"""Supervised traces: what a looker that knows the truth writes, with the views that the real tools return.

A trace teaches how to look, not when or where: it aligns the face, then in 70% of traces zooms into one or two regions
drawn uniformly, whatever the image shows, names after each view the action units seen in it, and answers. Where the
data set knows of a busy region, the thought about the aligned view names it, and the zoom is drawn all the same: seeing
is supervised, choosing is not. Of several faces, the one that is meant is found first. What only a zoom can resolve is
never named before its region was zoomed into; the answer is always the truth, so without the right zoom it is a guess.
Or the turns come from a file (`training.recorded`), and only the replies and views are made here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from actfer_jax import facs
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import Environment, EpisodeConfig, Observation, load_format
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import Count, FieldError, Share, at_least, check_fields, one_of
from actfer_jax.data.errors import DataError
from actfer_jax.faces.views import overlap_area, rectangle
from actfer_jax.rl.levels import score_levels
from actfer_jax.rollout.batch import Patches, Sequence
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.training.recorded import TracedSample

ALIGNED, BUSY = "aligned", "busy"
"""The names of the aligned view, and of the busy region, among the views of a face; the others are called by their
region."""


@dataclass(frozen=True)
class TraceConfig:
    """How the traces are drawn. Shares are from 0 to 1.

    Attributes:
      readings_steps: how many steps begin the training with readings in the place of episodes: views of a face with the
        words about them, each in a row of its own. A model that starts from nothing learns to see from them many times
        faster, and they say nothing of when or where to look.
      readings_views: which views of a face are read: "aligned", a region, or "busy" for the busy region where there is
        one.
      readings_length: positions such a row is padded to, at least 1.
      readings_stratum: read samples of this stratum only, such as "subtle" of the rendered faces; "" for all. Fine
        lines take many times more examples than what is seen from afar.
      no_zoom: share of traces without a zoom; `answer_now` and `instructed_answer` are parts of it.
      answer_now: share of traces that are told to answer at once and use no tool.
      instructed_answer: share of traces that are told after the alignment to answer.
      two_zooms: share of the traces with a zoom that take two.
      instructed_zoom: share of the traces with a zoom that were told to zoom.
      zoom_regions: "any" draws the regions among all; "aus" among those in which an action unit is present, and among
        all where there is none. A trace takes one zoom where only one region is left.
      file: learn from the traces in this file, instead of writing them; "" for none.
      loss_on_prompt: train on all words of an episode, as the code of UniFER and of Facial-R1 does, instead of on what
        the policy writes alone; never on images.
    """

    readings_steps: Annotated[int, at_least(0)] = 0
    readings_views: tuple[Annotated[str, one_of(ALIGNED, BUSY, *facs.REGIONS)], ...] = (ALIGNED, *facs.REGIONS)
    readings_length: Count = 48
    readings_stratum: str = ""
    no_zoom: Share = 0.3
    answer_now: Share = 0.05
    instructed_answer: Share = 0.05
    two_zooms: Share = 0.3
    instructed_zoom: Share = 0.1
    zoom_regions: Annotated[str, one_of("any", "aus")] = "any"
    file: str = ""
    loss_on_prompt: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.readings_views:
            raise FieldError("readings_views", "is (); it must have at least one view")
        if self.answer_now + self.instructed_answer > self.no_zoom:
            raise FieldError(
                "no_zoom",
                f"is {self.no_zoom}; it must be at least answer_now and instructed_answer together, "
                f"{self.answer_now} and {self.instructed_answer}, which are parts of it",
            )

    @property
    def turns(self) -> int:
        """The most turns of a trace that is written here: the alignment, the zooms, the answer."""
        if self.file:
            return 0
        if self.answer_now == 1:
            return 1
        zooms = 0 if self.no_zoom == 1 else 2 if self.two_zooms else 1
        return 2 + zooms


@dataclass(frozen=True)
class Plan:
    """What one trace does.

    Attributes:
      align: align the face first (otherwise the prompt says to answer at once).
      regions: regions to zoom into, in order.
      forced: what the reply with the aligned face instructs: "zoom", "answer", or "" for nothing.
    """

    align: bool
    regions: tuple[str, ...]
    forced: str = ""


def draw_plan(rng: np.random.Generator, config: TraceConfig, regions: tuple[str, ...] = facs.REGIONS) -> Plan:
    """Draws a plan.

    Args:
      regions: those that may be zoomed into.
    """
    u = rng.random()
    if u < config.no_zoom:
        if u < config.answer_now:
            return Plan(align=False, regions=())
        told = u < config.answer_now + config.instructed_answer
        return Plan(align=True, regions=(), forced="answer" if told else "")
    count = 2 if rng.random() < config.two_zooms else 1
    drawn = tuple(str(region) for region in rng.choice(regions, min(count, len(regions)), replace=False))
    told = rng.random() < config.instructed_zoom
    return Plan(align=True, regions=drawn, forced="zoom" if told else "")


class TraceMaker:
    """Writes traces about samples.

    Args:
      rules: the limits of an episode.
    """

    def __init__(
        self,
        config: TraceConfig,
        chat: Chat,
        encoder: ViewEncoder,
        toolbox: Toolbox,
        rules: EpisodeConfig,
    ):
        self.config, self.chat, self.encoder, self.toolbox, self.rules = config, chat, encoder, toolbox, rules
        self.format = load_format(rules)

    def turns(self, sample: Sample, plan: Plan) -> list[str]:
        """What the assistant writes, turn by turn."""
        return [thought + end for thought, end in self._turns(sample, plan)]

    def _turns(self, sample: Sample, plan: Plan) -> list[tuple[str, str]]:
        """The thought of each turn, and the call or answer that follows it."""
        reference, face = self.check(sample), self._face(sample)
        thoughts, calls = [_seen(reference)], []
        if plan.align:
            thoughts = ["Find the face.", _seen_aligned(reference)]
            calls = [_look(sample, face=face)]
            if sample.which:
                thoughts, calls = ["Find the faces.", *thoughts], [ToolCall("detect_faces", _image(sample)), *calls]
        for region in plan.regions:
            thoughts.append(_seen(reference, region))
            calls.append(_look(sample, region, face))
        aus = (reference.aus or frozenset()) if self._asks_aus(reference) else None
        ends = [*map(self.format.call_text, calls), self.format.answer_text(aus, reference.emotion)]
        return [(self._thought(think), end) for think, end in zip(thoughts, ends, strict=True)]

    def _face(self, sample: Sample) -> int:
        """The number of the face that is meant, among those that are found in the picture."""
        meant, last = sample.reference.face_box, len(sample.images) - 1
        if meant is None:
            return 0
        faces = self.toolbox.faces(sample.key, sample.images[last], last)
        shared = [overlap_area(rectangle(meant), face.box) for face in faces]
        return int(np.argmax(shared)) if shared else 0

    def _asks_aus(self, reference: Reference) -> bool:
        return self.rules.ask_aus or not reference.labels

    def _thought(self, think: str) -> str:
        """How a turn begins, without what the chat template opens it with."""
        return self.format.thought_text(think).removeprefix(self.chat.turn_start.strip())

    def check(self, sample: Sample) -> Reference:
        """The reference, if what a trace answers is known.

        Raises:
          DataError: it is not.
        """
        reference = sample.reference
        missing = []
        if self._asks_aus(reference) and not reference.has_aus:
            missing.append("action units")
        if reference.labels and reference.emotion is None:
            missing.append("emotion")
        if missing:
            raise DataError(
                f"{sample.dataset}/{sample.name} has no {' and no '.join(missing)}; traces are written from what is "
                "asked for: leave the sample out (config.data.min_fit=0, where the data set has that key), or ask for "
                "less (config.rollout.ask_aus=False)"
            )
        return reference

    def readings(self, sample: Sample) -> list[Sequence]:
        """What is seen in some views of a face (`config.readings_views`), each in a sequence of its own.

        A sequence is what an episode has there: the tool's reply and the thought about it. Where no face, or no busy
        region, is found there is nothing to read.
        """
        reference, face = self.check(sample), self._face(sample)
        sequences = []
        for view in self.config.readings_views:
            region = {ALIGNED: "", BUSY: reference.busy_region}.get(view, view)
            if view == BUSY and not region:
                continue
            reply = self.toolbox.execute(
                _look(sample, region, face), "", images=sample.images, key=sample.key, views=()
            )
            if reply.view is None:
                continue
            patches = self.encoder(reply.view.pixels)
            context = self.chat.reply_ids(reply.text, self.encoder.tokens(reply.view))
            seen = _seen(reference, region) if region else _seen_aligned(reference)
            words = self.chat.tokenizer.encode(self._thought(seen), add_special_tokens=False)
            loss_mask = [False] * len(context) + [True] * len(words)
            sequences.append(Sequence(context + words, loss_mask, [patches]))
        return sequences

    def episode(self, sample: Sample, rng: np.random.Generator) -> Sequence:
        """One trace of an episode, with the turns that the sample has, or else with a plan that is drawn."""
        if isinstance(sample, TracedSample):
            return self.recorded(sample)
        regions: tuple[str, ...] = ()
        if self.config.zoom_regions == "aus":
            aus = sample.reference.aus or frozenset()
            regions = tuple(region for region in facs.REGIONS if aus & facs.REGION_AUS[region])
        return self.planned(sample, draw_plan(rng, self.config, regions or facs.REGIONS))

    def recorded(self, sample: TracedSample) -> Sequence:
        """The episode of turns that were written before: replies and views are made anew.

        Raises:
          DataError: the turns are no whole episode under these rules and tools.
        """
        environment = self._environment()
        problem = unspeakable(sample.turns, self.chat, self.rules.turn_tokens)
        if not problem:
            sequence = self._play(environment, environment.reset(sample), iter(sample.turns))
            problem = _unfinished(environment, sample)
        if problem:
            raise DataError(
                f"a trace of {sample.dataset}/{sample.name} in traces.file does not fit: {problem}; make the traces "
                "with this config"
            )
        return sequence

    def planned(self, sample: Sample, plan: Plan) -> Sequence:
        """The episode of a plan. Where no face is found, or no room is left for a call, the answer comes next."""
        environment = self._environment()
        observation = environment.reset(sample, arm=plan.forced, answer_now=not plan.align)
        return self._play(environment, observation, _script(environment, self._turns(sample, plan)))

    def _environment(self) -> Environment:
        return Environment(self.rules, self.chat, self.toolbox, self.encoder.tokens)

    def _play(self, environment: Environment, observation: Observation | None, turns: Iterator[str]) -> Sequence:
        """Plays turns, asked for one at a time, until the episode is over or there are no more."""
        tokens: list[int] = []
        loss_mask: list[bool] = []
        views: list[Patches] = []
        while observation is not None:
            tokens += observation.token_ids
            loss_mask += [self.config.loss_on_prompt and id != self.chat.image_pad_id for id in observation.token_ids]
            views += [self.encoder(view.pixels) for view in observation.views]
            text = next(turns, None)
            if text is None:
                break
            turn = self.chat.tokenizer.encode(text, add_special_tokens=False) + [self.chat.turn_end_id]
            tokens += turn
            loss_mask += [True] * len(turn)
            observation = environment.step(text, len(turn))
        loss_mask[0] = False  # Nothing comes before the first token.
        return Sequence(tokens, loss_mask, views, len(environment.sample.images))


def unspeakable(turns: Iterable[str], chat: Chat, turn_tokens: int) -> str:
    """What is wrong with the first turn that no policy could have written; "" where nothing is.

    Args:
      turn_tokens: the limit of a turn (`EpisodeConfig.turn_tokens`).
    """
    special = {id: token for id, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    for number, text in enumerate(turns, start=1):
        ids = chat.tokenizer.encode(text, add_special_tokens=False)
        if forged := next((special[id] for id in ids if id in special), None):
            return f"turn {number} has the token {forged}"
        if len(ids) >= turn_tokens:
            return f"turn {number} has {len(ids)} tokens and an end (rollout.turn_tokens is {turn_tokens})"
    return ""


def _unfinished(environment: Environment, sample: TracedSample) -> str:
    """Why the turns that were played are not the whole of a good episode; "" where they are."""
    episode, given = environment.episode, len(sample.turns)
    if failed := next((reply for reply in episode.replies if not reply.ok), None):
        return f"a call fails ({failed.text})"
    if not environment.done:
        return f"its {given} turns do not end in an answer"
    if len(episode.turns) < given:
        return f"it has {given} turns, of which {len(episode.turns)} are played"
    if not score_levels(episode, sample.reference)["format"]:
        return f"it does not end as was asked for, but with {sample.turns[-1][-80:]!r}"
    return ""


def _script(environment: Environment, turns: list[tuple[str, str]]) -> Iterator[str]:
    """The turns in order, each of a thought and its end. The answer follows at once where no call is left or one was
    refused."""
    answer = turns[-1][1]
    for thought, end in turns:
        refused = not all(reply.ok for reply in environment.episode.replies)
        yield thought + (answer if environment.final or refused else end)


def _look(sample: Sample, region: str = "", face: int = 0) -> ToolCall:
    """The call that aligns the face that the reference is about, or zooms into a region of it."""
    which = ({"face": face} if face else {}) | _image(sample)
    return ToolCall("zoom", {"region": region, **which}) if region else ToolCall("align_face", which)


def _image(sample: Sample) -> dict[str, int]:
    """The argument that says which image the reference is about."""
    last = len(sample.images) - 1
    return {"image": last} if last else {}


def _seen(reference: Reference, region: str = "") -> str:
    """The words for what is seen from afar, or in a zoom into a region; without action units, where one looked."""
    aus = reference.aus or frozenset()
    if not reference.has_aus:
        return region
    if region:
        return f"{region}: {facs.format_aus(aus & facs.REGION_AUS[region])}"
    return facs.format_aus(aus - reference.fine_aus)


def _seen_aligned(reference: Reference) -> str:
    """The words for what the aligned view shows, with the busy region."""
    busy = f"{reference.busy_region} busy" if reference.busy_region else ""
    return ", ".join(filter(None, (_seen(reference), busy)))
