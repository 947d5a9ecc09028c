"""Tests of the client that measures servers under load, and of the figures made from it."""

import threading

import pytest
from servers import said, serving, status, stream, used

from benchmarks.load import Answered, Endpoint, Load, run_load
from benchmarks.serving import MEDUSA, PLAIN_METHOD, SERVER, cost, row


def ask(address, concurrency=1, prompts=("a", "b", "c")):
    endpoint = Endpoint("any", "medusa", address.removesuffix("/v1"), "m", {"medusa": {"n": 1}})
    return run_load(endpoint, prompts, concurrency, 7)


def test_tokens_are_counted_by_the_server():
    with serving(lambda request, number: stream(said("two words"), used(9), "[DONE]")) as found:
        load = ask(found[0])
    assert load.tokens == 27
    body = found[1][0][0]
    assert (body["max_tokens"], body["temperature"], body["medusa"]) == (7, 0, {"n": 1})
    assert load.seconds >= max(each.last for each in load.answers)


def test_that_many_requests_are_open_at_a_time():
    lock, state = threading.Lock(), {"now": 0, "most": 0}
    meet = threading.Barrier(4)

    def answer(request, number):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        meet.wait(20)
        with lock:
            state["now"] -= 1
        yield from stream(said("x"), used(1), "[DONE]")

    with serving(answer) as (address, asked):
        ask(address, 4, ["p"] * 8)
    assert state["most"] == 4
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (status(429, "too many"), "429: too many"),
        (b"".join(stream(said("x"), "[DONE]")), "no usage"),
        (b"".join(stream({"error": {"message": "broken"}})), "broken"),
    ],
)
def test_a_failed_answer_ends_the_measurement(reply, told):
    with serving(lambda *_: reply) as (address, _), pytest.raises(RuntimeError, match=told):
        ask(address)


def loads(*seconds, tokens=101):
    return [Load([Answered(tokens, 0.0, each), Answered(1, 0.5, 0.5)], each) for each in seconds]


def test_figures_are_medians_over_rounds():
    runs = {(SERVER, MEDUSA): loads(1.0, 2.0, 3.0), (SERVER, PLAIN_METHOD): loads(2.0, 2.0, 9.0)}
    found = row("demo", (SERVER, MEDUSA), 1, runs)
    assert found["tokens_per_second"] == 51
    assert found["over_plain"] == 2
    assert found["over_plain_spread"] == (1, 3)
    assert found["itl_p50_ms"] == pytest.approx(10)
    assert found["itl_p95_ms"] == pytest.approx(20)
    assert found["ttft_ms"] == 250
    costs = cost(runs[SERVER, MEDUSA], loads(1.0, 1.0, 3.0))
    assert costs == {"percent": 0, "spread": (0, 100)}
