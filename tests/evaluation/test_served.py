"""A model behind a server as a method, over HTTP."""

import time

import pytest
from servers import body, said, serving, status, stream, used

from medusa.evaluation.served import ServedModel
from medusa.training.chat_server import ChatServer

CHAT = [{"role": "user", "content": "Why?"}]
ARGUMENTS = {"max_new_tokens": 20, "do_sample": True, "temperature": 0.5}


def run_of(address, arguments=ARGUMENTS, seed=7, timeout=5.0):
    model = ServedModel(ChatServer(address, timeout=timeout), "big")
    return model.asked(CHAT, seed)(None, None, arguments)


def test_a_streamed_answer_has_the_server_s_count_and_the_first_token_s_time(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def answer(_request, _number):
        pieces = stream(
            said("", role="assistant"), said("two wo"), said("rds 🌳"), used(9), "[DONE]"
        )
        yield next(pieces)
        yield next(pieces)
        time.sleep(0.2)
        yield next(pieces)
        time.sleep(0.1)
        yield from pieces

    with serving(answer) as (address, asked):
        run = run_of(address)
    assert run.text == "two words 🌳"
    assert (run.ids, run.steps, run.accepted) == ([], 0, ())
    assert (run.length, run.tokens) == (9, 8), "tokens are those of the usage, not the pieces"
    assert run.prefill_seconds >= 0.2, "the first event holds no token"
    assert run.seconds >= 0.09
    ((request, head),) = asked
    assert "Authorization: Bearer secret\r\n" in head
    assert request == {
        "model": "big",
        "messages": CHAT,
        "temperature": 0.5,
        "max_tokens": 20,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_greedy_decoding_is_temperature_zero_and_seeds_are_31_bits():
    with serving(lambda *_: stream(said("a"), used(1))) as (address, asked):
        run_of(address, {"max_new_tokens": 20, "do_sample": False}, seed=2**31 + 3)
    assert (asked[0][0]["temperature"], asked[0][0]["seed"]) == (0.0, 3)


def test_reasoning_counts_as_the_first_token_but_is_no_answer():
    events = [said(None, reasoning="hm"), said("yes"), used(5), "[DONE]"]
    with serving(lambda *_: stream(*events)) as (address, _):
        run = run_of(address)
    assert run.text == "yes"
    assert run.prefill_seconds > 0


def test_a_usage_with_each_piece_is_not_added_up():
    events = [{**used(count), **said(letter)} for count, letter in ((1, "a"), (2, "b"))]
    with serving(lambda *_: stream(*events)) as (address, _):
        run = run_of(address)
    assert (run.text, run.length) == ("ab", 2)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (lambda: stream(said("a"), "[DONE]"), "sent no `usage` in its stream"),
        (lambda: stream(said("a"), {"choices": [], "usage": {}}), "usage.completion_tokens: field"),
        (lambda: stream(used(0)), "gave an answer without tokens"),
        (lambda: stream("{"), "a piece of the stream: "),
        (lambda: stream({"error": {"message": "no memory"}}), "failed: .*no memory"),
        (lambda: body({"choices": []}), "broken reply: .*text/event-stream"),
        (lambda: status(404, "no such model"), "refuses it with status 404: no such model"),
        (lambda: b"SSH-2.0-OpenSSH_9.6\r\n", "sent a broken reply"),
        (lambda: b"", "sent a broken reply"),
    ],
)
def test_a_bad_reply_is_explained(reply, problem):
    with serving(lambda *_: reply()) as (address, asked):
        with pytest.raises(ValueError, match=f"(?s){address}.*{problem}"):
            run_of(address)
        assert len(asked) == 1, "a measurement is not repeated in silence"


def test_a_silent_server_is_an_error():
    def answer(*_):
        yield from stream(said("a"))
        time.sleep(2)

    with (
        serving(answer) as (address, _),
        pytest.raises(ValueError, match=r"sent nothing for 0\.2 seconds"),
    ):
        run_of(address, timeout=0.2)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/v1: no connection"):
        run_of("http://127.0.0.1:9/v1")
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/v1: no connection"):
        ServedModel(ChatServer("http://127.0.0.1:9/v1"))


def test_the_only_model_need_not_be_named():
    models = [{"id": "one"}]
    with serving(lambda *_: body({"data": models})) as (address, asked):
        assert ServedModel(ChatServer(address)).model == "one"
        assert asked[0][1].startswith("GET /v1/models ")
        models.append({"id": "two"})
        with pytest.raises(ValueError, match=r"several models: .*model=one say \(one, two\)"):
            ServedModel(ChatServer(address))
        models.clear()
        with pytest.raises(ValueError, match="/models: data: "):
            ServedModel(ChatServer(address))
    with (
        serving(lambda *_: status(404)) as (address, _),
        pytest.raises(ValueError, match="status 404"),
    ):
        ServedModel(ChatServer(address))
