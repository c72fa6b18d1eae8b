"""Episodes of a scripted policy: what it writes is given, the face tools are real, and no model is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actfer_jax.agent import prompts
from actfer_jax.agent.episode import Episode, Reply, Turn
from actfer_jax.agent.parser import answer_start, parse_turn
from actfer_jax.agent.tools import Toolbox
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import ViewConfig
from actfer_jax.rollout.batch import Sequence as TokenSequence
from actfer_jax.rollout.engine import Query, Rollout, RolloutConfig, RolloutResult

Script = Callable[[Query, str], Sequence[str]]
"""The turns that a policy writes about a query under a treatment."""


def call(name: str, think: str = "", **arguments: str) -> str:
    given = ", ".join(f'"{key}": "{value}"' for key, value in arguments.items())
    return f'<think>{think}</think>\n<tool_call>\n{{"name": "{name}", "arguments": {{{given}}}}}\n</tool_call>'


def answer(emotion: str, aus: str = "none", think: str = "") -> str:
    return f"<think>{think}</think>\n<aus>{aus}</aus>\n<answer>{emotion}</answer>"


def play(query: Query, texts: Sequence[str], toolbox: Toolbox, *, max_turns: int = 4, treatment: str = "") -> Rollout:
    """Plays the turns until one does not call, or none are left."""
    episode, views = Episode(), [toolbox.scene(query.images[0])]
    for number, text in enumerate(texts, start=1):
        turn = Turn(text, parse_turn(text), seconds=0.01, answer_start=answer_start(text))
        episode.turns.append(turn)
        if not turn.parsed.calls:
            break
        if number == max_turns:
            name = turn.parsed.call.name if turn.parsed.call else ""
            turn.reply = Reply(prompts.NO_CALLS_LEFT, ok=False, tool=name)
            break
        turn.reply = toolbox.execute(
            turn.parsed.call,
            turn.parsed.error,
            images=[query.images[0]],
            key=query.key,
            views=views,
            treatment=treatment,
        )
        if turn.reply.view is not None:
            views.append(turn.reply.view)
    tokens = list(range(5 + len(episode.turns)))
    policy = [index >= 5 for index in tokens]
    log_probs = -np.arange(len(tokens), dtype=np.float32) / 3 * policy
    return Rollout(query, episode, views, TokenSequence(tokens, policy, []), log_probs, log_probs * 2)


class ScriptedEngine:
    """What evaluation and analysis use of a `RolloutEngine`."""

    def __init__(self, toolbox: Toolbox, script: Script, queries: int = 1):
        self.toolbox, self.script, self.queries = toolbox, script, queries
        self.chat = ScriptedChat()
        self.batches: list[int] = []
        self.arms: list[str] = []

    def run(
        self,
        params: object,
        queries: list[Query],
        *,
        seed: int,
        step: int,
        forced: Sequence[Sequence[str]] = (),
        treatment: str = "",
        **unused: object,
    ) -> RolloutResult:
        del params, seed, step
        assert 0 < len(queries) <= self.queries
        self.batches.append(len(queries))
        self.arms += [arm for group in forced for arm in group]
        return RolloutResult(
            [[play(query, self.script(query, treatment), self.toolbox, treatment=treatment)] for query in queries]
        )


class ScriptedChat:
    """What evaluation and analysis use of a `Chat`, for turns of a single token."""

    def token_at(self, ids: list[int], place: int) -> int:
        return 0


@dataclass(frozen=True)
class ScriptedAgent:
    """What evaluation and analysis use of an `Agent`."""

    toolbox: Toolbox
    script: Script
    rollout: RolloutConfig = RolloutConfig()
    params: None = None
    chat: ScriptedChat = ScriptedChat()

    def check_prompt(self, labels: tuple[str, ...]) -> None: ...

    def engine(self, *, queries: int, group_size: int, greedy: bool) -> ScriptedEngine:
        assert group_size == 1 and greedy
        return ScriptedEngine(self.toolbox, self.script, queries)


def small_toolbox() -> Toolbox:
    """The face tools with the small views of the demo."""
    sizes = {"scene_min_pixels": 2048, "scene_max_pixels": 9216, "zoom_min_pixels": 2048, "zoom_max_pixels": 6144}
    return Toolbox(FaceDetector(), ViewConfig(aligned_side=64, **sizes))
