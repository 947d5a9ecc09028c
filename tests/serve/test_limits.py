"""Tests of what a server refuses and how, over real HTTP."""

import json
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from running import demo_app, prompts, running

from medusa import demo

CHAT = {"model": "demo", "messages": [{"role": "user", "content": prompts(1)[0]}], "max_tokens": 8}
LONG = {**CHAT, "max_tokens": 500, "temperature": 2, "seed": 1}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def strict(demo_model):
    """A server with a key and small limits."""
    limits = {
        "api_key": "secret",
        "max_prompt": 300,
        "max_body": 20_000,
        "max_rows": 2,
        "max_waiting": 1,
        "origins": ("https://example.org",),
    }
    with running(demo_app(*demo_model, **limits)) as address:
        yield httpx2.Client(base_url=address, headers={"x-api-key": "secret"}, timeout=60)


@pytest.fixture
def client(address):
    with httpx2.Client(base_url=address, timeout=60) as client:
        yield client


def idle(client, seconds=5.0):
    """Return True once no request decodes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = client.get("/health").json()
        if found["active"] == found["waiting"] == 0:
            return True
        time.sleep(0.02)
    return False


def test_the_key_is_needed_for_all_but_the_page_and_health(strict):
    with httpx2.Client(base_url=strict.base_url) as stranger:
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "sécret".encode()}):
            refused = stranger.post("/v1/chat/completions", json=CHAT, headers=wrong)
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
        assert stranger.get("/metrics").status_code == 401
        assert stranger.get("/health").status_code == stranger.get("/").status_code == 200
        right = {"authorization": "Bearer secret"}
        assert stranger.get("/v1/models", headers=right).json()["data"][0]["id"] == "demo"


def test_large_bodies_and_long_prompts_are_refused(strict):
    large = json.dumps({**CHAT, "user": "x" * 30_000}).encode()
    pieces = (large[place : place + 1000] for place in range(0, len(large), 1000))
    for content in (large, pieces):  # the second without content-length
        refused = strict.post("/v1/chat/completions", content=content, headers=JSON)
        assert refused.status_code == 413
        assert "20000 bytes" in refused.json()["error"]["message"]
    long = [{"role": "user", "content": "many words " * 300}]
    refused = strict.post("/v1/chat/completions", json={**CHAT, "messages": long})
    assert refused.status_code == 400
    assert "300" in refused.json()["error"]["message"]


def test_a_full_queue_is_said_at_once_and_empties(strict):
    with ThreadPoolExecutor(12) as pool:
        replies = list(
            pool.map(lambda _: strict.post("/v1/chat/completions", json=LONG), range(12))
        )
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert idle(strict)
    assert strict.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert strict.post("/v1/chat/completions", json={**CHAT, "n": 100}).status_code == 400


def test_only_named_origins_may_call(strict, client):
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    allowed = strict.options("/v1/chat/completions", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = strict.options(
        "/v1/chat/completions", headers={**asked, "origin": "https://other.example"}
    )
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in client.get("/health", headers=asked).headers


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 100_000,
        b"null",
        b'{"model": "demo"}',
        b'{"model": null, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "demo", "unknown": null, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "demo", "messages": [], "max_tokens": 1}',
        b'{"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "demo", "max_tokens": 1, "temperature": NaN, "messages": [{"role": "user"}]}',
        b'{"model": "demo", "n": 1e9, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "demo", "stop": ["\\udfff"], "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "demo", "messages": [{"role": "tool", "content": {"a": 1}}]}',
        b'{"model": "demo", "seed": 1e30, "messages": [{"role": "user", "content": "x"}]}',
        b"\xff\xfe",
    ],
)
def test_bad_bodies_get_an_error_of_the_client(client, body):
    refused = client.post("/v1/chat/completions", content=body, headers=JSON)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 1e-300},
        {"temperature": 2, "top_p": 0, "top_k": -1},
        {"repetition_penalty": 0.01},
        {"min_p": 1, "seed": -1},
        {"stop": ""},
        {"messages": [{"role": "user", "content": "\0"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"presence_penalty": None, "n": None, "stream": None, "logit_bias": None},
        {"medusa": None},
        {"medusa": {"enabled": None, "steps": None}},
        {"stream": True, "stream_options": {"include_usage": None}},
        {"response_format": {"type": "text", "json_schema": None}},
    ],
)
def test_unusual_values_are_served(client, body):
    reply = client.post("/v1/chat/completions", json={**CHAT, **body})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("prompt", [[10**30], [-1], [5000], []])
def test_token_ids_that_the_model_does_not_have_are_refused(client, prompt):
    refused = client.post("/v1/completions", json={"model": "demo", "prompt": prompt})
    assert refused.status_code == 400
    assert "prompt" in refused.json()["error"]["message"]


def test_paths_that_do_not_exist(client):
    for reply, status in ((client.get("/v1/nothing"), 404), (client.put("/v1/models"), 405)):
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_request_ids_are_given_back(client):
    own = client.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    assert re.fullmatch("[0-9a-f]{32}", client.get("/v1/models").headers["x-request-id"])


def test_logs_hold_no_text(client, caplog):
    with caplog.at_level(logging.DEBUG, "medusa"):
        secret = [{"role": "user", "content": "a-secret-word"}]
        client.post("/v1/chat/completions", json={**CHAT, "messages": secret})
        client.post("/v1/chat/completions", json={**CHAT, "messages": secret, "what": 1})
    assert caplog.records
    assert "a-secret-word" not in caplog.text


def test_a_client_that_goes_away_frees_its_row(client):
    with client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as reply:
        next(reply.iter_lines())
    assert idle(client)
    with pytest.raises(httpx2.TimeoutException):
        client.post("/v1/chat/completions", json={**LONG, "n": 8}, timeout=0.05)
    assert idle(client)


def test_equal_requests_at_once_get_equal_answers(client):
    with ThreadPoolExecutor(4) as pool:
        replies = pool.map(lambda _: client.post("/v1/chat/completions", json=LONG), range(4))
    assert len({reply.json()["choices"][0]["message"]["content"] for reply in replies}) == 1


def test_an_answer_ends_when_its_time_is_up(demo_model):
    with running(demo_app(*demo_model, max_seconds=0.0)) as address:
        reply = httpx2.post(f"{address}/v1/chat/completions", json=LONG, timeout=60).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 1


def test_the_figures_are_those_of_the_answers():
    def figure(text, name):
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    with running(demo_app(*demo.load())) as address:  # a model that knows no step times yet
        reply = httpx2.post(f"{address}/v1/chat/completions", json=CHAT, timeout=60).json()
        text = httpx2.get(f"{address}/metrics").text
    usage = reply["usage"]
    assert figure(text, "medusa_prompt_tokens_total") == usage["prompt_tokens"]
    assert figure(text, "medusa_generation_tokens_total") == usage["completion_tokens"]
    assert figure(text, "medusa_step_seconds_count") == usage["medusa"]["steps"]
    drafts = figure(text, "vllm:spec_decode_num_drafts_total")
    accepted = figure(text, "vllm:spec_decode_num_accepted_tokens_total")
    assert 0 < drafts <= usage["medusa"]["steps"]
    # a step gives a token of the model's own besides, unless the text ends before it
    assert accepted - (usage["completion_tokens"] - 1 - usage["medusa"]["steps"]) in (0, 1)
    first = 'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"}'
    assert 0 < figure(text, first) <= drafts
