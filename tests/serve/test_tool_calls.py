"""Tests of tool calls over HTTP: a tiny random model must call tools, and every client reads them.

The chat templates are short ones in the formats of Hermes, Mistral and Llama 3.
"""

import json

import anthropic
import openai
import pytest
from models import tiny
from running import demo_app, running
from tokenizers import AddedToken

from medusa import MedusaModel
from tools.demo_model.tokenizer import train_tokenizer

TURNS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}CALL{% endfor %}<|end|>{% endfor %}<|assistant|>"
)
CALL = '{"name": "{{ call.function.name }}", "KEY": {{ call.function.arguments | tojson }}}'
FORMATS = {
    "hermes": ("arguments", f"<tool_call>\n{CALL}\n</tool_call>"),
    "mistral": ("arguments", f"[TOOL_CALLS][{CALL}]"),
    "llama": ("parameters", CALL),
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 22]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("weather", "forecast")
]
CHOICE = {"type": "function", "function": {"name": "forecast"}}
QUESTION = [{"role": "user", "content": "the weather in Rome"}]


@pytest.fixture(scope="module", params=FORMATS)
def tool_server(request):
    """Address of a server whose model knows tools."""
    tokenizer = train_tokenizer(["the weather in Rome and the forecast"] * 2, 300, 512)
    tokenizer.add_tokens(
        [
            AddedToken("[TOOL_CALLS]", special=True),
            AddedToken("<tool_call>", special=False),
            AddedToken("</tool_call>", special=False),
        ]
    )
    key, call = FORMATS[request.param]
    calls = TURNS.replace("CALL", call.replace("KEY", key))
    tokenizer.chat_template = f"{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{calls}"
    base = tiny(vocab_size=len(tokenizer), max_position_embeddings=1024)
    base.generation_config.eos_token_id = tokenizer.eos_token_id
    model = MedusaModel.from_base(base, num_heads=3)
    with running(demo_app(model, tokenizer)) as address:
        yield address


@pytest.fixture(scope="module")
def client(tool_server):
    return openai.OpenAI(base_url=f"{tool_server}/v1", api_key="none", max_retries=0)


def ask(client, **arguments):
    arguments = {"tools": TOOLS, "max_tokens": 400, "temperature": 0, **arguments}
    arguments.setdefault("messages", QUESTION)
    return client.chat.completions.create(model="demo", **arguments)


def checked(name, arguments):
    """Return a call after a check of its arguments."""
    found = json.loads(arguments)
    assert set(found) == {"city", "days"}
    assert found["days"] in (1, 22)
    return name, found


def test_a_forced_call_follows_the_schema_with_and_without_medusa(client):
    calls = []
    for enabled in (True, False):
        reply = ask(
            client,
            tool_choice=CHOICE,
            parallel_tool_calls=False,
            extra_body={"medusa": {"enabled": enabled}},
        )
        assert reply.choices[0].finish_reason == "tool_calls"
        assert reply.choices[0].message.content is None
        (call,) = reply.choices[0].message.tool_calls
        calls.append(checked(call.function.name, call.function.arguments))
    assert calls[0] == calls[1]
    assert calls[0][0] == "forecast"


@pytest.mark.parametrize("token_by_token", [False, True])
def test_a_stream_has_the_same_call(client, token_by_token):
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = ask(client, **settings).choices[0].message.tool_calls
    extra = {"medusa": {"stream_token_by_token": token_by_token}}
    chunks = list(ask(client, **settings, stream=True, extra_body=extra))
    deltas = [call for each in chunks for call in each.choices[0].delta.tool_calls or ()]
    assert deltas[0].function == type(deltas[0].function)(**whole.function.model_dump())
    assert not any(each.choices[0].delta.content for each in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_calls_and_results_are_sent_back(client):
    message = ask(client, tool_choice=CHOICE, parallel_tool_calls=False).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "dry"} for call in message.tool_calls
    ]
    reply = ask(client, messages=[*QUESTION, message, *results], max_tokens=4, tool_choice="none")
    assert reply.usage.prompt_tokens > 50


def test_messages_call_the_same_tool(client, tool_server):
    function = ask(client, tool_choice=CHOICE, parallel_tool_calls=False)
    (call,) = function.choices[0].message.tool_calls
    messages = anthropic.Anthropic(base_url=tool_server, api_key="none", max_retries=0).messages
    settings = {
        "model": "demo",
        "max_tokens": 400,
        "messages": QUESTION,
        "tools": [{"name": each["function"]["name"], "input_schema": SCHEMA} for each in TOOLS],
        "tool_choice": {
            "type": "tool",
            "name": "forecast",
            "disable_parallel_tool_use": True,
        },
        "extra_body": {"temperature": 0},
    }
    message = messages.create(**settings)
    (block,) = message.content
    assert (message.stop_reason, block.type) == ("tool_use", "tool_use")
    assert (block.name, block.input) == checked(call.function.name, call.function.arguments)
    with messages.stream(**settings) as stream:
        assert stream.get_final_message().content[0].input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "dry", "is_error": True}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": "Rome"}]},
    ]
    settings |= {"messages": turns, "max_tokens": 4, "tool_choice": {"type": "none"}}
    assert messages.create(**settings).usage.output_tokens == 4


def test_responses_call_the_same_tool(client):
    function = ask(client, tool_choice=CHOICE, parallel_tool_calls=False)
    (call,) = function.choices[0].message.tool_calls
    settings = {
        "model": "demo",
        "max_output_tokens": 400,
        "temperature": 0,
        "tools": [{"type": "function", **each["function"]} for each in TOOLS],
        "tool_choice": {"type": "function", "name": "forecast"},
        "parallel_tool_calls": False,
    }
    response = client.responses.create(input=QUESTION, **settings)
    (item,) = response.output
    assert item.type == "function_call"
    expected = checked(call.function.name, call.function.arguments)
    assert checked(item.name, item.arguments) == expected
    with client.responses.stream(input=QUESTION, **settings) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert streamed.arguments == item.arguments
    assert "response.function_call_arguments.done" in kinds
    items = [*QUESTION, item, {"type": "function_call_output", "call_id": item.call_id}]
    items[-1]["output"] = "dry"
    settings |= {"max_output_tokens": 4, "tool_choice": "none"}
    assert client.responses.create(input=items, **settings).usage.output_tokens == 4
