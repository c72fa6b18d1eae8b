"""Does a policy read what a view shows? The share of faces whose action units it names exactly, by pair and region.

    python benchmarks/read_lines.py --checkpoint=runs/sft/policy --faces=350
    python benchmarks/read_lines.py --checkpoint=runs/sft_2/policy --data=synth_faces_2

Each subtle face of an ambiguous pair is aligned, one region is zoomed into as the supervised traces do (of the second
edition, the one that decides), and the policy has to name what is there; faces with and without fine lines there stand
apart. This is about sight alone: the region is given, so nothing depends on where the policy would look.
"""

from collections import defaultdict
from collections.abc import Sequence as Arguments

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from actfer_jax import cli, facs
from actfer_jax.config import read_config
from actfer_jax.data.datasets.synth_faces import AMBIGUOUS_PAIRS
from actfer_jax.data.datasets.synth_faces.second_world import CASES
from actfer_jax.data.sources import DataConfig, Stratum, open_source
from actfer_jax.evaluation.command import load_policy
from actfer_jax.evaluation.tables import align
from actfer_jax.faces.views import ViewConfig
from actfer_jax.progress import ProgressLine
from actfer_jax.rollout.batch import EpisodeBatch, Sequence, encode_views, make_batch
from actfer_jax.rollout.engine import view_slots
from actfer_jax.runs.provenance import heading, provenance
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker

_CHECKPOINT = flags.DEFINE_string("checkpoint", "demo", "Hugging Face directory of a policy, or: demo.")
_FACES = flags.DEFINE_integer("faces", 350, "How many faces are looked through for subtle ones.")
_SPLIT = flags.DEFINE_string("split", "validation", "Of which split.")
_DATA = flags.DEFINE_enum("data", "synth_faces", ["synth_faces", "synth_faces_2"], "Which edition of the faces.")

REGIONS = ("brows", "nose", "mouth")
BATCH = 32


def last_thought(maker: TraceMaker, sequence: Sequence) -> slice:
    """Where the last turn's thought stands in the tokens of an episode."""
    end = len(sequence.tokens)
    start = end - sequence.loss_mask[::-1].index(False)
    text = maker.chat.turn_text
    return slice(start, next(stop for stop in range(start, end) if "</think>" in text(sequence.tokens[start:stop])))


def main(argv: Arguments[str]) -> None:
    del argv
    data = read_config({"name": _DATA.value, "split": _SPLIT.value, "size": _FACES.value}, DataConfig, "data")
    pairs = {case.pair for case in CASES} if _DATA.value == "synth_faces_2" else AMBIGUOUS_PAIRS
    agent, card = load_policy(_CHECKPOINT.value, "float32")
    views, rollout = ViewConfig(**card.views), agent.rollout
    maker = TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, rollout)
    slots = view_slots(rollout, views, agent.model_config)

    @jax.jit
    def likeliest(params: nnx.State, batch: EpisodeBatch) -> jax.Array:
        model = nnx.merge(agent.graphdef, params)
        x, deepstack = model.embed(batch.tokens, batch.image_index, encode_views(model, batch.scenes, batch.views))
        hidden, _ = model.hidden(x, deepstack, batch.positions, batch.segment_ids)
        return jnp.argmax(model.unembed(hidden), -1)

    cases = []
    for sample in Stratum(open_source(data), "subtle"):
        pair = next((pair for pair in pairs if sample.reference.emotion in pair), None)
        busy = sample.reference.busy_region
        for region in (busy,) if busy else REGIONS if pair else ():
            lines = bool(sample.reference.extra["fine"] & facs.REGION_AUS[region])
            cases.append(((" or ".join(pair), region, lines), maker.planned(sample, Plan(True, (region,)))))
    exact = defaultdict(list)
    progress = ProgressLine("views read")
    for start in range(0, len(cases), BATCH):
        group = cases[start : start + BATCH]
        rows = [sequence for _, sequence in group]
        rows += rows[:1] * (BATCH - len(rows))
        batch = make_batch(rows, 1, rollout.max_length, slots, agent.model_config)
        tokens = jax.device_get(likeliest(agent.params, batch))
        for (key, sequence), row in zip(group, tokens, strict=False):
            at = last_thought(maker, sequence)
            # Where every token is the likeliest after those before it, greedy decoding writes the whole thought.
            exact[key].append(row[at.start - 1 : at.stop - 1].tolist() == sequence.tokens[at])
        progress(min(start + BATCH, len(cases)), len(cases))
    table = [["pair", "view", "fine lines", "faces", "exact"]]
    for (pair, region, lines), values in sorted(exact.items()):
        table.append([pair, region, "yes" if lines else "no", str(len(values)), f"{np.mean(values):.3f}"])
    print(heading(provenance(data.name, data.split, data.size, _CHECKPOINT.value)))
    print(align(table, left=3))


if __name__ == "__main__":
    cli.run(main)
