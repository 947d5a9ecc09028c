import asyncio
import gzip
import json
import os
import signal
import threading

import pytest
from servers import body, reply, serving, status

from medusa.training import server as module
from medusa.training.answers_file import answers_file
from medusa.training.conversations import FinishedConversation, GenerationSettings, conversation
from medusa.training.distill import distill
from medusa.training.server import ServerAnswerer, pause

SETTINGS = GenerationSettings("big", seed=2**70, max_new_tokens=50)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


def seeds(count):
    return [(f"seed {n}", [{"role": "user", "content": f"question {n}"}]) for n in range(count)]


def outcomes(address, count=1, settings=SETTINGS, **options):
    server = ServerAnswerer(address, settings, **options)
    return {
        each.name: each
        for each in server.drive([(n, conversation(n, s, settings)) for n, s in seeds(count)])
    }


def message(outcome):
    assert isinstance(outcome.result, FinishedConversation), outcome.result
    return outcome.result.messages[-1]


def trickle(*_):
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while not threading.Event().wait(0.01):
        yield b" "


def trickled_head(*_):
    yield b"HTTP/1.1 200 OK\r\nX: "
    while not threading.Event().wait(0.01):
        yield b"x"


def endless(*_):
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b" " * 65536


BAD = {
    "list": body([1, 2]),
    "null": body(None),
    "number": body(3),
    "not JSON": body(b"<html>"),
    "nothing": body(b""),
    "nested": body(b"[" * 100_000),
    "not UTF-8": body(b'{"choices": [{"message": {"content": "\xff"}}]}'),
    "no choice": body({"choices": []}),
    "choice of text": body({"choices": ["hi"]}),
    "message null": body({"choices": [{"message": None}]}),
    "message of text": body({"choices": [{"message": "hi"}]}),
    "content number": body(reply(3)),
    "content list": body(reply([1])),
    "content without text": body(reply([{"type": "image_url", "image_url": "x"}])),
    "half a surrogate pair": body(b'{"choices": [{"message": {"content": "\\ud83d"}}]}'),
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{",
    "cut without length": b'HTTP/1.1 200 OK\r\n\r\n{"choices": [',
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "cut chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
    "bad encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{}",
    "gzip bomb": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    + gzip.compress(b" " * 9_000_000),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "hangs up": b"",
    "busy": status(429, header="Retry-After: 0\r\n"),
    "fails": status(500),
    "endless": endless,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_after_a_bad_reply_the_request_is_sent_again(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(module, "LARGEST_REPLY", 1 << 20)
    monkeypatch.setattr(module, "TRIES", 2)

    def answer(request, number):
        text = request["messages"][-1]["content"]
        if number % 3 == 1 or text == "question 5":
            return bad(request, number) if callable(bad) else bad
        return body(reply(f"answer to {text}"))

    with serving(answer) as (address, _), answers_file(tmp_path / "out.jsonl", SETTINGS) as answers:
        server = ServerAnswerer(address, SETTINGS, in_flight=1)
        progress = distill(server, seeds(12), answers)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answered = {line["id"]: line["messages"][-1]["content"] for line in lines}
    assert answered == {f"seed {n}": f"answer to question {n}" for n in range(12) if n != 5}
    assert len(progress.refused) == 1
    assert progress.refused[0].startswith("seed 5: http://127.0.0.1:")
    assert "gave no answer in 2 tries; the last: " in progress.refused[0]


@pytest.mark.parametrize("slow", [trickle, trickled_head])
def test_a_reply_that_trickles_in_times_out(monkeypatch, slow):
    monkeypatch.setattr(module, "TRIES", 2)
    with serving(slow) as (address, asked):
        found = outcomes(address, timeout=0.2)["seed 0"].result
    assert str(found).endswith(
        "gave no answer in 2 tries; the last: no whole reply within 0.2 seconds"
    )
    assert len(asked) == 2


@pytest.mark.parametrize("code", [301, 400, 401, 404, 422])
def test_a_refused_request_is_not_sent_again(code):
    with serving(lambda *_: status(code, "not this one")) as (address, asked):
        found = outcomes(address)["seed 0"].result
    assert isinstance(found, ValueError)
    assert f"refuses it with status {code}: not this one" in str(found)
    assert len(asked) == 1


def test_only_the_beginning_of_an_endless_error_is_read():
    def answer(*_):
        yield b"HTTP/1.1 400 Bad\r\n\r\n"
        while True:
            yield b"n" * 65536

    with serving(answer) as (address, _):
        found = outcomes(address)["seed 0"].result
    assert str(found).endswith("refuses it with status 400: " + "n" * 300)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (reply(" hi "), {"content": "hi"}),
        (reply([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]), {"content": "hi"}),
        (reply("hi", reasoning_content="hm"), {"content": "hi", "reasoning_content": "hm"}),
        (reply("hi", reasoning="hm"), {"content": "hi", "reasoning_content": "hm"}),
        (reply("hi", finish="length"), {"content": "hi", "cut": True}),
        (reply("hi", finish="content_filter"), {"content": "hi", "cut": True}),
        (reply("hi", finish=None), {"content": "hi"}),
        (reply("🌳"), {"content": "🌳"}),
        *(
            ({**reply("hi"), "usage": usage}, {"content": "hi"})
            for usage in ([1], None, {"completion_tokens": "3"})
        ),
        ({**reply("hi"), "new": {"field": 1}}, {"content": "hi"}),
    ],
)
def test_answers_of_all_reply_formats_are_kept(content, expected):
    with serving(lambda *_: body(content)) as (address, _):
        found = outcomes(address)["seed 0"]
    assert message(found) == {"role": "assistant", **expected}
    assert found.tokens == (3 if content["usage"] == {"completion_tokens": 3} else 0)


@pytest.mark.parametrize(
    "content", [reply(None), reply(""), reply("", finish="length", reasoning_content="hm")]
)
def test_an_answer_without_text_is_left_out(content):
    with serving(lambda *_: body(content)) as (address, _):
        ended = outcomes(address)["seed 0"].result
    assert not ended.answered
    assert ended.why.startswith("answer 1 was ")


def test_the_content_of_a_request(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    chat = [{"role": "user", "content": "half a pair: \ud83d"}, {"role": "user", "content": "two"}]
    with serving(lambda *_: body(reply("one", reasoning_content="hm"))) as (address, asked):
        ended = next(
            iter(
                ServerAnswerer(address, SETTINGS).drive([("a", conversation("a", chat, SETTINGS))])
            )
        ).result
    assert [turn.get("reasoning_content") for turn in ended.messages] == [None, "hm", None, "hm"]
    (first, head), (second, _) = asked
    assert "Authorization: Bearer secret\r\n" in head
    assert head.startswith("POST /v1/chat/completions ")
    assert first["messages"] == chat[:1]
    assert second["messages"] == [chat[0], {"role": "assistant", "content": "one"}, chat[1]]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("big", 0.3, 50)
    assert 0 <= first["seed"] < 2**31
    assert first["seed"] != second["seed"]


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [
        ("", 2, 2),
        ("soon", 2, 2),
        ("nan", 2, 2),
        ("Wed, 99 Foo 2026", 2, 2),
        ("7", 7, 7),
        ("1.5", 1.5, 1.5),
        ("-7", 0, 0),
        ("99999", 60, 60),
        ("9" * 5000, 60, 60),
        ("inf", 60, 60),
        ("Fri, 27 Nov 2122 22:24:41 GMT", 60, 60),
        ("Wed, 25 Nov 2015 22:24:41 GMT", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00", 2, 2),
    ],
)
def test_the_pause_follows_retry_after_within_bounds(monkeypatch, after, least, most):
    monkeypatch.setattr(module, "PAUSE", 1.0)
    assert least <= pause(2, after) <= most


@pytest.mark.timeout(60)
@pytest.mark.parametrize("hangs", [True, False])
def test_an_interrupt_ends_a_run_at_once_and_keeps_finished_conversations(tmp_path, hangs):
    """The server answers one conversation; then it hangs, or asks for a pause of an hour."""
    released = threading.Event()

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def answer(_request, number):
        if number == 1:
            return body(reply())
        if number == 2:
            threading.Timer(0.05, interrupt).start()
        if hangs:
            released.wait()
        return status(429, header="Retry-After: 3600\r\n")

    path = tmp_path / "out.jsonl"
    try:
        with serving(answer) as (address, _), answers_file(path, SETTINGS) as answers:
            with pytest.raises(KeyboardInterrupt):
                distill(ServerAnswerer(address, SETTINGS, in_flight=1), seeds(3), answers)
            assert not [thread for thread in threading.enumerate() if thread.name == module.THREAD]
    finally:
        released.set()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.timeout(60)
def test_the_exit_of_a_program_does_not_wait_for_a_name_server(monkeypatch):
    asked, released = threading.Event(), threading.Event()

    def slow(*_, **__):
        asked.set()
        released.wait()
        raise OSError("too late")

    async def ask():
        await asyncio.get_running_loop().getaddrinfo("example.com", 80)

    monkeypatch.setattr(module.socket, "getaddrinfo", slow)
    work = module._Background(ask())
    asked.wait()
    work.stop()
    waiting = [thread for thread in threading.enumerate() if thread.name == module.THREAD]
    released.set()
    assert [thread.daemon for thread in waiting] == [True]
    waiting[0].join()


def test_an_unreachable_server_ends_the_run():
    for address in ("http://127.0.0.1:9/v1", "http://no.such.host.invalid/v1"):
        with pytest.raises(
            ConnectionError, match=f"{address} gave no answer in 6 tries; the last: no connection"
        ):
            outcomes(address, 3)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ftp://x", "http://", "http://a:b/v1"])
def test_an_invalid_address_is_an_error(address):
    with pytest.raises(ValueError, match="address"):
        ServerAnswerer(address, SETTINGS)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"key": "é"}, "OPENAI_API_KEY"),
        ({"key": "a\nb"}, "OPENAI_API_KEY"),
        ({"timeout": float("nan")}, "timeout must be positive"),
        ({"settings": GenerationSettings("m", self_talk=1)}, "--self-talk"),
    ],
)
def test_invalid_options_are_errors(options, problem):
    with pytest.raises(ValueError, match=problem):
        ServerAnswerer(**{"address": "http://x/v1", "settings": SETTINGS, **options})
