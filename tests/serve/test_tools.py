"""Tests of how tool calls are read from texts, and of the grammars that demand them."""

import json

import llguidance
import pytest

from medusa.serve.chat_fields import Function, ToolCall
from medusa.serve.tools import FORMATS, ToolReader, json_values, tool_format

HERMES, MISTRAL, LLAMA = FORMATS
CITY = '{"city": "Rome"}'
PATHS = [
    pytest.param(
        HERMES,
        f'<tool_call>\n{{"name": "f", "arguments": {CITY}}}\n</tool_call>',
        id="hermes",
    ),
    pytest.param(MISTRAL, f'[TOOL_CALLS] [{{"name": "f", "arguments": {CITY}}}]', id="mistral"),
    pytest.param(LLAMA, f'{{"name": "f", "parameters": {CITY}}}', id="llama"),
]


def read(form, text, size=1, several=True):
    """Return texts and calls of an answer that comes in pieces."""
    reader, found = ToolReader(form, several), []
    for place in range(0, len(text), size):
        found += reader.push(text[place : place + size])
    return found + reader.push("", ended=True)


def shortened(parts):
    """Return the texts joined, and (name, arguments) of the calls."""
    text = "".join(each for each in parts if isinstance(each, str))
    calls = [each.function for each in parts if isinstance(each, ToolCall)]
    return text, [(each.name, json.loads(each.arguments)) for each in calls]


@pytest.mark.parametrize(("form", "text"), PATHS)
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_call_is_read(form, text, size):
    assert shortened(read(form, text, size)) == ("", [("f", {"city": "Rome"})])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_texts_and_calls_keep_their_order(size):
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    parts = read(HERMES, f"Let me see.\n{call}\n{call} done <tool", size)
    text, calls = shortened(parts)
    assert text == "Let me see. done <tool"
    assert [name for name, _ in calls] == ["f", "f"]
    kinds = [isinstance(part, str) for part in parts]
    assert kinds[0]
    assert kinds[-1]


def test_calls_come_as_soon_as_they_end():
    reader = ToolReader(HERMES)
    assert reader.push('<tool_call>{"name": "f", "argu') == []
    call, text = reader.push('ments": {}}</tool_call> and')
    assert (call.function.name, text) == ("f", " and")


def test_only_the_first_call_may_be_wanted():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    listed = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    pair = '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}'
    for form, text in ((HERMES, call * 2), (MISTRAL, listed), (LLAMA, pair)):
        assert len(shortened(read(form, text))[1]) == 2
        assert len(shortened(read(form, text, several=False))[1]) == 1


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (None, '<tool_call>{"name": "f"}</tool_call>'),
        (HERMES, "<tool_call>not JSON</tool_call> and more"),
        (HERMES, '<tool_call>{"name": "f", "argum'),
        (HERMES, '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
        (HERMES, "5 < 6 and no call"),
        (MISTRAL, "[TOOL_CALLS]"),
        (LLAMA, '{"city": "Rome"}'),
        (LLAMA, 'Rome {"name": "f", "parameters": {}}'),
    ],
)
def test_what_is_no_call_stays_text(form, text):
    assert shortened(read(form, text)) == (text, [])


def test_ids_are_what_mistral_s_templates_take():
    call = read(*PATHS[1].values)[0]
    assert len(call.id) == 9
    assert call.id.isalnum()


def test_values_follow_each_other():
    assert list(json_values(' {"a": 1}; [2]\n3 ')) == [{"a": 1}, [2], 3]
    with pytest.raises(ValueError, match="Expecting value"):
        list(json_values("3 x"))


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>", HERMES),
        ("{% if tools %}[TOOL_CALLS]", MISTRAL),
        ('{% if tools %}{"name": name, "parameters": {}}', LLAMA),
        ("{% if tools %}<tool_call>\n<function=name>", None),
        ("{% if tools %}[TOOL_CALLS]name[ARGS]", None),
        ("<tool_call>", None),
        (None, None),
    ],
)
def test_the_template_tells_the_format(template, form):
    class Tokenizer:
        chat_template = template

    assert tool_format(Tokenizer) is form


PLACE = {"$ref": "#/$defs/place"}
FUNCTIONS = [
    Function(
        name="weather",
        parameters={
            "type": "object",
            "properties": {"at": PLACE},
            "required": ["at"],
            "additionalProperties": False,
            "$defs": {"place": {"enum": ["Rome", "Oslo"]}},
        },
    ),
    Function(name="stop"),
]


@pytest.mark.parametrize("form", FORMATS, ids=["hermes", "mistral", "llama"])
def test_a_grammar_allows_calls_alone(form, tokenizer):
    from llguidance.hf import from_tokenizer

    wrapped = from_tokenizer(tokenizer)

    def matches(text, several, answer=None):
        rules = form.lark(FUNCTIONS, several, answer)
        grammar = llguidance.LLMatcher.grammar_from_lark(rules)
        matcher = llguidance.LLMatcher(wrapped, grammar)
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer(text)["input_ids"]
        return matcher.validate_tokens(ids) == len(ids) and (
            matcher.consume_tokens(ids) and matcher.is_accepting()
        )

    one = f'{{"name": "weather", "{form.arguments}": {{"at": "Rome"}}}}'
    if form.listed:
        call, pair = f"{form.begin}[{one}]", f"{form.begin}[{one}, {one}]"
    else:
        call = f"{form.begin}\n{one}\n{form.end}" if form.begin else one
        pair = f"{call}\n{call}"
    assert matches(call, several=False)
    assert not matches(call.replace("Rome", "Paris"), several=False)
    assert not matches(call.replace("weather", "other"), several=False)
    assert not matches(pair, several=False)
    assert matches(pair, several=True) == bool(form.begin)
    assert not matches('{"a": 1}', several=True)
    assert matches('{"a": 1}', several=True, answer={"type": "object"})
