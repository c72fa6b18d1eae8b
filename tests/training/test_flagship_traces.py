"""Traces at the flagship's sizes: with Qwen3-VL's own words, the limits of `configs/sft.py` and its rows."""

from dataclasses import replace

import numpy as np
import skimage.data
from flagship import WORDS, needs_words
from PIL import Image

from actfer_jax import facs
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.training.recorded import TracedSample
from actfer_jax.training.rehearsal import _stage
from actfer_jax.training.traces import Plan, TraceMaker
from configs import sft

REGIONS = ((), ("mouth",), ("brows", "mouth"))


@needs_words
def test_traces_with_no_one_and_two_zooms_fit_and_are_replayed(tmp_path):
    """About a picture whose scene fills its room."""
    config = sft.get_config()
    config.model.path, config.data.cache_directory = WORDS, str(tmp_path)
    stage = _stage(config, "")
    maker = TraceMaker(stage.training.traces, stage.chat, stage.encoder, stage.toolbox, stage.rollout)
    photograph = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((1024, 768)))
    aus = frozenset.union(*facs.PROTOTYPES["fear"])
    reference = Reference(facs.EMOTIONS, "fear", aus, frozenset(facs.AU_NAMES), aus_from="LibreFace")
    sample = Sample("photographs", "one", (photograph,), reference)
    for regions in REGIONS:
        plan = Plan(align=True, regions=regions)
        trace = maker.planned(sample, plan)
        assert len(trace.views) == 2 + len(regions) and len(trace.tokens) <= stage.training.batch.length
        turns = tuple(maker.turns(sample, plan))
        told = TracedSample(sample.dataset, sample.name, sample.images, replace(reference, aus=None), turns)
        again = maker.recorded(told)
        assert (again.tokens, again.loss_mask) == (trace.tokens, trace.loss_mask)
        spoken = [token for token, policy in zip(trace.tokens, trace.loss_mask, strict=True) if policy]
        assert stage.chat.tokenizer.decode(spoken) == "".join(f"{turn}<|im_end|>" for turn in turns)


@needs_words
def test_a_trace_of_the_label_alone_is_one_turn_after_a_prompt_without_tools(tmp_path):
    """As the row "SFT, label alone" of configs/studies/actfer.py trains, and plays."""
    config = sft.get_config()
    config.model.path, config.data.cache_directory = WORDS, str(tmp_path)
    config.rollout.update({"format": "passive", "max_turns": 1, "ask_aus": False})
    config.traces.update({"no_zoom": 1.0, "answer_now": 1.0, "instructed_answer": 0.0})
    stage = _stage(config, "")
    maker = TraceMaker(stage.training.traces, stage.chat, stage.encoder, stage.toolbox, stage.rollout)
    reference = Reference(facs.EMOTIONS, "fear")  # Without action units, as the pictures of the study have none.
    sample = Sample("photographs", "one", (skimage.data.astronaut(),), reference)
    trace = maker.episode(sample, np.random.default_rng(0))
    spoken = [token for token, policy in zip(trace.tokens, trace.loss_mask, strict=True) if policy]
    said = stage.chat.tokenizer.decode(spoken)
    assert said.endswith("<answer>fear</answer><|im_end|>") and "tool_call" not in said and "<aus>" not in said
    assert len(trace.views) == 1 and "zoom" not in stage.chat.tokenizer.decode(trace.tokens)
