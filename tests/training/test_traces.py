"""What the supervised traces teach: the format, looking anywhere, and nothing that was not in view."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from actfer_jax import facs
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.parser import parse_turn
from actfer_jax.config import ConfigError
from actfer_jax.data.datasets.synth_faces import DEMO_EMOTIONS, face_of, render, second_world
from actfer_jax.data.sources import DataConfig, DataError, Stratum, open_source
from actfer_jax.rollout.batch import Sequence, longest_row, make_batch, shared_tokens
from actfer_jax.rollout.engine import view_slots
from actfer_jax.training.sft_steps import Readings
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker, draw_plan

FEAR = 4  # In each seven faces: neutral, happiness, sadness, surprise, fear, disgust, anger.


@pytest.fixture(scope="module")
def subtle() -> Sample:
    index = next(i for i in range(FEAR, 700, 7) if face_of("validation", i).subtle)
    spec = face_of("validation", index)
    fine = frozenset(spec.fine)
    reference = Reference(labels=DEMO_EMOTIONS, emotion=spec.emotion, aus=frozenset(spec.aus), fine_aus=fine)
    return Sample("synth_faces", f"validation/{index}", (render(spec).image,), reference)


@pytest.fixture(scope="module")
def maker(agent) -> TraceMaker:
    rules = replace(agent.rollout, max_turns=4, max_length=224)
    return TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, rules)


def policy_turns(maker: TraceMaker, tokens: list[int], policy: list[bool]) -> list[str]:
    ids, turns = np.array(tokens), np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(policy)) + 1)
    return [maker.chat.turn_text(ids[turn].tolist()) for turn in turns if policy[turn[0]]]


def test_plans_zoom_as_often_as_configured_and_everywhere_alike():
    plans = [draw_plan(np.random.default_rng(seed), TraceConfig()) for seed in range(4000)]
    assert np.mean([not plan.regions for plan in plans]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([len(plan.regions) == 2 for plan in plans]) == pytest.approx(0.7 * 0.3, abs=0.03)
    counts = Counter(region for plan in plans for region in plan.regions)
    assert counts.keys() == set(facs.REGIONS)
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_a_trace_names_what_is_in_view_and_answers_with_the_truth(maker, subtle):
    fine, aus = subtle.reference.fine_aus, subtle.reference.aus
    assert fine
    for seed in range(40):
        trace = maker.episode(subtle, np.random.default_rng(seed))
        *looks, answer = (parse_turn(text) for text in policy_turns(maker, trace.tokens, trace.loss_mask))
        assert answer.answer == "fear" and set(answer.aus) == aus
        assert len(trace.views) == 1 + len(looks)
        for look, turn in zip(looks, [*looks, answer][1:], strict=True):
            assert look.call is not None
            named = {int(word[2:]) for word in turn.think.split() if word.startswith("AU")}
            region = look.call.arguments.get("region")
            # Behind an aligned view or no view at all nothing fine is named, behind a zoom all that its region shows.
            assert named == (aus & facs.REGION_AUS[region] if region else aus - fine)


def test_readings_are_pieces_of_episodes(maker, subtle):
    readings = maker.readings(subtle)
    assert len(readings) == 1 + len(facs.REGIONS)
    found = set()
    for seed in range(60):
        trace = maker.episode(subtle, np.random.default_rng(seed))
        words = " ".join(map(str, trace.tokens))
        for index, reading in enumerate(readings):
            if " ".join(map(str, reading.tokens)) in words:
                found.add(index)
                ((patches, grid),) = reading.views
                assert any(grid == other and np.array_equal(patches, seen) for seen, other in trace.views[1:])
    assert found == set(range(1 + len(facs.REGIONS)))


@pytest.mark.parametrize("room", [0, 2**20])
def test_readings_are_the_same_in_each_pass_and_pictures_are_opened_once_where_there_is_room(
    maker, subtle, room, monkeypatch
):
    monkeypatch.setattr(Readings, "ROOM", room)
    opened = list[int]()

    class Source:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            opened.append(index)
            return subtle

    readings = Readings(Source(), maker)
    for _ in range(2):
        for reading, expected in zip(readings[0], maker.readings(subtle), strict=True):
            assert (reading.tokens, reading.loss_mask) == (expected.tokens, expected.loss_mask)
            np.testing.assert_array_equal(reading.views[0].values, expected.views[0].values)
    assert len(opened) == (1 if room else 2)


def test_the_subtle_stratum_has_the_faces_whose_emotion_rests_on_fine_lines(tmp_path):
    source = open_source(DataConfig(split="validation", size=28, cache_directory=str(tmp_path)))
    subtle = Stratum(source, "subtle")
    wanted = [index for index in range(28) if face_of("validation", index).subtle]
    assert [subtle[index].name for index in range(len(subtle))] == [f"validation/{index:06d}" for index in wanted]
    with pytest.raises(
        DataError, match="none of the 1 samples is of the stratum 'subtle'; their strata are: plain. Give one of"
    ):
        Stratum(open_source(DataConfig(split="validation", size=1, cache_directory=str(tmp_path))), "subtle")


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        ({"aus": None}, "no action units"),
        ({"aus": frozenset(), "known_aus": frozenset()}, "no action units"),
        ({"emotion": None}, "no emotion"),
    ],
)
def test_a_sample_that_lacks_what_traces_say_is_named(maker, subtle, unknown, words):
    bare = replace(subtle, reference=replace(subtle.reference, **unknown))
    for make in (maker.readings, lambda sample: maker.episode(sample, np.random.default_rng(0))):
        with pytest.raises(DataError, match=f"synth_faces/validation/.* has {words}.*leave the sample out"):
            make(bare)


def test_an_episode_that_does_not_fit_names_the_setting(agent):
    slots = view_slots(agent.rollout, agent.toolbox.view_config, agent.model_config)
    with pytest.raises(ConfigError, match=r"a row has 9 tokens: raise config.batch.length \(now 8\)"):
        make_batch([Sequence([1] * 9, [True] * 9, [])], 1, 8, slots, agent.model_config)
    written = Sequence([1] * 9, [False] * 3 + [True] * 6, [])
    with pytest.raises(ConfigError, match=r"a row has 6 policy tokens: raise config.rollout.max_turns.* \(now 5\)"):
        make_batch([written], 1, 16, slots, agent.model_config, policy_tokens=5)


def test_a_group_shares_what_comes_before_its_choices():
    def row(tokens: list[int], prompt: int) -> Sequence:
        return Sequence(tokens, [False] * prompt + [True] * (len(tokens) - prompt), [])

    same = [row([1, 2, 3, 4, 9, 9], 4), row([1, 2, 3, 4], 4)]  # the second failed before its first turn
    other = [row([1, 2, 5, 4, 9, 9, 9], 4), row([1, 2, 3, 4, 9], 4)]
    # The last token of a prompt is each row's own: what follows it depends on it.
    assert shared_tokens([*same, *other], 2, 8).tolist() == [3, 2]
    assert shared_tokens([*same, *other], 2, 2).tolist() == [2, 2]
    assert shared_tokens([*same, *other], 2, 0).tolist() == [0, 0]
    assert longest_row([*same, *other], 2, 8) == 8 + 5
    assert longest_row([*same, *other], 2, 0) == 7


def second_face(place: str) -> Sample:
    """A subtle face of the second edition in a stratum."""
    specs = (second_world.face_of("validation", index) for index in range(2000))
    spec = next(spec for spec in specs if spec.subtle and place in second_world.strata(spec))
    picture = render(spec)
    reference = Reference(
        labels=facs.EMOTIONS,
        emotion=spec.emotion,
        aus=frozenset(spec.aus),
        fine_aus=spec.fine,
        busy_region=spec.deciding_region,
        face_box=picture.face_box if spec.other else None,
    )
    name = f"{place}/{spec.texture_seed}"
    return Sample("synth_faces_2", name, (picture.image,), reference, which=second_world.which(spec))


def test_a_trace_names_the_busy_region_and_zooms_whatever_it_is(maker):
    sample = second_face("turned")
    busy, zoomed = sample.reference.busy_region, Counter[str]()
    for seed in range(60):
        plan = draw_plan(np.random.default_rng(seed), TraceConfig())
        turns = [parse_turn(text) for text in maker.turns(sample, plan)]
        aligned = [turn.think for turn in turns[1:2]] if plan.align else []
        assert all(think.endswith(f"{busy} busy") for think in aligned)
        assert not any("busy" in turn.think for turn in [turns[0], *turns[2:]])
        zoomed.update(plan.regions)
    assert zoomed.keys() == set(facs.REGIONS) and zoomed[busy] < 0.35 * zoomed.total()
    read = replace(maker.config, readings_views=("busy",))
    reading = TraceMaker(read, maker.chat, maker.encoder, maker.toolbox, maker.rules).readings(sample)
    said = maker.chat.tokenizer.decode(reading[0].tokens)
    shown = facs.format_aus((sample.reference.aus or frozenset()) & facs.REGION_AUS[busy])
    assert len(reading) == 1 and f"{busy} of face 0" in said and f"<think>{busy}: {shown}</think>" in said


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_two_faces_the_one_that_is_asked_for_is_read(maker, side):
    """Its views are those of that side, and an answer that comes early speaks of the last of them."""
    sample = second_face("two_faces")
    spec_side = sample.which.split()[-1]
    if side != spec_side:  # The same picture, mirrored.
        (image,), (x0, y0, x1, y1) = sample.images, sample.reference.face_box or (0, 0, 0, 0)
        reference = replace(sample.reference, face_box=(512 - x1, y0, 512 - x0, y1))
        sample = replace(
            sample,
            images=(image[:, ::-1].copy(),),
            reference=reference,
            which=f"on the {side}",
            name=f"{sample.name}/{side}",
        )
    rules = replace(maker.rules, prompt_tokens=40, reply_tokens=48, max_length=272)
    maker = TraceMaker(maker.config, maker.chat, maker.encoder, maker.toolbox, rules)
    environment = maker._environment()
    environment.reset(sample)
    assert environment.prompt.request == f"Read the face on the {side}."
    trace = maker.planned(sample, Plan(align=True, regions=("brows", "chin")))
    turns = [parse_turn(text) for text in policy_turns(maker, trace.tokens, trace.loss_mask)]
    assert [turn.call.name for turn in turns if turn.call] == ["detect_faces", "align_face", "zoom"]
    assert turns[-1].answer == sample.reference.emotion and turns[-1].think.startswith("brows: ")
    for turn in turns[1:3]:
        call = turn.call
        reply = maker.toolbox.execute(call, "", images=sample.images, key=sample.key, views=())
        assert reply.view is not None
        x = float(reply.view.footprint[:, 0].mean())
        assert (x < 256) == (side == "left")
