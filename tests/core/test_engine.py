"""Tests of the engine: requests join and leave, and each gets the text that it gets alone."""

import copy
import gc
import itertools
import random
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from models import VOCAB, ScriptedHeads, tiny
from transformers import LogitsProcessor
from transformers.generation import logits_process as lp

from medusa import CandidateTree, Greedy, MedusaModel, Rejection, Typical
from medusa.core.engine import PLAIN, Engine
from medusa.core.request import Event, Request
from medusa.core.schedule import AdaptiveTree, FixedTree

TREES = [
    PLAIN,
    CandidateTree.chain(3),
    CandidateTree.default(3, 8),
    CandidateTree.dense([2, 2, 1]),
]


class NoRepeat(LogitsProcessor):
    """A processor with a memory: it forbids the last tokens of its previous calls."""

    def __init__(self):
        self.banned = []

    def __call__(self, input_ids, scores):
        self.banned.append(int(input_ids[0, -1]))
        scores = scores.clone()
        scores[:, self.banned[-4:]] = -torch.inf
        return scores


def model_of(name="llama", seed=1, **options):
    """Return a random model with heads that are sometimes right: new heads plus noise."""
    model = MedusaModel.from_base(tiny(name), num_heads=3, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.add_(0.3 * weight.std() * torch.randn_like(weight))
    return model


def random_arguments(rng):
    """Return arguments for `request`, which makes new processors and generators each time."""
    kind = rng.choice(["greedy", "memory", "penalty", "rejection", "typical"])
    return {
        "kind": kind,
        "ids": [rng.randrange(1, VOCAB) for _ in range(rng.choice([1, 3, 8, 25, 40]))],
        "new": rng.choice([1, 6, 20, 45]),
        "tree": rng.choice([*TREES, None]),
        "seed": rng.randrange(1000),
        "end": rng.choice([None, rng.randrange(VOCAB)]),
    }


def request(arguments):
    processors = {
        "memory": lambda: [NoRepeat()],
        "penalty": lambda: [lp.RepetitionPenaltyLogitsProcessor(1.3)],
        "rejection": lambda: [lp.TemperatureLogitsWarper(0.3), lp.TopKLogitsWarper(20)],
        "typical": lambda: [lp.TemperatureLogitsWarper(0.5)],
    }
    policies = {"rejection": Rejection(), "typical": Typical(root="sample")}
    tree = arguments["tree"]
    return Request(
        arguments["ids"],
        len(arguments["ids"]) + arguments["new"],
        lambda ids: "stop" if ids[-1] == arguments["end"] else None,
        processors.get(arguments["kind"], list)(),
        policies.get(arguments["kind"], Greedy()),
        # without step times, so that its choices and the samples can be repeated
        AdaptiveTree(TREES[2]) if tree is None else FixedTree(tree),
        torch.Generator().manual_seed(arguments["seed"]),
    )


def run(engine, steps=10_000):
    """Step until the engine is idle; return the events."""
    events = []
    for _ in range(steps):
        if engine.idle:
            break
        events += engine.step()
    return events


def alone(model, arguments):
    row = (engine := Engine(model)).submit(request(arguments))
    run(engine)
    return row.ids, row.finish_reason


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_requests_that_join_and_leave_get_the_text_they_get_alone(name, static):
    rng = random.Random(f"{name} {static}")
    model = model_of(name)
    model.capture = static
    wanted = [random_arguments(rng) for _ in range(30)]
    expected = [alone(model, each) for each in wanted]
    assert len({reason for _, reason in expected}) > 1
    engine = Engine(model, max_rows=5, prefill_tokens=16)
    rows, given, cancelled = [], {}, set()
    while len(rows) < len(wanted) or not engine.idle:
        for _ in range(rng.choice([0, 0, 1, 3])):
            if len(rows) < len(wanted):
                rows.append(engine.submit(request(wanted[len(rows)])))
        if (open_rows := [row for row in rows if not row.finished]) and rng.random() < 0.15:
            engine.cancel(rng.choice(open_rows).number)
        assert len(engine.rows) <= 5
        for event in engine.step():
            given.setdefault(event.request, []).extend(event.tokens)
            if event.finish_reason == "cancelled":
                cancelled.add(event.request)
    assert 0 < len(cancelled) < len(wanted)
    for row, arguments, (text, reason) in zip(rows, wanted, expected, strict=True):
        assert row.ids == arguments["ids"] + given.get(row.number, [])
        if row.number in cancelled:
            assert row.finish_reason == "cancelled"
            assert row.ids == text[: len(row.ids)]
        else:
            assert (row.ids, row.finish_reason) == (text, reason)
        assert row.stats.tokens == max(0, len(row.ids) - len(arguments["ids"]) - 1)


def test_waiting_requests_are_admitted_in_order():
    model, engine = (model := model_of()), Engine(model, max_rows=2)
    rows = [
        engine.submit(Request([1, 2, 3], 5 + 4 * n, schedule=FixedTree(PLAIN))) for n in range(4)
    ]
    began = []
    for _ in range(100):
        for event in engine.step():
            if event.request not in began:
                began.append(event.request)
    assert began == [0, 1, 2, 3]
    assert engine.idle
    assert all(row.waited is not None for row in rows)


def test_requests_decode_while_a_long_prompt_is_prefilled():
    model, engine = (model := model_of()), Engine(model, prefill_tokens=10)
    short = engine.submit(Request([1, 2], 40, schedule=FixedTree(PLAIN)))
    engine.step()
    long = engine.submit(Request([1] * 95, 100))
    for step in range(9):
        assert [event.request for event in engine.step()] == [short.number], f"in step {step}"
    assert [event.request for event in engine.step()] == [short.number, long.number]
    run(engine)
    assert long.ids == alone_greedy(model, [1] * 95, 100)


def alone_greedy(model, ids, length):
    text = model.base.generate(
        torch.tensor([ids]), max_new_tokens=length - len(ids), do_sample=False
    )
    return text[0].tolist()


def test_a_request_cancelled_before_its_first_token_is_never_decoded():
    model, engine = (model := model_of()), Engine(model, max_rows=1, prefill_tokens=10)
    first, second = (engine.submit(Request([1] * 30, 35)) for _ in range(2))
    engine.step()
    engine.cancel(first.number)
    engine.cancel(second.number)
    engine.cancel(99)
    events = engine.step()
    assert [(each.request, each.tokens, each.finish_reason) for each in events] == [
        (0, [], "cancelled"),
        (1, [], "cancelled"),
    ]
    assert engine.step() == []
    assert engine.idle
    last = engine.submit(Request([1, 2], 6))
    run(engine)
    assert last.ids == alone_greedy(model, [1, 2], 6)


class Failing(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids.shape[1] > 9:
            raise RuntimeError("a processor's own error")
        return scores


def failing_stop(ids):
    if len(ids) > 9:
        raise RuntimeError("a stop rule's own error")


def doubling(input_ids, scores):
    """A processor that returns scores for more rows than there are."""
    return scores.repeat(2, 1) if input_ids.shape[1] > 9 else scores


@pytest.mark.parametrize(
    "broken",
    [
        {"processors": [Failing()]},
        {"processors": [Failing()], "logprobs": 2},
        {"processors": [doubling]},
        {"stop": failing_stop},
        {"policy": Rejection()},
    ],
)
def test_an_error_of_a_request_ends_only_this_request(broken):
    model, engine = (model := model_of()), Engine(model)
    if "policy" in broken:  # no distribution to sample from

        def nan(input_ids, scores):
            return scores * (torch.nan if input_ids.shape[1] > 9 else 1)

        broken = {**broken, "processors": [nan]}
    others = [engine.submit(Request([n, 2, 3], 30)) for n in (4, 5)]
    failed = engine.submit(Request([1, 2, 3], 30, schedule=FixedTree(PLAIN), **broken))
    events = run(engine)
    assert failed.finish_reason == "error"
    assert [type(event.error) for event in events if event.error] in ([RuntimeError], [ValueError])
    assert 8 <= len(failed.ids) <= 10
    for row in others:
        assert row.ids == alone_greedy(model, row.ids[:3], 30)


def interrupted_at(line, count):
    """Return a trace function that raises KeyboardInterrupt at one executed line of the core."""

    def trace(frame, event, _):
        if f"{Path('medusa', 'core')}" not in frame.f_code.co_filename:
            return None
        if event == "line" and frame.f_code.co_name not in ("_undone_on_failure", "restore"):
            count[0] += 1
            if count[0] == line:
                raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_line_does_not_change_the_texts():
    model = model_of()
    arguments = [
        {**random_arguments(random.Random(seed)), "kind": kind, "new": 12}
        for seed, kind in enumerate(["greedy", "memory", "greedy", "penalty"])
    ]
    expected = [alone(model, each) for each in arguments]
    engine, rows, line, before = Engine(model, max_rows=3, prefill_tokens=20), [], 1, sys.gettrace()
    rows = [engine.submit(request(each)) for each in arguments]
    interrupts = 0
    for _ in range(600):
        if engine.idle:
            rows = [engine.submit(request(each)) for each in arguments]
        count = [0]
        sys.settrace(interrupted_at(line, count))
        try:
            engine.step()
            line = 1
        except KeyboardInterrupt:
            interrupts += 1
            line += 7 + line // 20
        finally:
            sys.settrace(before)
        for row, (text, _) in zip(rows, expected, strict=True):
            assert row.ids == text[: len(row.ids)]
    run(engine)
    assert interrupts > 100
    for row, (text, reason) in zip(rows, expected, strict=True):
        assert (row.ids, row.finish_reason) == (text, reason)


def interrupted_in_engine(line, lines):
    """A trace function that raises KeyboardInterrupt at the n-th line that the engine runs.

    It stops short of where `step` has only its result left to return.
    """

    def trace(frame, event, _):
        if frame.f_code.co_filename != sys.modules[Engine.__module__].__file__:
            return None
        over = frame.f_code.co_name == "step" and "events" in frame.f_locals
        if event == "line" and not over:
            lines.append(frame.f_lineno)
            if len(lines) == line:
                raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize(
    ("steps", "cancelled"), [(0, None), (0, "after"), (1, None), (1, "before"), (2, "after")]
)
def test_an_interrupt_at_any_line_of_the_engine_loses_no_event(steps, cancelled):
    """One request is cancelled before the step that is interrupted, or after it."""
    model, before = model_of(), sys.gettrace()
    lengths = [(2, 7), (3, 4), (30, 32), (2, 5)]
    texts = [alone_greedy(model, [1] * length, end) for length, end in lengths]
    for line in itertools.count(1):
        engine, lines, events = Engine(model, max_rows=2, prefill_tokens=20), [], []
        rows = [engine.submit(Request([1] * length, end)) for length, end in lengths]
        for _ in range(steps):
            events += engine.step()
        if cancelled == "before":
            engine.cancel(0)
        sys.settrace(interrupted_in_engine(line, lines))
        try:
            events += engine.step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if cancelled == "after":
            engine.cancel(0)
        events += run(engine, 100)
        assert engine.idle
        for row, text in zip(rows, texts, strict=True):
            own = [event for event in events if event.request == row.number]
            if cancelled and row.number == 0 and row.finish_reason == "cancelled":
                text = text[: len(row.ids)]
            assert row.ids == text, lines[-1]
            new = [token for event in own for token in event.tokens]
            assert new == row.ids[len(row.request.ids) :], lines[-1]
            reasons = [event.finish_reason for event in own if event.finish_reason is not None]
            assert reasons == [row.finish_reason], lines[-1]
        if len(lines) < line:
            break
    assert line > 50


def test_no_submit_or_cancel_of_another_thread_is_missed():
    """Threads change at nearly every instruction while the engine looks through its queue."""
    engine, numbers, interval = Engine(model_of(), max_rows=1), [], sys.getswitchinterval()

    def submit_and_cancel():
        for _ in range(20_000):
            numbers.append(engine.submit(Request([1, 2, 3], 9)).number)
            engine.cancel(numbers[-1])

    engine.submit(Request([1, 2, 3], 4))
    thread, ended = threading.Thread(target=submit_and_cancel), []
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive() or engine.waiting:
            ended += [event.request for event in engine.step() if event.finish_reason]
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    ended += [event.request for event in run(engine) if event.finish_reason]
    assert sorted(ended) == [0, *numbers]


@pytest.mark.slow
def test_threads_may_submit_and_cancel_while_another_steps():
    model = model_of()
    arguments = [random_arguments(random.Random(seed)) for seed in range(24)]
    expected = [alone(model, each) for each in arguments]
    engine, rows = Engine(model, max_rows=6, prefill_tokens=32), {}

    def submit(begin):
        for number in range(begin, len(arguments), 4):
            rows[number] = engine.submit(request(arguments[number]))
            engine.cancel(engine.submit(Request([1, 2, 3], 60)).number)

    threads = [threading.Thread(target=submit, args=(begin,)) for begin in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not engine.idle:
        engine.step()
    for number, expect in enumerate(expected):
        assert (rows[number].ids, rows[number].finish_reason) == expect


@pytest.mark.slow
def test_threads_may_step_one_engine():
    model = model_of()
    arguments = [random_arguments(random.Random(seed)) for seed in range(12)]
    expected = [alone(model, each) for each in arguments]
    engine = Engine(model, max_rows=4)
    rows = [engine.submit(request(each)) for each in arguments]
    threads = [threading.Thread(target=run, args=(engine,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(row.ids, row.finish_reason) for row in rows] == expected


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("options", [{}, {"prepack": False}, {"capture": True}], ids=str)
def test_memory_does_not_grow_over_a_thousand_requests(options):
    count = 500 if options else 1000
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=3, prepack=options.get("prepack"))
    model.capture, rng = options.get("capture"), random.Random(0)
    engine, sizes = Engine(model, max_rows=8, prefill_tokens=64), []
    for number in range(count):
        ids = [rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, 60))]
        engine.submit(Request(ids, len(ids) + rng.randrange(1, 20)))
        if number % 8 == 7:
            run(engine)
        if number % 50 == 49:
            gc.collect()
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024)
    assert sizes[-1] - sizes[4] < 8, f"megabytes after every fifty: {sizes}"


def test_captured_steps_stay_valid_when_requests_join_and_leave():
    model = model_of()
    model.capture = True
    engine, seen = Engine(model, max_rows=4), set()
    for length in (4, 5, 9, 3, 7, 30, 6, 5):
        engine.submit(Request([1] * length, length + 12, schedule=FixedTree(TREES[2])))
        engine.step()
        engine.step()
        seen.add(model.captures.state)
    run(engine)
    assert len(model.captures) <= 3, "1, 2 and 4 rows"
    again = Engine(model, max_rows=4)
    again.submit(Request([1] * 5, 12, schedule=FixedTree(TREES[2])))
    run(again)
    assert model.captures.state in seen, "the next engine writes where the last one did"


def test_events_carry_the_requested_logprobs():
    model = model_of()
    engine = Engine(model)
    row = engine.submit(Request([1, 2, 3], 20, logprobs=3, schedule=FixedTree(TREES[2])))
    quiet = engine.submit(Request([4, 2, 3], 20, schedule=FixedTree(TREES[2])))
    events = run(engine)
    assert all(event.logprobs is None for event in events if event.request == quiet.number)
    found = [each for event in events if event.logprobs for each in event.logprobs]
    assert [each.token for each in found] == row.ids[3:]
    with torch.no_grad():
        expected = model.base(torch.tensor([row.ids])).logits[0, 2:-1].float().log_softmax(-1)
    for each, log_p in zip(found, expected, strict=True):
        assert each.logprob == pytest.approx(float(log_p[each.token]), abs=1e-5)
        assert [token for token, _ in each.top] == log_p.topk(3).indices.tolist()
    first, *later = (event.timing for event in events if event.request == row.number)
    assert first.nodes == 0 < first.seconds
    assert all(timing.nodes == 8 for timing in later)
    for timing in later:
        assert list(timing.phases) == ["heads", "draft", "verify", "accept", "keep"]
        assert sum(timing.phases.values()) <= timing.seconds


@pytest.mark.parametrize("policy", [Greedy(), Rejection(), Typical(root="sample")])
def test_events_carry_the_verified_tree_of_requests_that_want_it(policy):
    model = model_of()
    engine, generator = Engine(model), torch.Generator().manual_seed(0)
    wanted = {"candidates": True, "policy": policy, "generator": generator}
    row = engine.submit(Request([1, 2, 3], 60, schedule=FixedTree(TREES[2]), **wanted))
    quiet = engine.submit(Request([4, 2, 3], 60, schedule=FixedTree(TREES[1])))
    events = run(engine)
    assert all(event.candidates is None for event in events if event.request == quiet.number)
    prefill, *steps = (event for event in events if event.request == row.number)
    assert prefill.candidates is None
    last, accepted = prefill.tokens[-1], 0
    for event in steps:
        verified = event.candidates
        tree, tokens, path = verified.tree, verified.tokens, verified.path
        assert (tree, len(tokens), tokens[0]) == (TREES[2], len(tree), last)
        assert path[0] == 0
        assert [int(tree.parent[node]) for node in path[1:]] == path[:-1]
        given = [tokens[node] for node in path[1:]]
        assert given == event.tokens[: len(given)]
        assert event.accepted == len(given)
        assert len(event.tokens) - len(given) in ((0, 1) if event.finish_reason else (1,))
        last, accepted = event.tokens[-1], accepted + len(given)
    assert accepted


def test_candidates_past_the_end_of_the_text_are_not_accepted():
    model, prompt = model_of(), [1, 2, 3]
    text = alone_greedy(model, prompt, 40)
    model.heads = ScriptedHeads(model, [text], 1.0)
    for length in range(5, 12):
        engine = Engine(model)
        schedule = FixedTree(CandidateTree.dense([2, 2, 2]))
        engine.submit(Request(prompt, length, schedule=schedule, candidates=True))
        last = run(engine)[-1]
        verified = last.candidates
        assert last.tokens == text[length - len(last.tokens) : length]
        accepted = [verified.tokens[node] for node in verified.path[1:]]
        assert accepted == last.tokens[: len(accepted)]
        assert last.accepted == len(accepted)


def test_rows_that_share_a_policy_and_a_tree_are_judged_in_one_call(monkeypatch):
    model, calls, accept = model_of(), [], Greedy.accept
    monkeypatch.setattr(
        Greedy,
        "accept",
        lambda self, *args: calls.append(len(args[1].tokens)) or accept(self, *args),
    )
    engine, mine = Engine(model), Greedy()
    for policy, tree in ((mine, 2), (Greedy(), 2), (Greedy(), 1), (Typical(), 2), (Typical(), 2)):
        engine.submit(Request([1, 2], 30, policy=policy, schedule=FixedTree(TREES[tree])))
    engine.step()
    calls.clear()
    engine.step()
    assert sorted(calls) == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "ids is empty"),
        ({"ids": [1, VOCAB]}, "ids must lie in 0 to 60"),
        ({"ids": [-1]}, "ids must lie in 0 to 60"),
        ({"max_length": 3}, "leaves no room"),
        ({"schedule": FixedTree(CandidateTree.chain(4))}, "4"),
        ({"logprobs": VOCAB + 1}, "logprobs must lie in 0 to 61"),
        ({"logprobs": -1}, "logprobs must lie in 0 to 61"),
    ],
)
def test_invalid_requests_are_refused_on_submit(change, message):
    engine = Engine(model_of())
    with pytest.raises(ValueError, match=message):
        engine.submit(Request(**{"ids": [1, 2, 3], "max_length": 9, **change}))
    assert engine.idle


def test_a_request_longer_than_the_table_of_positions_is_refused_at_once():
    model, engine = (model := model_of("gpt2")), Engine(model)
    with pytest.raises(ValueError, match="may grow to 258 tokens"):
        engine.submit(Request([1] * 250, 258))
    row = engine.submit(Request([1] * 250, 257))
    run(engine)
    assert row.ids[:-1] == alone_greedy(model, [1] * 250, 256)


class Uncopyable(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores

    def __deepcopy__(self, memo):
        raise TypeError("it holds a socket")


def test_a_processor_that_cannot_follow_a_tree_is_refused_at_once():
    model, engine = (model := model_of()), Engine(model)
    with pytest.raises(ValueError, match=r"it holds a socket.*: pass schedule="):
        engine.submit(Request([1, 2, 3], 9, processors=[Uncopyable()]))
    plain = {"processors": [Uncopyable()], "schedule": FixedTree(PLAIN)}
    row = engine.submit(Request([1, 2, 3], 9, **plain))
    run(engine)
    assert row.ids == alone_greedy(model, [1, 2, 3], 9)


def test_a_closed_engine_begins_anew():
    model, engine = (model := model_of()), Engine(model, max_rows=1)
    for _ in range(2):
        dropped = engine.submit(Request([1, 2, 3], 30))
        engine.submit(Request([4, 2, 3], 30))
        engine.step()
        engine._events = [Event(dropped, [1])]  # as after an interrupt
        engine.close()
        assert engine.idle
        assert engine.step() == []
        row = engine.submit(Request([1, 2, 3], 20))
        assert {event.request for event in run(engine)} == {row.number}
        assert row.ids == alone_greedy(model, [1, 2, 3], 20)


def test_an_engine_gives_its_cache_back_when_first_tokens_end_its_requests():
    model = model_of()
    model.capture = True
    engine = Engine(model)
    engine.submit(Request([1, 2, 3], 4))
    assert [event.finish_reason for event in engine.step()] == ["length"]
    assert engine.idle
    assert model._idle_cache is not None


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"prefill_tokens": 0}])
def test_an_engine_without_rows_or_prefill_tokens_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Engine(model_of(), **options)


def test_a_failing_prefill_ends_only_its_requests(monkeypatch):
    model, engine = (model := model_of()), Engine(model)
    first = engine.submit(Request([1, 2, 3], 30))
    engine.step()
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    failed = engine.submit(Request([4, 5], 30))
    errors = [event.error for event in engine.step() if event.request == failed.number]
    assert [type(error) for error in errors] == [MemoryError]
    monkeypatch.setattr(model, "prefill", prefill)
    last = engine.submit(Request([4, 5], 30))
    run(engine)
    for row in (first, last):
        assert row.ids == alone_greedy(model, row.ids[: len(row.request.ids)], 30)


def test_an_interrupt_leaves_no_autocast_open(monkeypatch):
    """While one is open, a training with autocast would go on with converted old weights."""
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)
    entered = torch.autocast.__enter__

    def interrupted(self):
        entered(self)
        raise KeyboardInterrupt

    with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patch:
        patch.setattr(torch.autocast, "__enter__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(torch.arange(5, 9)[None], max_new_tokens=4)
        assert torch.is_autocast_enabled("cpu")
    torch.autocast_increment_nesting()
    assert torch.autocast_decrement_nesting() == 0


def test_an_interrupt_leaves_gradients_on(monkeypatch):
    model, entered = MedusaModel.from_base(tiny(), num_heads=2), torch.no_grad.__enter__

    def interrupted(self):
        entered(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.no_grad, "__enter__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(torch.arange(5, 9)[None], max_new_tokens=4)
    assert torch.is_grad_enabled()


def test_an_engine_changes_neither_requests_nor_signal_handlers():
    model, arguments = model_of(), random_arguments(random.Random(3))
    one = request(arguments)
    two = copy.copy(request(arguments))
    engine = Engine(model)
    rows = [engine.submit(one), engine.submit(two)]
    run(engine)
    assert rows[0].ids == rows[1].ids
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_cancelled_requests_leave_the_queue_from_its_middle():
    engine = Engine(model_of(), max_rows=1)
    first = engine.submit(Request([1, 2, 3], 60))
    waiting = [engine.submit(Request([4, 2, number], 60)) for number in range(1, 6)]
    engine.step()
    for row in waiting[1:4]:
        engine.cancel(row.number)
    events = engine.step()
    assert {event.request for event in events if event.finish_reason == "cancelled"} == {
        row.number for row in waiting[1:4]
    }
    assert list(engine.waiting) == [waiting[0], waiting[4]]
    run(engine)
    assert {first.finish_reason, waiting[0].finish_reason, waiting[4].finish_reason} == {"length"}


def test_a_schedule_beside_smaller_trees_is_timed_with_all_rows(monkeypatch):
    timed = []
    for number, tree in ((0, TREES[2]), (1, PLAIN)):
        schedule = FixedTree(tree)
        monkeypatch.setattr(
            schedule,
            "observe",
            lambda reached, seconds, rows, number=number: timed.append((number, seconds, rows)),
            raising=False,
        )
        if number == 0:
            engine = Engine(model_of())
        engine.submit(Request([1, 2, 3], 30, schedule=schedule))
    engine.step()
    engine.step()
    assert [(number, seconds is None, rows) for number, seconds, rows in timed[:2]] == [
        (0, False, 2),
        (1, True, 2),
    ]
