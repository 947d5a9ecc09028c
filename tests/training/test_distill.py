import json

import pytest

from medusa.training.answers_file import answers_file
from medusa.training.conversations import GenerationSettings, Outcome, Turn
from medusa.training.distill import DistillProgress, distill, read_seeds

SETTINGS = GenerationSettings("m")
CHAT = [
    {"role": "system", "content": "be kind"},
    *({"role": "user", "content": text} for text in "ab"),
]


class Echo:
    """An answerer that repeats the question; it refuses a question that begins with "refuse"."""

    def __init__(self):
        self.asked, self.closed = [], False

    def drive(self, conversations):
        try:
            for name, talk in conversations:
                yield self.whole(name, talk)
        finally:
            self.closed = True

    def whole(self, name, talk):
        ask, tokens = next(talk), 0
        while True:
            text = ask.chat[-1]["content"]
            self.asked.append(text)
            if text.startswith("refuse"):
                return Outcome(name, ValueError("not this one"), tokens)
            tokens += 2
            try:
                ask = talk.send(Turn("" if text == "empty" else f"{text}!", 2, cut=text == "cut"))
            except StopIteration as ended:
                return Outcome(name, ended.value, tokens)


def seeds(*questions):
    return [(text, [{"role": "user", "content": text}]) for text in questions]


def go(path, seeds, watch=lambda _: None):
    answerer = Echo()
    with answers_file(path, SETTINGS) as answers:
        return distill(answerer, seeds, answers, watch), answerer


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_outcomes_of_conversations_are_kept_and_counted(tmp_path):
    path, half = tmp_path / "out.jsonl", "half a pair: \ud83d"
    result, _ = go(path, seeds("a", "refuse", "cut", "empty", half, "b"))
    assert {line["id"]: line["messages"][1] for line in lines(path)} == {
        "a": {"role": "assistant", "content": "a!"},
        "cut": {"role": "assistant", "content": "cut!", "cut": True},
        "b": {"role": "assistant", "content": "b!"},
    }
    assert lines(tmp_path / "out.jsonl.left-out") == [{"id": "empty", "why": "answer 1 was empty"}]
    refused, unwritten = result.refused
    assert refused == "refuse: not this one"
    assert "surrogates not allowed" in unwritten
    result.refused.clear()
    assert result == DistillProgress(6, finished=4, cut=1, left_out=1, tokens=10)


def test_a_stopped_run_is_resumed_without_loss_or_repetition(tmp_path):
    path, questions = tmp_path / "out.jsonl", seeds("a", "empty", "b", "refuse", "c")

    def stop(progress):
        if progress.finished == 3:
            raise KeyboardInterrupt

    answerer = Echo()
    with pytest.raises(KeyboardInterrupt), answers_file(path, SETTINGS) as answers:
        distill(answerer, questions, answers, stop)
    assert answerer.closed
    with path.open("a") as file:
        file.write('{"id": "refuse", "mess')  # killed while writing
    result, answerer = go(path, questions)
    assert answerer.asked == ["refuse", "c"]
    assert [line["id"] for line in lines(path)] == ["a", "b", "c"]
    assert (result.earlier, result.finished, result.done, result.total) == (3, 1, 5, 5)


def test_only_changed_prompts_are_asked_again(tmp_path):
    file, path = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    asked = []
    for text in ("one two\na cat", "one two\nthe mat"):
        file.write_text(text)
        asked.append(go(path, list(read_seeds(str(file))))[1].asked)
    assert asked == [["one two", "a cat"], ["the mat"]]
    assert [line["id"].rsplit(",", 1)[0] for line in lines(path)] == [
        f"prompts.txt, line {n}" for n in (1, 2, 2)
    ]


def test_seeds_of_every_kind(tmp_path):
    file = tmp_path / "seeds.jsonl"
    records = [
        {"turns": ["a", "b"]},
        {"prompt": "c"},
        {"messages": CHAT},
        "d",
        {"question": "e", "answer": "f"},
    ]
    file.write_text("\n".join(map(json.dumps, records)))
    found = dict(read_seeds(str(file)))
    assert next(iter(found)).startswith("seeds.jsonl, line 1, ")
    asked = [
        [turn["content"] for turn in chat if turn["role"] == "user"] for chat in found.values()
    ]
    assert asked == [["a", "b"], ["c"], ["a", "b"], ["d"], ["e"]]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.txt", b"", r"none\.txt is empty"),
        ("none.jsonl", b"\n\n", r"none\.jsonl is empty"),
        ("none.json", b"[]", r"none\.json is empty"),
        ("latin.txt", "café".encode("latin-1"), r"latin\.txt, line 1: not UTF-8"),
        ("latin.jsonl", '"café"\n'.encode("latin-1"), r"latin\.jsonl, line 1: not UTF-8"),
    ],
)
def test_a_source_without_readable_prompts_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        list(read_seeds(str(tmp_path / name)))
