"""Tests of the worker over real HTTP: clients that go away, and faults of the model's steps."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import anthropic
import httpx2
import openai
import pytest
import torch
from running import demo_app, prompts, running
from transformers import LogitsProcessor

from medusa.generation.grammar import Grammar

PROMPT = prompts(1)[0]


@pytest.fixture
def served(demo_model):
    """A server of its own, and its address."""
    app = demo_app(*demo_model, max_rows=2)
    with running(app) as address:
        yield app.state.server, address


def body(tokens=20, **fields):
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": "demo", "messages": messages, "max_tokens": tokens, "temperature": 0, **fields}


def ask(address, **fields):
    return httpx2.post(f"{address}/v1/chat/completions", json=body(**fields), timeout=60)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def failing(engine, monkeypatch, times):
    """Let the model's next steps fail."""
    verify, left = engine.model.verify, [times]

    def verify_or_fail(*arguments):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("the device is broken")
        return verify(*arguments)

    monkeypatch.setattr(engine.model, "verify", verify_or_fail)


def slow_down(model, name, seconds, monkeypatch):
    """Make a method of the model take longer."""
    method = getattr(model, name)

    def slowly(*arguments):
        time.sleep(seconds)
        return method(*arguments)

    monkeypatch.setattr(model, name, slowly)


@pytest.fixture
def slow(served, monkeypatch):
    """Make each step of the model take a while."""
    slow_down(served[0].worker.engine.model, "verify", 0.05, monkeypatch)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("slow")
def test_a_client_that_goes_away_frees_its_row(served, stream):
    server, address = served
    long = body(200, stream=stream, logit_bias={"0": -100}, medusa={"enabled": False})
    url = f"{address}/v1/chat/completions"
    with (
        httpx2.Client(timeout=0.5) as client,  # too short for the whole answer
        suppress(httpx2.TimeoutException),
        client.stream("POST", url, json=long) as reply,
    ):
        lines = reply.iter_lines()  # one that is dropped closes the connection
        next(lines)
        assert stream
        assert server.worker.active
    until(lambda: not server.worker.engine.rows and not server.worker.active, 20)
    assert ask(address).status_code == 200


def test_streams_are_kept_alive_during_a_slow_prefill(demo_model, monkeypatch):
    app = demo_app(*demo_model, keep_alive=0.05)
    with running(app) as address:
        expected = ask(address).json()["choices"][0]["message"]["content"]
        slow_down(app.state.server.worker.engine.model, "prefill", 0.5, monkeypatch)
        lines = ask(address, stream=True).text.splitlines()
        begin = next(place for place, line in enumerate(lines) if '"delta": {"content"' in line)
        assert lines[:begin].count(": keep-alive") >= 3
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        pieces = client.chat.completions.create(**body(stream=True))
        assert "".join(each.choices[0].delta.content or "" for each in pieces) == expected
        stream = anthropic.Anthropic(base_url=address, api_key="none").messages.stream
        asked = {name: body()[name] for name in ("model", "messages", "max_tokens")}
        with stream(**asked, extra_body={"temperature": 0}) as events:
            assert events.get_final_text() == expected


class BrokenProcessor(LogitsProcessor):
    """Fails at the first token after the prefill."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("the grammar is broken")
        return scores


def test_a_grammar_that_fails_ends_its_request_alone(served, monkeypatch):
    _, address = served
    expected = ask(address).json()["choices"]
    monkeypatch.setattr(Grammar, "json_schema", lambda *_: BrokenProcessor())
    formats = [{"response_format": {"type": "json_object"}}, {}] * 3
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda fields: ask(address, **fields), formats))
    assert [each.status_code for each in replies] == [500, 200] * 3
    assert all("grammar is broken" in each.json()["error"]["message"] for each in replies[::2])
    assert [each.json()["choices"] for each in replies[1::2]] == [expected] * 3


def test_a_step_that_fails_ends_its_requests_and_no_other(served, monkeypatch):
    server, address = served
    expected = ask(address).json()["choices"]
    failing(server.worker.engine, monkeypatch, 1)
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: ask(address), range(6)))
    failed = [each for each in replies if each.status_code == 500]
    assert 1 <= len(failed) <= 2  # rows of the batch; the others waited
    assert all("device is broken" in each.json()["error"]["message"] for each in failed)
    good = [each.json()["choices"] for each in replies if each.status_code == 200]
    assert good == [expected] * (6 - len(failed))


def test_a_stream_whose_step_fails_ends_with_an_error(served, monkeypatch):
    server, address = served
    failing(server.worker.engine, monkeypatch, 1)
    *_, error, end = ask(address, stream=True).text.strip().split("\n\n")
    assert "device is broken" in error
    assert end == "data: [DONE]"
    assert ask(address).status_code == 200


def test_steps_that_keep_failing_end_the_server_s_work(served, monkeypatch):
    server, address = served
    failing(server.worker.engine, monkeypatch, 3)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(address), range(8)))
    assert {each.status_code for each in replies} <= {500, 503}
    assert any(each.status_code == 503 for each in replies)
    health = httpx2.get(f"{address}/health")
    assert health.status_code == 503
    assert "device is broken" in health.json()["reason"]
    assert ask(address).status_code == 503


def test_steps_of_one_request_and_of_several_are_compiled_at_the_start(demo_model, monkeypatch):
    model, tokenizer = demo_model
    several = set()
    monkeypatch.setattr(model, "compile_steps", lambda cache: several.add(len(cache.lengths) > 1))
    with running(demo_app(model, tokenizer)):
        assert several == {False, True}


def test_stop_strings_of_the_model_end_answers(demo_model, monkeypatch):
    model, tokenizer = demo_model
    with running(demo_app(model, tokenizer)) as address:
        whole = ask(address).json()["choices"][0]["message"]["content"]
    stop = whole[4:7]
    monkeypatch.setattr(model.base.generation_config, "stop_strings", [stop])
    with running(demo_app(model, tokenizer)) as address:
        choice = ask(address).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_too_little_memory_for_earlier_texts_ends_no_request(served, monkeypatch):
    server, address = served
    expected = ask(address).json()["choices"]

    def copied(*_):
        raise torch.OutOfMemoryError("no memory for a copy")

    monkeypatch.setattr("medusa.core.cache.TreeCache.copied", copied)
    for _ in range(4):
        assert ask(address).json()["choices"] == expected
    assert server.worker.healthy


def test_a_fault_of_the_figures_harms_no_request(served):
    server, address = served

    def broken(events):
        raise RuntimeError("no figures")

    server.worker.observe = broken
    assert ask(address).status_code == 200


def test_a_fault_in_delivery_is_told_to_everybody(served, monkeypatch):
    server, address = served

    def broken(event):
        raise RuntimeError("not delivered")

    monkeypatch.setattr(server.worker, "_deliver_one", broken)
    assert ask(address).status_code == 503
    assert httpx2.get(f"{address}/health").status_code == 503


@pytest.mark.parametrize("text", ['{"\\ud800": 1}', "[" * 100_000, '{"model": NaN}', "{", ""])
def test_a_body_that_is_no_request_is_refused(served, text):
    headers = {"content-type": "application/json"}
    reply = httpx2.post(f"{served[1]}/v1/completions", content=text, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_more_requests_than_may_wait_are_refused(demo_model):
    with running(demo_app(*demo_model, max_rows=1, max_waiting=0)) as address:
        assert ask(address).status_code == 200
        assert ask(address, n=2).status_code == 400
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: ask(address), range(8)))
        refused = [each for each in replies if each.status_code == 429]
        assert len(refused) + sum(each.status_code == 200 for each in replies) == 8
        assert refused
        assert all(each.headers["retry-after"] == "1" for each in refused)
