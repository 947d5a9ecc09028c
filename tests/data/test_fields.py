import warnings

import pytest

from medusa.data.fields import read_chat, read_prompt, read_questions, read_tools
from medusa.data.records import Record

PAIR = [("user", "q"), ("assistant", "a")]
ASKED, ANSWERED = ({"role": role, "content": content} for role, content in PAIR)
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
}
RESULT = {"role": "tool", "content": "42"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


def said(chat):
    return [(turn["role"], turn["content"]) for turn in chat]


@pytest.fixture(autouse=True)
def _no_field_is_reported_by_accident():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [ASKED, ANSWERED]}, PAIR),
        ({"messages": [{"role": "User", "content": "q"}, {"role": "model", "content": "a"}]}, PAIR),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
        ({"conversations": [ASKED, ANSWERED]}, PAIR),
        ({"conversation": [ASKED, ANSWERED]}, PAIR),
        ({"turns": [ASKED, ANSWERED]}, PAIR),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWERED]},
            PAIR,
        ),
        ({"prompt": "q", "response": "a"}, PAIR),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, PAIR),
        ({"prompt": "q", "completion": [ANSWERED]}, PAIR),
        ({"prompt": [ASKED], "completion": "a"}, PAIR),
        (
            {
                "prompt": [ASKED],
                "chosen": [ANSWERED],
                "rejected": [{"role": "assistant", "content": "b"}],
            },
            PAIR,
        ),
        (
            {
                "prompt": "q",
                "prompt_id": "x7",
                "chosen": [ASKED, ANSWERED],
                "messages": [ASKED, ANSWERED],
            },
            PAIR,
        ),
        ({"chosen": [ASKED, ANSWERED], "rejected": [ASKED]}, PAIR),
        ({"input": "q", "output": "a"}, PAIR),
        ({"instruction": "q", "input": "", "output": "a", "system": "", "history": []}, PAIR),
        ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\n\ni"), PAIR[1]]),
        (
            {"instruction": "q", "context": "i", "response": "a", "category": "c"},
            [("user", "q\n\ni"), PAIR[1]],
        ),
        (
            {"instruction": "q", "input": "i", "output": "a", "text": "# q\n\n# i\n\n# a"},
            [("user", "q\n\ni"), PAIR[1]],
        ),
        ({"system": "s", "instruction": "q", "output": "a"}, [("system", "s"), *PAIR]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), *PAIR]),
        ({"system": "s", "messages": [ASKED, ANSWERED]}, [("system", "s"), *PAIR]),
        (
            {"system": "s", "messages": [{"role": "system", "content": "s"}, ASKED, ANSWERED]},
            [("system", "s"), *PAIR],
        ),
        (
            {"instruction": "q", "output": "a", "history": [["q0", "a0"]], "system": "s"},
            [("system", "s"), ("user", "q0"), ("assistant", "a0"), *PAIR],
        ),
        (
            {"messages": [ASKED, ANSWERED], "history": [["q0", "a0"]]},
            [("user", "q0"), ("assistant", "a0"), *PAIR],
        ),
        (
            {"messages": [ASKED, CALL, RESULT, ANSWERED]},
            [PAIR[0], ("assistant", None), ("tool", "42"), PAIR[1]],
        ),
        (
            {
                "messages": [ASKED, ANSWERED],
                "id": 3,
                "source": "s",
                "model": "m",
                "score": 0.5,
                "lang": "en",
            },
            PAIR,
        ),
        ({"question": "q", "answer": 5, "response": "a"}, PAIR),
    ],
)
def test_all_field_names_give_the_same_chat_to_train_on_and_to_ask(record, expected):
    assert said(read_chat(Record(record, "x"))) == expected
    asked = max(place for place, (role, _) in enumerate(expected) if role == "user")
    assert said(read_prompt(Record(record, "x"))) == expected[: asked + 1]
    if ("tool", "42") not in expected:
        asked = [turn for turn in expected if turn[0] != "assistant"]
        assert [
            turn for turn in said(read_questions(Record(record, "x"))) if turn[0] != "assistant"
        ] == asked


def test_keys_that_a_template_reads_stay_in_their_turn():
    call = {**CALL, "reasoning_content": "hm"}
    chat = read_chat(
        Record(
            {"messages": [ASKED, call, {**RESULT, "tool_call_id": "1"}], "tools": [{"name": "f"}]},
            "x",
        )
    )
    assert chat[1] == call
    assert chat[2]["tool_call_id"] == "1"
    for tools in ([{"name": "f"}], '[{"name": "f"}]'):
        assert read_tools(Record({"messages": [ASKED], "tools": tools}, "x")) == [{"name": "f"}]
    assert read_tools(Record("text", "x")) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [ASKED, ANSWERED], "system": "s"}
            | {"messages": [RESULT | {"role": "critic"}]},
            "role critic",
        ),
        (
            {"messages": [{"role": "system", "content": "other"}, ASKED, ANSWERED], "system": "s"},
            "system holds a part",
        ),
        ({"messages": [ASKED, ANSWERED], "instruction": "be brief"}, "instruction holds a part"),
        (
            {"messages": [ASKED, ANSWERED], "conversations": [{"from": "human", "value": "z"}]},
            "conversations holds a p",
        ),
        ({"instruction": "solve it", "question": "1 + 1?", "answer": "2"}, "question holds a part"),
        ({"prompt": "q", "response": "a", "text": "a document"}, "text holds a part"),
        ({"text": "t", "system": "s"}, "system holds a part"),
        ({"text": "t", "tools": [{"name": "f"}]}, "tools holds a part"),
        (
            {"prompt": "q", "chosen": [{"role": "user", "content": "z"}, ANSWERED]},
            "chosen begins with another turn",
        ),
        ({"prompt": "q", "response": "a", "history": "earlier"}, "history must be a list"),
        ({"prompt": "q", "response": "a", "history": [["only"]]}, r"history\[0\] must be"),
        (
            {"prompt": "q", "response": "a", "system": ["s", 3]},
            "system, part 2 must hold a text, got int",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}, ANSWERED]},
            r"messages\[0\], part 1 is of type image_url",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": None}]},
            r"messages\[1\] must hold texts, got NoneType",
        ),
        (
            {"messages": [ASKED, {"role": "user", "content": None, "tool_calls": [1]}]},
            r"messages\[1\] must hold texts",
        ),
        ({"messages": [ASKED, ANSWERED], "images": ["x.png"]}, "images cannot be read"),
        ({"messages": [{**ANSWERED, "cut": True}, ASKED]}, "turn 1 is cut"),
        ({"messages": [ASKED, {**ANSWERED, "cut": "yes"}]}, "cut must be true or false"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": "\ud800"}]},
            r"messages\[1\]: half of a surrogate pair",
        ),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_text_without_a_place_in_the_chat_is_an_error_that_names_it(record, message):
    with pytest.raises(ValueError, match=f"file.jsonl, line 7.*{message}"):
        read_chat(Record(record, "file.jsonl, line 7"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [ASKED, CALL, RESULT]}, "turn of the tool cannot be asked"),
        ({"messages": [ASKED], "tools": [{"name": "f"}]}, "tools are read in training only"),
        ({"messages": [ANSWERED]}, "nobody asks"),
        ({"prompt": "q", "text": "a document"}, "text holds a part"),
        ({"prompt": ["q", {"role": "user"}]}, r"prompt\[0\] needs role"),
    ],
)
def test_records_that_cannot_be_asked_are_errors(record, message):
    with pytest.raises(ValueError, match=f"file.jsonl, line 7.*{message}"):
        read_questions(Record(record, "file.jsonl, line 7"))


def test_the_first_of_several_questions_is_the_prompt_and_all_are_asked():
    record = Record({"turns": ["q", "r"], "system": "s", "question_id": 1, "category": "c"}, "x")
    assert said(read_questions(record)) == [("system", "s"), ("user", "q"), ("user", "r")]
    assert said(read_prompt(record)) == [("system", "s"), ("user", "q")]
    developer = Record({"messages": [{"role": "developer", "content": "d"}, ASKED]}, "x")
    assert said(read_questions(developer))[0] == ("system", "d")


def test_an_unknown_field_with_text_is_reported_once_for_each_file():
    reported = set()
    for number, place in enumerate(["a.jsonl, line 1", "a.jsonl, line 2"]):
        record = Record(
            {"prompt": "q", "response": "a", "hint": {"deep": ["text"]}, "width": 3},
            place,
            "",
            reported,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert said(read_chat(record)) == PAIR
        assert len(caught) == (number == 0)
        assert all(
            "a.jsonl, line 1: the field hint holds text" in str(each.message) for each in caught
        )
