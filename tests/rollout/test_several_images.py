"""Samples of several images: the tools, a rollout, its update and its records, against one image alone and PyTorch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from replay import replayed

from actfer_jax.agent.episode import Sample
from actfer_jax.agent.parser import ToolCall
from actfer_jax.agent.prompts import make_prompt
from actfer_jax.config import ConfigError
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.models import demo_checkpoint, load_pretrained, save_pretrained
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import episode_log_probs, make_batch
from actfer_jax.rollout.engine import Query
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker


@pytest.fixture(scope="module")
def pair(queries) -> Query:
    """Two faces, the first in a wide image."""
    wide = np.pad(queries[0].images[0], ((0, 0), (0, 200), (0, 0)))
    return replace(queries[1], images=(wide, queries[1].images[0]))


@pytest.fixture(scope="module")
def agent_of_pairs(agent) -> Agent:
    limits = {"images": 2, "prompt_tokens": agent.rollout.prompt_tokens + 64, "max_length": 400}
    return replace(agent, rollout=replace(agent.rollout, **limits))


def test_each_tool_works_on_the_image_that_is_named(agent, pair):
    toolbox = agent.toolbox
    scenes = [toolbox.scene(image, index) for index, image in enumerate(pair.images)]

    def alone(index: int, name: str, **arguments: object):
        call, image = ToolCall(name, arguments), pair.images[index]
        return toolbox.execute(call, "", images=[image], key=("alone", index), views=[toolbox.scene(image)])

    def among(name: str, **arguments: object):
        return toolbox.execute(ToolCall(name, arguments), "", images=pair.images, key="pair", views=scenes)

    assert alone(0, "detect_faces").text != alone(1, "detect_faces").text
    for index in (0, 1):
        assert among("detect_faces", image=index).text == alone(index, "detect_faces").text
        for name, arguments in (
            ("align_face", {}),
            ("zoom", {"region": "mouth"}),
            ("zoom", {"bbox": [0, 0, 500, 500]}),
        ):
            one = alone(index, name, **arguments)
            other = among(name, **arguments, **({"image": index} if index else {}))
            assert other.view.image == index and other.inspects == one.inspects
            np.testing.assert_array_equal(other.view.pixels, one.view.pixels)
    scenes.append(among("align_face", image=1).view)
    nested, direct = (
        among("zoom", bbox=[250, 250, 750, 750], image=2),
        among("zoom", bbox=[250, 250, 750, 750], image=1),
    )
    assert nested.view.image == 1 and not np.array_equal(nested.view.pixels, direct.view.pixels)
    assert not among("align_face", image=2).ok and not alone(0, "align_face", image=0).ok


def test_the_prompt_counts_the_images(agent):
    one, two = (make_prompt("full", ("fear",), images=count) for count in (1, 2))
    for prompt, counts in ((one, [5]), (two, [5, 3])):
        assert agent.chat.prompt_ids(prompt, counts).count(agent.chat.image_pad_id) == sum(counts)
    takes = [["image" in tool["function"]["parameters"]["properties"] for tool in p.tools] for p in (one, two)]
    assert takes == [[False, False, True], [True, True, True]] and "2 pictures" in two.system


def test_more_images_than_there_is_room_for_are_refused_by_name(agent, pair):
    engine = agent.engine(queries=1, group_size=1)
    with pytest.raises(ConfigError, match=r"validation/1 has 2 images; raise config\.rollout\.images \(now 1\)"):
        engine.run(agent.params, [pair], seed=0, step=0)


@pytest.mark.slow
def test_rollouts_updates_and_records_agree_with_pytorch(agent_of_pairs, pair, queries, tmp_path):
    """Rows of two images and of one, in one batch, with traces that look at the second image."""
    pytest.importorskip("torch")
    agent = agent_of_pairs
    engine = agent.engine(queries=2, group_size=3)
    rollouts = engine.run(agent.params, [pair, queries[0]], seed=3, step=0).rollouts
    flat = [rollout for group in rollouts for rollout in group]
    assert max(len(rollout.views) for rollout in flat[:3]) >= 4
    maker = TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, agent.rollout)
    trace = maker.planned(Sample(pair.dataset, pair.name, pair.images, pair.reference), Plan(True, ("mouth",)))
    assert len(trace.views) == 4 and '"image": 1' in agent.chat.tokenizer.decode(trace.tokens)

    def log_probs(remat: str) -> np.ndarray:
        model = load_pretrained(demo_checkpoint(), dtype=jnp.float32, remat=remat)
        graphdef, params = nnx.split(model, nnx.Param)

        @jax.jit
        def compute(params, batch):
            return episode_log_probs(nnx.merge(graphdef, params), batch, temperature=1.0, banned_V=None, chunk=256)[0]

        return np.asarray(compute(params, batch))

    rows = [rollout.sequence for rollout in flat]
    batch = make_batch([*rows, trace, trace, trace], 3, 400, engine.slots, agent.model_config)
    in_turn, at_once = log_probs("full"), log_probs("none")
    np.testing.assert_allclose(in_turn, at_once, atol=1e-5)
    np.testing.assert_array_equal(in_turn[6], in_turn[7])

    save_pretrained(load_pretrained(demo_checkpoint(), dtype=jnp.float32), tmp_path / "export")
    EpisodeWriter(tmp_path).write(
        0, [to_record(r, id=str(n), reward=None, advantage=None, trained_on=()) for n, r in enumerate(flat)]
    )
    for row, (record, chosen, expected) in enumerate(replayed(tmp_path, tmp_path / "export")):
        assert [view["file"] for view in record["scenes"]] == record["images"][: 2 if row < 3 else 1]
        np.testing.assert_allclose(np.array(record["raw_logprobs"])[chosen], expected, atol=1e-3)
        np.testing.assert_allclose(in_turn[row, chosen], expected, atol=1e-3)
