import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoTokenizer

from medusa import MedusaModel
from medusa.training import distill as data
from medusa.training.distill import OwnEngine, Server, Settings, Turn, conversation, distill, read_seeds

ASKED = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "not the model's own"},
    {"role": "user", "content": "two"},
]


def driven(talk, turns):
    """What the conversation came to when it is sent these turns, and what it asked."""
    asks = [next(talk)]
    for turn in turns:
        try:
            asks.append(talk.send(turn))
        except StopIteration as ended:
            return ended.value, asks
    raise AssertionError("it asks for more")


def test_user_turns_are_fed_in_order_and_answers_are_the_models():
    chat, asks = driven(conversation("c", ASKED, 0), [Turn("first", 1), Turn("second", 1)])
    assert [turn["content"] for turn in chat] == ["be kind", "one", "first", "two", "second"]
    assert [turn["content"] for turn in asks[1].chat] == ["be kind", "one", "first", "two"]
    assert len({ask.key for ask in asks}) == 2


def test_an_answer_that_is_cut_off_ends_the_conversation_before_it():
    chat, _ = driven(conversation("c", ASKED, 0), [Turn("first", 1), Turn(None, 9)])
    assert [turn["content"] for turn in chat] == ["be kind", "one", "first"]


def test_self_talk_goes_on_with_questions_of_the_models():
    turns = [Turn(text, 1) for text in ("first", "second", "three?", "third", "")]
    chat, asks = driven(conversation("c", ASKED, 2), turns)
    assert [turn["content"] for turn in chat[1:]] == ["one", "first", "two", "second", "three?", "third"]
    assert [ask.role for ask in asks] == ["assistant", "assistant", "user", "assistant", "user"]


def test_seeds_of_every_kind(tmp_path):
    file = tmp_path / "seeds.jsonl"
    seeds = [{"turns": ["a", "b"]}, {"prompt": "c"}, {"messages": ASKED}, "d", {"question": "e", "answer": "f"}]
    file.write_text("\n".join(map(json.dumps, seeds)))
    found = dict(read_seeds(str(file)))
    assert next(iter(found)).startswith("seeds.jsonl, line 1, ")
    asked = [[turn["content"] for turn in chat if turn["role"] == "user"] for chat in found.values()]
    assert asked == [["a", "b"], ["c"], ["one", "two"], ["d"], ["e"]]


@pytest.fixture(scope="module")
def engine(base_folder):
    def make(**options):
        model = MedusaModel.from_base(base_folder, num_heads=1)
        settings = Settings("tiny", **{"max_new_tokens": 24, **options})
        made = OwnEngine(model, AutoTokenizer.from_pretrained(base_folder), settings, batch_size=3)
        # a tiny random model never ends by itself: some common tokens shall end a turn
        made.ends |= set(range(2, 298, 3))
        model.base.generation_config.eos_token_id = sorted(made.ends)
        return made, settings

    return make


def seeds(count=5):
    return [(f"seed {n}", [{"role": "user", "content": f"where is the cat {'?' * n}"}]) for n in range(count)]


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_our_own_engine_answers_as_generate_does(engine, tmp_path):
    made, settings = engine(temperature=0.0)
    distill(made, seeds(), settings, tmp_path / "out.jsonl")
    found = {line["id"]: line["messages"] for line in lines(tmp_path / "out.jsonl")}
    assert found
    for name, seed in seeds():
        ids = torch.tensor([made.encoder.prompt(seed)])
        row = made.model.base.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
        end = next((place for place, token in enumerate(row) if token in made.ends), None)
        text = None if end is None else made.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
        assert found.get(name, [{}, {"content": None}])[1]["content"] == (text or None)


def test_sampled_turns_depend_on_the_seed_and_not_on_the_batch(engine, tmp_path):
    texts = []
    for name, options, size in (("a", {}, 3), ("b", {}, 1), ("c", {"seed": 1}, 3)):
        made, settings = engine(temperature=1.0, **options)
        made.batch_size = size
        distill(made, seeds(), settings, tmp_path / name)
        texts.append(sorted(map(json.dumps, lines(tmp_path / name))))
    assert texts[0] == texts[1] != texts[2]


def test_a_run_that_was_stopped_goes_on_without_loss_or_repetition(engine, tmp_path):
    made, settings = engine(temperature=1.0)
    distill(made, seeds(), settings, tmp_path / "whole")
    file = tmp_path / "broken"
    calls = []

    def stopped(progress):
        calls.append(progress.finished)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(made, seeds(), settings, file, stopped)
    with file.open("a") as opened:
        opened.write('{"id": "seed 4", "mess')  # killed while writing
    distill(made, seeds(), settings, file)
    assert sorted(line["id"] for line in lines(file)) == sorted(line["id"] for line in lines(tmp_path / "whole"))
    assert {json.dumps(line) for line in lines(file)} == {json.dumps(line) for line in lines(tmp_path / "whole")}
    with pytest.raises(ValueError, match=r"other settings \(seed, max_new_tokens\)"):
        distill(made, seeds(), Settings("tiny", seed=9, temperature=1.0), file)
    theirs = tmp_path / "prompts.jsonl"
    theirs.write_text("{}")
    with pytest.raises(ValueError, match="not by medusa distill: take another --output"):
        distill(made, seeds(), settings, theirs)
    assert theirs.read_text() == "{}"


def test_prompts_that_changed_are_asked_and_the_others_not_again(engine, tmp_path):
    made, settings = engine(temperature=0.0)
    file, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    asked = []
    for text in ("one two\na cat", "one two\nthe mat"):
        file.write_text(text)
        progress = distill(made, read_seeds(str(file)), settings, out)
        asked.append(progress.finished)
        names = [line["id"] for each in (out, tmp_path / "out.jsonl.left-out") for line in lines(each)]
    assert asked == [2, 2]
    assert [name[: name.rindex(",")] for name in sorted(names)] == [f"prompts.txt, line {n}" for n in (1, 2, 2)]


@contextmanager
def server(answer):
    """A chat server on this machine; `answer(body, number)` gives status and text."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            status, text = answer(body, len(asked))
            reason = "length" if text == "cut" else "stop"
            told = {
                "choices": [{"message": {"content": text}, "finish_reason": reason}],
                "usage": {"completion_tokens": 3},
            }
            payload = json.dumps(told if status == 200 else {"error": text}).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()
        running.server_close()


def test_a_server_answers_with_retries_and_one_refusal_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(data.random, "random", lambda: 0.0)

    def answer(body, number):
        text = body["messages"][-1]["content"]
        if number == 1:
            return 429, "busy"
        if text.endswith(" ???"):
            return 400, "not this one"
        return 200, "cut" if text.endswith("cat ") else f"answer to {text}"

    settings = Settings("big", temperature=0.3, max_new_tokens=50)
    with server(answer) as (address, asked):
        progress = distill(Server(address, settings, in_flight=2), seeds(), settings, tmp_path / "out.jsonl")
    found = {line["id"]: line["messages"][-1]["content"] for line in lines(tmp_path / "out.jsonl")}
    assert set(found) == {"seed 1", "seed 2", "seed 4"}
    assert found["seed 1"] == "answer to where is the cat ?"
    assert [line["id"] for line in lines(tmp_path / "out.jsonl.left-out")] == ["seed 0"]
    assert len(progress.refused) == 1
    assert "seed 3: " in progress.refused[0]
    assert "not this one" in progress.refused[0]
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in asked} == {("big", 0.3, 50)}


def test_a_server_that_is_away_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data.time, "sleep", lambda _: None)
    ask = data.Ask([{"role": "user", "content": "hi"}], "assistant", "k")
    away = Server("http://127.0.0.1:9/v1", Settings("x"))
    with pytest.raises(ConnectionError, match="does not answer after 6 tries"):
        away.answer(ask)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9"):  # not one refusal after the other
        distill(away, seeds(), away.settings, tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="begins with http"):
        Server("127.0.0.1:9", Settings("x"))
