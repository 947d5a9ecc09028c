"""Tests of streams that fail: each protocol's client raises its own error."""

import anthropic
import openai
import pytest
from running import demo_app, running

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture
def failing(demo_model, monkeypatch):
    """Address of a server whose steps fail after the prefill."""

    def verify(*_):
        raise RuntimeError("the step is broken")

    app = demo_app(*demo_model)
    with running(app) as address:
        monkeypatch.setattr(app.state.server.worker.engine.model, "verify", verify)
        yield address


def test_openai_s_clients_raise_the_error(failing):
    client = openai.OpenAI(base_url=f"{failing}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="the step is broken"):
        list(client.chat.completions.create(model="demo", messages=MESSAGES, stream=True))
    events = list(client.responses.create(model="demo", input="x", stream=True))
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1].response.status == "failed"
    assert "the step is broken" in events[-1].response.error.message


def test_anthropic_s_client_raises_the_error(failing):
    client = anthropic.Anthropic(base_url=failing, api_key="none", max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as failed:
        list(client.messages.create(model="demo", max_tokens=9, messages=MESSAGES, stream=True))
    error = failed.value.body["error"]
    assert error["type"] == "api_error"
    assert error["message"].endswith("the step is broken")
