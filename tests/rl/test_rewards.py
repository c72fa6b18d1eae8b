"""Rewards: the levels by hand-computed examples, and attempts to earn reward without the work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actfer_jax import facs, plugins
from actfer_jax.agent import prompts
from actfer_jax.agent.episode import Episode, Reference, Reply
from actfer_jax.config import read_config
from actfer_jax.rl import rewards

CONFIG = rewards.RewardConfig()
LABELS = ("Surprise", "Fear", "Disgust", "Happy", "Sad", "Angry", "Neutral")
FEAR = Reference(LABELS, "Fear", frozenset({1, 2, 4, 5, 20, 26}))
ZOOM = '<think>Look.</think><tool_call>{"name": "zoom", "arguments": {"region": "mouth"}}</tool_call>'


def answer(label: str, aus: str = "AU1 AU2 AU4 AU5 AU20 AU26", think: str = "Brows up.") -> str:
    return f"<think>{think}</think>\n<aus>{aus}</aus>\n<answer>{label}</answer>"


def score(*texts: str, reference: Reference = FEAR, config: rewards.RewardConfig = CONFIG, replies: tuple = ()):
    return rewards.score(Episode.from_texts(*texts, replies=replies), reference, config)


def zoom_reply(*, inspects: bool = True, ok: bool = True) -> Reply:
    return Reply("mouth of face 0", ok=ok, tool="zoom", region="mouth", inspects=inspects)


def test_a_perfect_answer_earns_every_part():
    parts = score(answer("fear"))
    assert parts == pytest.approx(
        {"format": 1, "tool": 1, "au": 1, "region": 1, "emotion": 1, "task": 0.85, "total": 1.0}
    )


def test_levels_by_hand():
    # AU1 and AU9 of {1, 4, 12}: 1 hit, F1 = 2/5. Brows {1} of {1, 4}: 2/3; nose {9} of {}: 0; mouth {} of {12}: 0.
    parts = score(answer("sad", "AU1 AU9"), reference=Reference(LABELS, "Sad", frozenset({1, 4, 12})))
    assert parts["au"] == pytest.approx(0.4)
    assert parts["region"] == pytest.approx(2 / 9)
    assert parts["task"] == pytest.approx(0.3 * 0.4 + 0.15 * 2 / 9 + 0.4)
    assert parts["total"] == pytest.approx(0.1 + 0.05 + parts["task"])


def test_labels_are_compared_across_spellings():
    assert score(answer(" ANGER "), reference=Reference(LABELS, "angry"))["emotion"] == 1
    assert score(answer("happiness"), reference=Reference(LABELS, "joy"))["emotion"] == 1
    assert score(answer("sad"), reference=Reference(LABELS, "angry"))["emotion"] == 0


@pytest.mark.parametrize(
    "text",
    [
        answer("fear or surprise"),
        answer("fear, surprise"),
        answer("Fear Surprise Disgust Happy Sad Angry Neutral"),
        answer(""),
        answer("  "),
        answer("contempt"),  # an emotion, but no label of this data set
        answer("miedo"),
        answer("恐惧"),
        answer("<b>fear</b>"),
        answer("fear") + "<answer>surprise</answer>",
        answer("fear") + answer("surprise"),
        answer("fear") + " I am sure.",
        "Fear! " + answer("fear"),
        f"<think>{answer('fear')}</think>",
        "<think>It is <answer>fear</answer></think><aus>AU1</aus><answer>surprise</answer>",
        "<think>No AUs.</think><answer>fear</answer>",
        "<aus>AU1</aus><answer>fear</answer>",
        answer("fear", aus="brows raised"),
        answer("fear", aus="AU999"),
        answer("fear", aus="all"),
        ZOOM + answer("fear"),
        "fear",
        "",
    ],
)
def test_malformed_or_hedged_answers_earn_no_task_reward(text):
    parts = score(text)
    assert parts["format"] == 0
    assert parts["task"] == 0
    assert parts["total"] <= CONFIG.w_tool


def test_an_answer_in_the_wrong_place_earns_nothing():
    for texts in ((answer("fear"), answer("fear")), (answer("fear"), ZOOM), ("nonsense", answer("fear"))):
        assert score(*texts)["task"] == 0


def test_naming_every_action_unit_pays_less_than_naming_the_right_ones():
    spam = score(answer("fear", facs.format_aus(facs.AU_NAMES)))
    honest = score(answer("fear", "AU1 AU2"))
    assert spam["au"] == pytest.approx(2 * 6 / (6 + len(facs.AU_NAMES)))
    assert spam["total"] < honest["total"]


def test_a_repeated_action_unit_counts_once():
    assert score(answer("fear", "AU1 AU1, AU01 AU001"))["au"] == score(answer("fear", "AU1"))["au"]


def test_action_units_in_the_thought_do_not_count():
    assert score(answer("fear", "none", think="AU1 AU2 AU4 AU5 AU20 AU26"))["au"] == 0


def test_huge_output_is_scored():
    filler = "brows " * 200_000
    assert score(answer("fear", think=filler))["total"] == pytest.approx(1.0)
    assert score(answer("fear" * 200_000))["format"] == 0
    assert score(answer("fear", aus="AU1 " * 200_000))["au"] == pytest.approx(2 / 7)
    assert score("<think>" * 200_000)["total"] == pytest.approx(CONFIG.w_tool)
    nested = "[" * 200_000
    assert score(f"<think>x</think><tool_call>{nested}</tool_call>", answer("fear"))["tool"] == 0


def test_zooms_cost_their_price_and_the_background_is_no_inspection():
    direct = score(answer("fear"))["total"]
    background = Episode.from_texts(ZOOM, ZOOM, answer("fear"), replies=(zoom_reply(inspects=False),) * 2)
    assert rewards.score(background, FEAR, CONFIG)["total"] == pytest.approx(direct - 2 * CONFIG.zoom_price)
    assert not background.inspected
    assert rewards.score(background, FEAR, CONFIG)["task"] == pytest.approx(0.85)
    assert Episode.from_texts(ZOOM, answer("fear"), replies=(zoom_reply(),)).inspected


def test_failed_calls_lower_the_tool_level_only():
    broken = "<think>Look.</think><tool_call>{not json}</tool_call>"
    parts = score(broken, ZOOM, answer("fear"), replies=(Reply("not valid JSON", ok=False), zoom_reply()))
    assert parts["tool"] == 0.5
    assert parts["format"] == 1
    assert parts["total"] == pytest.approx(0.1 + 0.05 * 0.5 + 0.85 - 0.03)
    refused = score(ZOOM, answer("fear"), replies=(zoom_reply(ok=False),))
    assert refused["total"] == pytest.approx(0.1 + 0.85)  # no zoom was executed, so none is paid


def test_a_call_that_was_cut_counts_as_what_it_says_and_an_answer_that_was_cut_has_no_format():
    """Else nothing teaches the end of a turn."""
    for cut, format_level in ((0, 1), (1, 0)):
        episode = Episode.from_texts(ZOOM, answer("fear"))
        episode.turns[cut].truncated = True
        assert rewards.score(episode, FEAR, CONFIG)["format"] == format_level
    cut = Episode.from_texts("<think>The brows are ra")
    cut.turns[-1].truncated = True
    assert rewards.score(cut, FEAR, CONFIG) == pytest.approx(
        {"format": 0, "tool": 1, "au": 0, "region": 0, "emotion": 0, "task": 0, "total": 0.05}
    )


@pytest.mark.parametrize("name", ["actfer", "facial_r1", "unifer"])
def test_no_episode_scores_zero(name):
    config = rewards.RewardConfig(name=name)
    for episode in (None, Episode()):
        assert set(rewards.score(episode, FEAR, config).values()) == {0.0}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (Reference(LABELS, "fear"), 0.85),  # no AUs: the emotion carries everything
        (Reference(LABELS, "fear", frozenset(), known_aus=frozenset()), 0.85),  # nothing annotated is no AUs
        (Reference(LABELS, None, frozenset({1, 2, 4, 5, 20, 26})), 0.85),
        (Reference(LABELS, "sad", frozenset({1, 2, 4, 5, 20, 26})), 0.45),
        (Reference(LABELS, "sad"), 0.0),
        (Reference(LABELS, None), 0.0),
    ],
)
def test_a_level_without_a_reference_hands_its_weight_to_the_others(reference, expected):
    assert score(answer("fear"), reference=reference)["task"] == pytest.approx(expected)


ONLY_AUS = Reference((), aus=frozenset({1, 4}))
"""Of a data set without emotion labels."""


@pytest.mark.parametrize(
    ("parts", "ask_aus", "reference", "expected"),
    [
        ("<aus>AU1 AU4</aus>", True, ONLY_AUS, 0.85),
        ("<aus>AU1 AU4</aus>", False, ONLY_AUS, 0.85),  # where there are no labels, action units are asked for
        ("<aus>AU1</aus>", True, ONLY_AUS, 0.85 * 2 / 3),
        ("<aus>AU1 AU4</aus><answer>fear</answer>", True, ONLY_AUS, 0.0),
        ("<answer>fear</answer>", True, ONLY_AUS, 0.0),
        ("<answer>fear</answer>", False, FEAR, 0.85),
        ("<answer>sad</answer>", False, FEAR, 0.0),
        ("<aus>AU1</aus><answer>fear</answer>", False, FEAR, 0.0),
        ("<answer>fear</answer>", True, FEAR, 0.0),
        ("<aus>AU1 AU2 AU4 AU5 AU20 AU26</aus>", True, FEAR, 0.0),
    ],
)
def test_an_answer_has_exactly_what_was_asked_for(parts, ask_aus, reference, expected):
    episode = Episode.from_texts(f"<think>x</think>{parts}")
    episode.ask_aus = ask_aus or not reference.labels
    scored = rewards.score(episode, reference, CONFIG)
    assert scored["task"] == pytest.approx(expected) and scored["format"] == (expected > 0 or "sad" in parts)


def test_labels_of_a_data_set_may_be_any_words():
    compound = Reference(("Happily Surprised", "Angrily Disgusted"), "Angrily Disgusted")
    assert score(answer("angrily disgusted"), reference=compound)["emotion"] == 1
    assert score(answer("disgusted"), reference=compound)["format"] == 0


def test_only_known_action_units_are_compared():
    reference = Reference(LABELS, "fear", frozenset({1, 2, 9}), known_aus=frozenset({1, 2, 25}))
    assert score(answer("fear", "AU1 AU2 AU20"), reference=reference)["au"] == 1
    assert score(answer("fear", "AU1 AU2 AU25"), reference=reference)["au"] == pytest.approx(0.8)


def test_no_action_units_are_an_answer_too():
    neutral = Reference(LABELS, "neutral", frozenset())
    assert score(answer("neutral", "none"), reference=neutral)["total"] == pytest.approx(1.0)
    wrong = score(answer("neutral", "AU12"), reference=neutral)
    assert (wrong["au"], wrong["region"]) == (0, 0)


aus = st.frozensets(st.sampled_from(sorted(facs.AU_NAMES)))


@given(predicted=aus, true=aus, known=st.none() | aus, emotion=st.none() | st.sampled_from(LABELS))
def test_the_task_reward_stays_within_its_weights_and_is_greatest_for_the_truth(predicted, true, known, emotion):
    reference = Reference(LABELS, emotion, true, known)
    parts = score(answer("fear", facs.format_aus(predicted)), reference=reference)
    best = score(answer(emotion or "fear", facs.format_aus(true)), reference=reference)
    assert all(0 <= parts[level] <= 1 for level in rewards.LEVELS)
    assert 0 <= parts["task"] <= best["task"] + 1e-9
    assert best["task"] == pytest.approx(0.0 if emotion is None and known == frozenset() else 0.85)


def test_facial_r1_reads_the_action_units_in_the_thoughts():
    config = rewards.RewardConfig(name="facial_r1", zoom_price=0.0)
    # Named: {1, 4, 99} against six: F1 = 2 * 2 / 9.
    parts = score(answer("fear", "none", think="au1 and AU04, AU99."), config=config)
    assert parts["task"] == pytest.approx(2 * 4 / 9 - 1 + 1)
    assert parts["total"] == pytest.approx(parts["task"] + 1)
    assert score(answer("sad", think="A face."), config=config)["total"] == pytest.approx(-1 + 0 + 1)
    unlabelled = Reference(LABELS, None, frozenset())
    assert score(answer("sad", think="AU1"), reference=unlabelled, config=config)["total"] == pytest.approx(0.5 + 1)


def test_facial_r1_adds_up_the_thoughts_of_all_turns():
    config = rewards.RewardConfig(name="facial_r1")
    zoom = ZOOM.replace("Look.", "AU1 AU2 AU4")
    parts = score(zoom, answer("fear", think="AU5 AU20 AU26"), config=config)
    assert parts["total"] == pytest.approx(3 - config.zoom_price)


def test_unifer_wants_the_label_as_the_data_set_spells_it():
    config = rewards.RewardConfig(name="unifer")
    assert score(answer("FEAR", "none"), config=config)["total"] == pytest.approx(2.0)
    assert score(answer("afraid"), config=config)["total"] == pytest.approx(1.0)
    assert score("fear", config=config)["total"] == 0
    assert score(answer("fear"), reference=Reference(LABELS), config=config)["total"] == pytest.approx(1.0)


READ = answer("fear", "AU1 AU2 AU4 AU5", think="Lids raised: AU1 AU2 AU4 AU5.")
EVERY_AU = facs.format_aus(facs.AU_NAMES)
EVERYWHERE = ZOOM.replace('"region": "mouth"', '"bbox": [0, 0, 1000, 1000], "image": 0')
PROMPT = prompts.make_prompt("full", LABELS)


def looked(last: str) -> Episode:
    return Episode.from_texts(ZOOM, last, replies=(zoom_reply(),))


TRICKS = {
    "every action unit is listed": (looked(answer("fear", EVERY_AU, think=f"{EVERY_AU}.")), looked(READ)),
    "two labels are given": (looked(READ.replace(">fear<", ">fear or surprise<")), looked(READ)),
    "the prompt is copied": (
        Episode.from_texts(answer(" ".join(LABELS), "AU1 AU26", think=f"{PROMPT.system} {PROMPT.request}")),
        looked(READ),
    ),
    "boxes are laid over the whole picture": (
        Episode.from_texts(EVERYWHERE, EVERYWHERE, READ, replies=(zoom_reply(inspects=False),) * 2),
        looked(READ),
    ),
    "a crop is not looked at": (looked(READ), Episode.from_texts(READ)),
}
"""Episodes that would earn without work, each with an honest one."""
FOOLED = {
    ("unifer", "every action unit is listed"),
    ("deepeyes", "every action unit is listed"),
    ("deepeyes", "boxes are laid over the whole picture"),
    ("deepeyes", "a crop is not looked at"),
}
"""The tricks that a published reward takes for honest; its docstring says so."""


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", plugins.names("rl.rewards"))
def test_a_trick_pays_less_than_an_honest_episode(name, trick):
    config = read_config({"name": name}, rewards.BaseRewardConfig, "reward")
    tricked, honest = (rewards.score(episode, FEAR, config)["total"] for episode in TRICKS[trick])
    assert (tricked >= honest) == ((name, trick) in FOOLED)


def test_facial_r1_takes_a_denied_action_unit_for_a_named_one():
    config = rewards.RewardConfig(name="facial_r1")
    denied = score(answer("fear", think="No AU1, no AU2, no AU4, no AU5, no AU20, no AU26."), config=config)
    assert denied["total"] == pytest.approx(3)


def test_deepeyes_by_hand():
    config = read_config({"name": "deepeyes"}, rewards.BaseRewardConfig, "reward")
    cropped = (zoom_reply(),)
    assert score(answer("fear"), config=config)["total"] == pytest.approx(0.8)
    assert score(ZOOM, answer("fear"), replies=cropped, config=config)["total"] == pytest.approx(0.8 + 1.2)
    assert score(ZOOM, answer("sad"), replies=cropped, config=config)["total"] == 0  # no bonus for a wrong answer
    refused = score(ZOOM, answer("fear"), replies=(zoom_reply(ok=False),), config=config)
    assert refused["total"] == pytest.approx(0.8)  # nor for a crop that did not come back
    assert score("<think>Fear.", config=config)["total"] == pytest.approx(-0.2)
    assert score("fear", config=config)["total"] == 0
    assert score(answer("fear" * 250), config=config)["total"] == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("w_au", -0.1), ("w_emotion", float("nan")), ("zoom_price", float("inf"))],
)
def test_bad_constants_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} "):
        rewards.RewardConfig(**{field: value})
