"""Tests of Anthropic's messages with the real client, over real HTTP."""

import anthropic
import openai
import pytest
from running import demo_app, prompts, running

from medusa.serve.errors import ApiError, response

PROMPT = prompts(4)[3]


@pytest.fixture(scope="module")
def client(address):
    return anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)


def ask(client, content=PROMPT, create="create", **arguments):
    # what this version of the client no longer declares is sent all the same
    sampling = {"temperature": 0, **arguments.pop("extra_body", {})}
    arguments = {"max_tokens": 150, **arguments}
    arguments.setdefault("messages", [{"role": "user", "content": content}])
    call = getattr(client.messages, create)
    return call(model="demo", extra_body=sampling, **arguments)


@pytest.fixture(scope="module")
def of_chat(address):
    """The answer of chat completions."""
    chat = openai.OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions
    messages = [{"role": "user", "content": PROMPT}]
    return chat.create(model="demo", messages=messages, max_tokens=150, temperature=0)


def test_a_message_is_the_answer_of_a_chat(client, of_chat):
    message = ask(client)
    assert [block.text for block in message.content] == [of_chat.choices[0].message.content]
    assert message.stop_reason == "end_turn"
    assert message.stop_sequence is None
    usage = message.usage
    assert usage.output_tokens == of_chat.usage.completion_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == of_chat.usage.prompt_tokens


def test_a_stream_is_the_same_message(client):
    whole = ask(client)
    with ask(client, create="stream") as stream:
        kinds = [event.type for event in stream if event.type != "text"]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (
        whole.stop_reason,
        whole.usage.output_tokens,
    )
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def read(message):
    """Return the tokens of a message's prompt."""
    return message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_blocks_and_a_system_prompt_are_texts(client):
    mark = {"cache_control": {"type": "ephemeral"}}
    half = len(PROMPT) // 2
    blocks = [{"type": "text", "text": part} for part in (PROMPT[:half], PROMPT[half:])]
    blocks[1] |= mark
    assert ask(client, blocks).content[0].text == ask(client).content[0].text
    systems = ("Be brief.", [{"type": "text", "text": "Be brief.", **mark}])
    counts = {read(ask(client, system=each)) for each in systems}
    assert len(counts) == 1
    assert counts.pop() > read(ask(client))


def test_the_stop_sequence_is_named(client):
    whole = ask(client).content[0].text
    stop = whole[len(whole) // 2 :][:5]
    message = ask(client, stop_sequences=["never written", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == whole.split(stop)[0]
    with ask(client, create="stream", stop_sequences=[stop]) as stream:
        assert stream.get_final_message().stop_sequence == stop


def test_a_limit_is_named(client):
    assert ask(client, max_tokens=3).stop_reason == "max_tokens"


def test_a_last_message_of_the_assistant_is_continued(client):
    whole = ask(client).content[0].text
    begin = whole.splitlines()[0]
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": begin}]
    assert begin + ask(client, messages=turns).content[0].text == whole


def test_tokens_are_counted(client):
    messages = [{"role": "user", "content": PROMPT}]
    counted = client.messages.count_tokens(model="demo", messages=messages)
    assert counted.input_tokens == read(ask(client))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"extra_body": {"medusa": {"steps": True}}}, "medusa.steps"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"content": [{"type": "image", "source": {}}]}, "image"),
        ({"content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}, "tool_use"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "tools"),
    ],
)
def test_unsupported_fields_are_refused_by_name(client, wrong, field):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(client, **wrong)
    body = refused.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert field in body["error"]["message"]


def test_errors_have_the_shape_of_the_protocol(client, demo_model):
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.messages.create(model="x", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert refused.value.body["error"]["type"] == "not_found_error"
    app = demo_app(*demo_model, api_key="secret", max_body=2000)
    with running(app) as address:
        stranger, friend = (
            anthropic.Anthropic(base_url=address, api_key=key, max_retries=0)
            for key in ("wrong", "secret")
        )
        cases = [
            (stranger, PROMPT, "authentication_error", 401),
            (friend, "x" * 3000, "request_too_large", 413),
        ]
        for client, prompt, kind, status in cases:
            with pytest.raises(anthropic.APIStatusError) as refused:
                ask(client, prompt)
            assert (refused.value.status_code, refused.value.body["error"]["type"]) == (
                status,
                kind,
            )


def test_a_server_that_stops_is_overloaded():
    refused = response(ApiError(503, "the server is shutting down"), "/v1/messages")
    assert refused.status_code == 529
    assert b"overloaded_error" in refused.body
    assert b"rate_limit_error" in response(ApiError(429, "full"), "/v1/messages").body
