"""Tests of OpenAI's responses with the real client, over real HTTP."""

import json

import openai
import pytest
from running import prompts

PROMPT = prompts(4)[3]


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client, content=PROMPT, create="create", **arguments):
    arguments = {"max_output_tokens": 150, "temperature": 0, **arguments}
    return getattr(client.responses, create)(model="demo", input=content, **arguments)


@pytest.fixture(scope="module")
def of_chat(client):
    """The answer of chat completions."""
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat.completions.create(
        model="demo", messages=messages, max_tokens=150, temperature=0
    )


def test_a_response_is_the_answer_of_a_chat(client, of_chat):
    response = ask(client)
    assert response.output_text == of_chat.choices[0].message.content
    assert (response.status, response.store, response.max_output_tokens) == (
        "completed",
        False,
        150,
    )
    assert response.usage.output_tokens == of_chat.usage.completion_tokens
    assert response.usage.input_tokens == of_chat.usage.prompt_tokens


def test_a_stream_is_the_same_response(client):
    with ask(client, create="stream") as stream:
        events = list(stream)
        final = stream.get_final_response()
    whole = ask(client)
    assert final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_a_conversation_is_sent_as_items(client):
    first = ask(client)
    items = [{"role": "user", "content": PROMPT}, *first.output]
    items.append({"role": "user", "content": [{"type": "input_text", "text": "Again."}]})
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Again."},
    ]
    reply = client.chat.completions.create(
        model="demo", messages=chat, max_tokens=20, temperature=0
    )
    response = ask(client, items, instructions="Be brief.", max_output_tokens=20)
    assert response.output_text == reply.choices[0].message.content
    assert response.usage.input_tokens == reply.usage.prompt_tokens


def test_a_limit_leaves_the_response_incomplete(client):
    response = ask(client, max_output_tokens=3)
    assert response.status == response.output[0].status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(ask(client, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == response.output_text


def test_the_text_follows_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "place", "schema": schema, "strict": True}
    response = ask(client, text={"format": form})
    assert set(json.loads(response.output_text)) == {"city"}
    assert response.text.format.name == "place"
    assert isinstance(json.loads(ask(client, text={"format": form}).output_text), dict)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"content": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
    ],
)
def test_unsupported_fields_are_refused_by_name(client, wrong, field):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **wrong)
    assert field in refused.value.body["message"]
