"""How long the devices of a pod wait for their host in a step of reinforcement learning, by simulation.

    nice -n 5 python benchmarks/host_wait.py --words=DIR --json=docs/results/host_wait.json

The step is that of training (`rl_steps`) in the sizes of `configs/ucgrpo.py`, with the tokenizer, template and
processor in `--words` (by default ACTFER_QWEN3_VL of the environment), real face tools and rendered faces of
`--pixels`. All of its work on the host is done here, and counts with the time that its thread had on a core of this
machine, whatever else runs there. Two things are made up. The programs of the devices compute nothing, and take what
the TPU's compiler says (`--estimate`); a script says what the policy writes. And the time is that of a machine with
`--cores`: its threads share the cores evenly, as the programs of the devices go on. One host runs the tools of all
rows, which is more than one of several has to do.

Rows are "scattered": each aligns, zooms up to twice and answers, in turns of 96 to 192 tokens. Or they are "together",
as `compile_check` reckons a step: two zooms each, all turns at their full length, so that nothing decodes while tools
run.

Not in it: sending arrays to the devices, other processes, records, checkpoints, threads that wait for the interpreter's
lock, and a thread that waits for another to encode the same view.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import platform
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from PIL import Image
from places import check_places

from actfer_jax import cli, facs
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.formats import actfer
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.tools import Toolbox
from actfer_jax.compile_check.check import PUBLISHED
from actfer_jax.data.datasets import synth_faces
from actfer_jax.evaluation.tables import align
from actfer_jax.faces.detector import Face, FaceDetector
from actfer_jax.models import Qwen3VLConfig
from actfer_jax.models.layers import Params
from actfer_jax.outputs import write_file
from actfer_jax.parallel import hosts, sharding
from actfer_jax.rollout import batch
from actfer_jax.rollout import engine as engines
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.rollout.programs import Fill
from actfer_jax.training import rl_steps
from actfer_jax.training.config import TrainConfig, read_train_config
from actfer_jax.training.state import initial_state
from configs import ucgrpo

LOADER_THREADS = 2
"""Those of `data.sources.batches`."""
STEP = 2
"""The step that counts: the first compiles the estimator."""


class Host:
    """The cores of a host and its devices, in a time of their own.

    Work is done at once, and takes effect when the simulated threads would have done it.

    Attributes:
      now: seconds.
      busy: seconds that the devices have worked.
      waits: seconds that they waited, by the program that came next.
    """

    def __init__(self, cores: int):
        self.cores = cores
        self.now = self.device_free = self.busy = 0.0
        self.waits = Counter[str]()
        self.queues: dict[str, tuple[int, deque[list[Any]]]] = {}
        self.elsewhere = 0.0
        self.mark = time.thread_time()

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """What the main thread does in here takes no time."""
        self.catch_up()
        try:
            yield
        finally:
            self.mark = time.thread_time()

    def catch_up(self) -> None:
        """Lets the time pass that the main thread has worked since it was asked last."""
        work = time.thread_time() - self.mark
        while work > 0:
            work -= self._pass(work=work)
        self.mark = time.thread_time()

    def submit(self, queue: str, threads: int, work: Callable[[], Any]) -> Future[Any]:
        """Work for the threads of a queue."""
        future: Future[Any] = Future()
        with self.unmeasured():
            began, self.elsewhere = time.thread_time(), 0.0
            try:
                outcome, end = work(), future.set_result
            except BaseException as error:
                outcome, end = error, future.set_exception
            seconds = time.thread_time() - began + self.elsewhere
            jobs = self.queues.setdefault(queue, (threads, deque()))[1]
            jobs.append([seconds, lambda: end(outcome)])
        return future

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """The main thread sleeps until something in the queues is done."""
        with self.unmeasured():
            while not ready():
                self._pass()

    def wait_for_devices(self) -> None:
        with self.unmeasured():
            while self.now < self.device_free:
                self._pass(until=self.device_free)

    def run_on_devices(self, name: str, seconds: float) -> None:
        """Sends a program to the devices, which run one after the other."""
        self.waits[name] += max(self.now - self.device_free, 0.0)
        self.device_free = max(self.now, self.device_free) + seconds
        self.busy += seconds

    def _pass(self, *, work: float = 0.0, until: float = np.inf) -> float:
        """Time passes until the next job, or `work` of the main thread, is done, or until a time; the share of `work`
        that is done."""
        running = [job for threads, jobs in self.queues.values() for job in itertools.islice(jobs, threads)]
        speed = min(1.0, self.cores / max(len(running) + (work > 0), 1))
        left = [job[0] for job in running] + [work] * (work > 0)
        passed = min(min(left, default=np.inf) / speed, until - self.now)
        if not np.isfinite(passed):
            raise RuntimeError("the simulation waits for something that nobody works on")
        self.now = until if passed == until - self.now else self.now + passed
        for job in running:
            job[0] -= passed * speed
        for threads, jobs in self.queues.values():
            ended = [job for job in itertools.islice(jobs, threads) if job[0] <= 1e-12]
            for job in ended:
                jobs.remove(job)
                job[1]()
        return passed * speed if work else 0.0


class Threads:
    """Stands in for a `ThreadPoolExecutor`: that of a rollout's tools, or one of a batch's views."""

    def __init__(self, host: Host, queue: str, threads: int):
        self.host, self.queue, self.threads = host, queue, threads

    def submit(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        return self.host.submit(self.queue, self.threads, lambda: work(*arguments, **options))

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        futures = [self.submit(work, item) for item in items]
        self.host.wait_until(lambda: all(future.done() for future in futures))
        return [future.result() for future in futures]

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def shutdown(self, **_: Any) -> None: ...


class Policy:
    """What the rows of a step write: turns as token ids, by row."""

    def __init__(self, chat: Chat, rows: int, together: bool, turn_tokens: int):
        random_numbers = random.Random(0)
        filler = chat.tokenizer.encode(" brow", add_special_tokens=False)[:1]
        self.rows: list[list[list[int]]] = []
        for _ in range(rows):
            zooms = 2 if together else random_numbers.randrange(3)
            calls = [ToolCall("align_face", {})]
            calls += [ToolCall("zoom", {"region": r}) for r in random_numbers.sample(facs.REGIONS, zooms)]
            emotion = random_numbers.choice(synth_faces.DEMO_EMOTIONS)
            turns = []
            for says in (*map(actfer.call_text, calls), actfer.answer_text(frozenset({4}), emotion)):
                opening, rest = actfer.thought_text("@").split("@")
                before = chat.tokenizer.encode(opening, add_special_tokens=False)
                after = [*chat.tokenizer.encode(rest + says, add_special_tokens=False), chat.turn_end_id]
                count = turn_tokens if together else random_numbers.randint(turn_tokens // 2, turn_tokens)
                turns.append(before + filler * (count - len(before) - len(after)) + after)
            self.rows.append(turns)


class Pod:
    """Stands in for the programs of a rollout, and for those of an update.

    Args:
      seconds: of each program, by its name in the report of `compile_check`.
    """

    def __init__(self, host: Host, seconds: dict[str, float], config: TrainConfig, banned_V: np.ndarray):
        self.host, self.seconds, self.config, self.banned_V = host, seconds, config, banned_V
        self.policy: Policy

    def run(self, name: str, share: float = 1.0) -> None:
        self.host.run_on_devices(name, self.seconds[name] * share)

    def weights(self, params: Params) -> Params:
        self.host.catch_up()
        self.run("rollout weights")
        return params

    def prefill(self, params: Params, tokens_QxP: np.ndarray, count_Q: np.ndarray, *_: Any) -> engines.RowState:
        with self.host.unmeasured():
            self.run("prefill")
            group = self.config.batch.rollouts
            rows, length = len(count_Q) * group, self.config.rollout.max_length
            tokens = np.full((rows, length), -1, np.int32)
            tokens[:, : tokens_QxP.shape[1]] = np.repeat(tokens_QxP, group, axis=0)
            self.turn, self.written = np.zeros(rows, int), np.zeros(rows, int)
            log_probs = np.zeros((rows, length), np.float32)
            columns = [
                np.repeat(count_Q, group),
                np.zeros(rows, np.int32),
                np.zeros(rows, np.int32),
                np.ones(rows, bool),
            ]
            state: list[Any] = [tokens, np.zeros((rows, length), bool), log_probs, log_probs, *columns, None, None]
        self.host.wait_for_devices()
        return engines.RowState(*state)

    def decode(self, params: Params, state: Any) -> Any:
        with self.host.unmeasured():
            most = 0
            for row in np.flatnonzero(state.active):
                turn, start = self.policy.rows[row][self.turn[row]], self.written[row]
                ids = turn[start : start + self.config.rollout.chunk]
                at = slice(state.length[row], state.length[row] + len(ids))
                state.tokens[row, at], state.loss_mask[row, at] = ids, True
                state.length[row] += len(ids)
                self.written[row] += len(ids)
                most = max(most, len(ids))
                if self.written[row] == len(turn):
                    state.active[row] = False
                    self.turn[row] += 1
                    self.written[row] = 0
            self.run("decode chunk", most / self.config.rollout.chunk)
        return state

    def fill(self, params: Params, state: Any, fill: Fill) -> Any:
        with self.host.unmeasured():
            self.run("slot fill")
            for row, ids, used in zip(fill.rows, fill.tokens, fill.used, strict=True):
                if row < len(state.length):
                    state.tokens[row, state.length[row] : state.length[row] + used - 1] = ids[1:used]
                    state.length[row] += used - 1
                    state.active[row] = True
        return state

    def fetch(self, tree: Any, mesh: None) -> Any:
        self.host.wait_for_devices()
        return jax.device_get(tree)

    def of_length(self, name: str, length: int) -> str:
        """The program's name for rows of a length."""
        return f"{name} of {length}" if length in self.config.batch.length_buckets else name

    def log_probs(self, params: Params, batch: Any) -> np.ndarray:
        self.host.catch_up()
        self.run(self.of_length("reference log-probs", batch.tokens.shape[-1]))
        return np.zeros(batch.tokens.shape, np.float32)

    def update(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        self.host.catch_up()
        self.run(self.of_length("update", batch.episodes.tokens.shape[-1]))
        self.host.wait_for_devices()
        return state, {}


class SimulatedAgent(Agent):
    """An agent whose engine has a pod for programs."""

    pod: Pod

    def engine(self, *, queries: int, group_size: int, **_: Any) -> engines.RolloutEngine:
        engine = engines.RolloutEngine(
            self.graphdef,
            self.model_config,
            self.rollout,
            self.chat,
            self.encoder,
            self.toolbox,
            queries=queries,
            group_size=group_size,
            dtype=jnp.bfloat16,
        )
        programs: Any = self.pod
        engine.programs = programs
        return engine


class Detector:
    """A face detector that searches an image once for all simulations, and takes as long each time."""

    def __init__(self) -> None:
        self.detector = FaceDetector()
        self.found: dict[str, tuple[tuple[Face, ...], float]] = {}
        self.host: Host

    def detect(self, image: np.ndarray) -> tuple[Face, ...]:
        key = hashlib.sha256(image.tobytes()).hexdigest()
        if key not in self.found:
            began = time.thread_time()
            faces = self.detector.detect(image)
            self.found[key] = faces, time.thread_time() - began
            return faces
        faces, seconds = self.found[key]
        self.host.elsewhere += seconds
        return faces


@dataclasses.dataclass(frozen=True)
class Faces:
    """What a step uses of a `grain.MapDataset`: samples of new names without end, of `count` rendered faces.

    Attributes:
      pixels: the side of the images.
      change: what `map_with_index` was given.
    """

    count: int
    pixels: int
    change: Callable[[int, Sample], Any] = lambda _, sample: sample

    def map_with_index(self, change: Callable[[int, Any], Any]) -> "Faces":
        return dataclasses.replace(self, change=change)

    def __getitem__(self, index: int) -> Any:
        known = rendered(index % self.count, self.pixels)
        return self.change(index, dataclasses.replace(known, name=f"train/{index}"))


@cache
def rendered(index: int, pixels: int) -> Sample:
    face = synth_faces.face_of("train", index)
    image = Image.fromarray(synth_faces.render(face).image).resize((pixels, pixels), Image.Resampling.LANCZOS)
    known = Reference(labels=synth_faces.DEMO_EMOTIONS, emotion=face.emotion, aus=frozenset(face.aus))
    return Sample("synth_faces", "", (np.asarray(image),), known)


def loaded_batches(host: Host, dataset: Any, size: int, start: int) -> Iterator[list[Any]]:
    """`data.sources.batches`, of which each is read during the step before."""

    def read(step: int) -> list[Future[Any]]:
        indices = range(step * size, (step + 1) * size)
        return [host.submit("loader", LOADER_THREADS, lambda index=index: dataset[index]) for index in indices]

    upcoming = read(start)
    for step in itertools.count(start + 1):
        coming = upcoming
        host.wait_until(lambda coming=coming: all(future.done() for future in coming))
        upcoming = read(step)
        yield [future.result() for future in coming]


def first_completed(host: Host, futures: Iterable[Future[Any]], **_: Any) -> tuple[set[Any], set[Any]]:
    """`concurrent.futures.wait` until one of them is done."""
    host.wait_until(lambda: any(future.done() for future in futures))
    done = {future for future in futures if future.done()}
    return done, set(futures) - done


def simulate(
    config: TrainConfig,
    words: str,
    seconds: dict[str, float],
    detector: Detector,
    pixels: int,
    cores: int,
    together: bool,
) -> dict[str, Any]:
    """Where the devices wait in a step, in seconds, with the seconds that they work."""
    host = detector.host = Host(cores)
    chat, encoder = Chat.from_pretrained(words), ViewEncoder(words, config.views)
    model_config = Qwen3VLConfig.from_json(PUBLISHED)
    params, graphdef = Params({"nothing": nnx.Param(jnp.zeros(1))}), None
    toolbox = Toolbox(detector, config.views)  # type: ignore[arg-type]
    agent = SimulatedAgent(model_config, graphdef, params, chat, encoder, toolbox, config.rollout)
    pod = Pod(host, seconds, config, chat.banned(model_config.text.vocab_size))
    object.__setattr__(agent, "pod", pod)
    rows = config.batch.queries * config.batch.rollouts
    pod.policy = Policy(chat, rows, together, config.rollout.turn_tokens)
    optimizer = optax.identity()
    source: Any = Faces(config.batch.queries, pixels)
    stand_ins = [
        patch.object(engines, "ThreadPoolExecutor", lambda threads: Threads(host, "tools", threads)),
        patch.object(batch, "ThreadPoolExecutor", lambda: Threads(host, "views", min(32, cores + 4))),
        patch.object(engines, "wait", lambda futures, **options: first_completed(host, futures, **options)),
        patch.object(sharding, "fetch", pod.fetch),
        patch.object(sharding, "place", lambda tree, *_: tree),
        patch.object(rl_steps, "order_with_unreadable", lambda source, seed: source),
        patch.object(rl_steps, "batches", lambda *of: loaded_batches(host, *of)),
        patch.object(rl_steps, "cast", lambda tree, dtype: tree),
        patch.object(rl_steps, "split_batch", split),
        patch.object(rl_steps, "make_log_probs", lambda *_, **__: pod.log_probs),
        patch.object(rl_steps, "make_policy_update", lambda *_, **__: pod.update),
    ]
    with ExitStack() as stack:
        state = initial_state(agent.params, optimizer, config)
        for stand_in in stand_ins:
            stack.enter_context(stand_in)
        step_function = rl_steps.rl_steps(config, agent, source, optimizer, 0, hosts.Termination())
        for step in range(1, STEP + 1):
            host.catch_up()
            began, host.busy, host.waits = host.now, 0.0, Counter[str]()
            state = step_function(state, step).state
    host.catch_up()
    host.waits["the next step"] += host.now - host.device_free
    return {"step": host.now - began, "devices": host.busy, "waits": dict(host.waits)}


def split(batch: Any, microbatches: int, mesh: None = None) -> Any:
    return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)


def table(runs: Sequence[dict[str, Any]]) -> str:
    lines = [["pixels", "cores", "rows", "step, s", "devices wait, s", "share"]]
    for run in runs:
        waits = sum(run["waits"].values())
        share = f"{waits / run['step']:.1%}"
        lines.append([str(run["pixels"]), str(run["cores"]), run["rows"], f"{run['step']:.1f}", f"{waits:.2f}", share])
    return align(lines, left=3)


def main(argv: Sequence[str]) -> None:
    del argv
    given = flags.FLAGS
    check_places(json=given.json)
    report = json.loads(Path(given.estimate).read_text())
    seconds = {program["name"]: program["estimated_seconds"] for program in report["programs"]}
    raw = ucgrpo.get_config()
    raw.model.path, raw.evaluation, raw.alarms.vision_every = "demo", None, 0
    raw.rollout.tool_threads = given.tool_threads or raw.rollout.tool_threads
    config = read_train_config(raw)
    detector, runs = Detector(), []
    for pixels, cores, rows in itertools.product(map(int, given.pixels), map(int, given.cores), given.rows):
        for index in range(config.batch.queries):
            rendered(index, pixels)
        found = simulate(config, given.words, seconds, detector, pixels, cores, rows == "together")
        run = {"pixels": pixels, "cores": cores, "rows": rows, **found}
        runs.append(run)
        print(json.dumps(run), file=sys.stderr, flush=True)
    print(table(runs))
    figures = {
        "topology": report["topology"],
        "tool_threads": config.rollout.tool_threads,
        "measured_on": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "runs": runs,
    }
    if given.json:
        write_file(given.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("words", os.environ.get("ACTFER_QWEN3_VL", ""), "Directory with a Qwen3-VL's tokenizer.")
    flags.DEFINE_string("estimate", "docs/compile_check/v5e-4x4.json", "Report of compile_check.")
    flags.DEFINE_list("pixels", ["256", "512", "1024"], "Sides of the pictures.")
    flags.DEFINE_list("cores", ["4", "16"], "Cores of the host.")
    flags.DEFINE_list("rows", ["scattered", "together"], "What the rows do.")
    flags.DEFINE_integer("tool_threads", None, "In place of the config's.")
    flags.DEFINE(cli.PathFlag(), "json", None, "File for the figures.")
    cli.run(main)
