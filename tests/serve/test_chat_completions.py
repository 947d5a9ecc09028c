"""Tests of chats and completions with the real client, over real HTTP."""

import asyncio
import json

import openai
import pytest
from running import demo_app, prompts, running

from medusa import demo

PROMPT = prompts(2)[1]


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client, prompt=PROMPT, **arguments):
    arguments = {"max_tokens": 60, "temperature": 0, **arguments}
    messages = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model="demo", messages=messages, **arguments)


def generated(demo_model, prompt=PROMPT, tokens=60):
    """Return the answer of `generate` to the same chat."""
    model, tokenizer = demo_model
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_an_answer_is_that_of_generate(client, demo_model):
    reply = ask(client)
    assert reply.choices[0].message.content == generated(demo_model)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_step_gives_several_tokens():
    """A model that knows no step times yet, because a busy machine may make it decode plainly."""
    with running(demo_app(*demo.load())) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        assert ask(client).usage.medusa["acceleration_rate"] > 1.5


def test_a_stream_is_the_same_text(client, demo_model):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == generated(demo_model)
    reasons = [each.choices[0].finish_reason for each in chunks if each.choices]
    assert reasons[-1] in ("stop", "length")
    assert not any(reasons[:-1])
    usage = chunks[-1].usage
    assert (
        usage.completion_tokens
        == sum(int(count) * times for count, times in usage.medusa["accepted"].items()) + 1
    )  # the prefill's


def test_64_mixed_requests_at_once_are_those_of_generate(address, demo_model):
    asked = [(prompt, 5 + 3 * place % 50) for place, prompt in enumerate(prompts(64))]

    async def all_answers():
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        replies = [ask(client, prompt, max_tokens=most) for prompt, most in asked]
        return await asyncio.gather(*replies)

    for reply, (prompt, most) in zip(asyncio.run(all_answers()), asked, strict=True):
        assert reply.choices[0].message.content == generated(demo_model, prompt, most)


def test_plain_decoding_is_a_switch(client):
    reply = ask(client, extra_body={"medusa": {"enabled": False}})
    assert reply.usage.medusa["acceleration_rate"] == 1
    assert reply.choices[0].message.content == ask(client).choices[0].message.content


def test_tokens_can_come_one_by_one(client):
    chunks = list(
        ask(
            client,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"medusa": {"stream_token_by_token": True, "steps": True}},
        )
    )
    steps = [each.medusa for each in chunks if hasattr(each, "medusa")]
    assert {len(step["tokens"]) for step in steps} == {1}
    assert len(steps) == chunks[-1].usage.completion_tokens


def test_steps_are_described(client):
    chunks = ask(client, stream=True, extra_body={"medusa": {"steps": True}})
    steps = [each.medusa for each in chunks if hasattr(each, "medusa")]
    assert [step["step"] for step in steps] == list(range(len(steps)))
    for step in steps[1:]:
        candidates = step["candidates"]
        assert len(candidates) == step["nodes"]
        accepted = [each["text"] for each in candidates if each["accepted"]]
        drafted = [each["text"] for each in step["tokens"] if each["accepted"]]
        assert accepted[1 : 1 + len(drafted)] == drafted
        assert all(
            candidates[each["parent"]]["depth"] + 1 == each["depth"] for each in candidates[1:]
        )


def test_stop_strings_end_the_text_and_are_not_part_of_it(client):
    whole = ask(client).choices[0].message.content
    stop = whole[len(whole) // 2 :][:5]
    for stream in (False, True):
        reply = ask(client, stop=[stop, "never written"], stream=stream)
        text = (
            "".join(each.choices[0].delta.content or "" for each in reply)
            if stream
            else reply.choices[0].message.content
        )
        assert text == whole.split(stop)[0]


def test_seeds_repeat_and_answers_of_a_request_differ(client):
    settings = {"prompt": "Tell me", "temperature": 2, "seed": 7, "n": 4, "max_tokens": 30}
    first, second = (
        [choice.message.content for choice in ask(client, **settings).choices] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 1


def test_log_probabilities_are_those_of_plain_decoding(client):
    settings = {"logprobs": True, "top_logprobs": 3}
    tree = ask(client, **settings).choices[0].logprobs.content
    plain = ask(client, **settings, extra_body={"medusa": {"enabled": False}})
    assert [each.token for each in tree] == [
        each.token for each in plain.choices[0].logprobs.content
    ]
    for one, other in zip(tree, plain.choices[0].logprobs.content, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.logprob == one.top_logprobs[0].logprob
        assert len(one.top_logprobs) == 3


def test_a_bias_and_a_penalty_change_the_text(client, demo_model):
    whole = ask(client)
    _, tokenizer = demo_model
    first = tokenizer(whole.choices[0].message.content)["input_ids"][0]
    other = ask(client, logit_bias={str(first): -100}).choices[0].message.content
    assert other[:3] != whole.choices[0].message.content[:3]
    assert ask(client, frequency_penalty=2.0).choices[0].message.content != (
        whole.choices[0].message.content
    )


def test_an_answer_follows_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "level": {"enum": [1, 22]}},
        "required": ["city", "level"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    texts = [
        ask(client, response_format=form, extra_body={"medusa": {"enabled": enabled}})
        .choices[0]
        .message.content
        for enabled in (True, False)
    ]
    assert texts[0] == texts[1]
    assert set(json.loads(texts[0])) == {"city", "level"}


def test_a_prompt_is_continued(client, demo_model):
    model, tokenizer = demo_model
    ids = tokenizer("SELECT name FROM", return_tensors="pt")["input_ids"]
    for prompt in ("SELECT name FROM", ids[0].tolist()):
        reply = client.completions.create(
            model="demo", prompt=prompt, max_tokens=20, temperature=0, logprobs=2
        )
        output = model.generate(ids, max_new_tokens=20, do_sample=False)
        assert reply.choices[0].text == tokenizer.decode(
            output[0, ids.shape[1] :], skip_special_tokens=True
        )
        logprobs = reply.choices[0].logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 20
    streamed = client.completions.create(
        model="demo", prompt="SELECT name FROM", max_tokens=20, temperature=0, stream=True
    )
    assert "".join(each.choices[0].text for each in streamed) == reply.choices[0].text


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"functions": []}}, "functions"),
        ({"extra_body": {"medusa": {"nodes": 3}}}, "medusa.nodes"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, wrong, field):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **wrong)
    assert field in refused.value.body["message"]
    assert refused.value.body["type"] == "invalid_request_error"


def test_what_the_client_got_can_be_sent_back(client):
    """OpenAI's client adds fields to parsed messages, and sends nulls of those it does not know."""
    completions, asked = client.chat.completions, [{"role": "user", "content": PROMPT}]
    own = {"model": "demo", "max_tokens": 200, "prompt_cache_key": "x", "store": False}
    parsed = completions.parse(**own, messages=asked).choices[0].message
    whole = completions.create(**own, messages=asked).choices[0].message.model_dump()
    for message in (parsed, whole):
        again = completions.create(**own, messages=[*asked, message, *asked])
        assert again.choices[0].finish_reason == "stop"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="only 'demo'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}])


def test_a_prompt_that_is_too_long_is_refused_at_once(client):
    with pytest.raises(openai.BadRequestError, match="tokens"):
        ask(client, "many words " * 2000)


def test_what_a_prompt_shares_with_an_earlier_text_is_not_run_again(client):
    talk = [{"role": "user", "content": "many words " * 40}]
    first = client.chat.completions.create(model="demo", messages=talk, max_tokens=8)
    talk += [{"role": "assistant", "content": first.choices[0].message.content}]
    talk += [{"role": "user", "content": "And now?"}]
    second = client.chat.completions.create(model="demo", messages=talk, max_tokens=8)
    assert second.usage.prompt_tokens_details.cached_tokens >= 80
