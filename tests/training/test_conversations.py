import pytest

from medusa.training.conversations import (
    Ask,
    FinishedConversation,
    GenerationSettings,
    Turn,
    conversation,
)

ASKED = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "not the model's own"},
    {"role": "user", "content": "two"},
]


def driven(turns, **options):
    """Send turns to a conversation; return the finished conversation and its requests."""
    talk = conversation("c", ASKED, GenerationSettings("m", **options))
    asks = [next(talk)]
    for turn in turns:
        try:
            asks.append(talk.send(turn))
        except StopIteration as ended:
            return ended.value, asks
    raise AssertionError("it asks for more")


def contents(chat):
    return [turn["content"] for turn in chat]


def test_user_turns_are_asked_in_order_and_the_model_answers():
    ended, asks = driven([Turn("first", 1), Turn("second", 1)])
    assert contents(ended.messages) == ["be kind", "one", "first", "two", "second"]
    assert contents(asks[1].chat) == ["be kind", "one", "first", "two"]
    assert len({ask.key for ask in asks}) == 2
    assert ended.why == ""


@pytest.mark.parametrize(
    ("turns", "options", "kept", "why"),
    [
        ([Turn("fir", 9, cut=True)], {}, ["one", "fir"], "answer 1 was cut off"),
        (
            [Turn("first", 1), Turn("sec", 9, cut=True)],
            {},
            ["one", "first", "two", "sec"],
            "answer 2 was cut off",
        ),
        ([Turn("fir", 9, cut=True)], {"leave_out_cut": True}, [], "answer 1 was cut off"),
        (
            [Turn("first", 1), Turn("sec", 9, cut=True)],
            {"leave_out_cut": True},
            ["one", "first"],
            "answer 2 was cut",
        ),
        ([Turn("", 0, cut=True)], {}, [], "answer 1 was cut off before its first word"),
        (
            [Turn("", 9, cut=True, reasoning="hm")],
            {},
            [],
            "answer 1 was cut off before its first word",
        ),
        ([Turn("first", 1), Turn("", 1)], {}, ["one", "first"], "answer 2 was empty"),
    ],
)
def test_a_conversation_ends_at_a_cut_answer_and_before_one_without_text(turns, options, kept, why):
    ended, _ = driven(turns, **options)
    assert contents(ended.messages) == ["be kind", *kept]
    assert ended.why.startswith(why)
    marked = [turn for turn in ended.messages if "cut" in turn]
    assert marked == (ended.messages[-1:] if ended.cut else [])
    assert ended.cut == (bool(turns[-1].text) and turns[-1].cut and not options)
    assert all(turn["cut"] is True for turn in marked)


def test_self_talk_continues_with_the_models_own_questions():
    turns = [Turn(text, 1) for text in ("first", "second", "three?", "third", "")]
    ended, asks = driven(turns, self_talk=2)
    assert contents(ended.messages)[1:] == ["one", "first", "two", "second", "three?", "third"]
    assert [ask.role for ask in asks] == ["assistant", "assistant", "user", "assistant", "user"]
    ended, _ = driven(
        [*turns[:2], Turn("thr", 9, cut=True)], self_talk=2
    )  # a question that is cut off is not asked
    assert contents(ended.messages)[1:] == ["one", "first", "two", "second"]


def test_a_conversation_without_a_question_begins_with_the_models_own():
    asked = {"zero?"}
    own = conversation("a", [], GenerationSettings("m"), asked)
    assert next(own) == Ask([], "user", "a/0/user")
    assert own.send(Turn("one?", 2)) == Ask(
        [{"role": "user", "content": "one?"}], "assistant", "a/0/assistant"
    )
    assert asked == {"zero?", "one?"}
    with pytest.raises(StopIteration) as ended:
        own.send(Turn("first", 1))
    assert contents(ended.value.value.messages) == ["one?", "first"]
    again = conversation("b", [], GenerationSettings("m"), asked)
    next(again)
    with pytest.raises(StopIteration) as ended:
        again.send(Turn("one?", 2))
    assert ended.value.value == FinishedConversation([], "question 1 was asked before")


def test_reasoning_is_kept_with_its_answer():
    ended, _ = driven([Turn("first", 1, reasoning="hm"), Turn("second", 1)])
    assert ended.messages[2] == {"role": "assistant", "content": "first", "reasoning_content": "hm"}
    assert ended.messages[4] == {"role": "assistant", "content": "second"}


@pytest.mark.parametrize(
    "wrong", [{"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": -1}]
)
def test_invalid_settings_are_errors(wrong):
    with pytest.raises(ValueError, match="temperature must be 0 or a positive number"):
        GenerationSettings("m", **wrong)
