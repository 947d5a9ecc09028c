"""Grading of MT-Bench's answers by a judge."""

import json

import pytest
from judge_prompts import NAMES, write_prompts

from medusa.evaluation.judging import Grading, filled, rating, requests, scores
from medusa.evaluation.records import QuestionRecord, RunRecord, TurnRecord
from medusa.evaluation.suites import Question


def write_references(tmp_path):
    line = {"question_id": 2, "choices": [{"index": 0, "turns": ["four", "five"]}]}
    (tmp_path / "references.jsonl").write_text(json.dumps(line) + "\n")
    return str(tmp_path / "references.jsonl")


def run_of(ids):
    empty = {"step_seconds": [], "phases": {}, "accepted": []}
    text = f"<{ids[0]}>"
    return [RunRecord(ids=ids, steps=1, prefill_seconds=1.0, seconds=1.0, text=text, **empty)]


def record_of(question, category):
    turns = [
        TurnRecord(
            prompt=[1],
            temperature=0.0,
            runs={"plain": run_of([turn]), "medusa": run_of([10 + turn])},
            right={},
            measured_again=[],
        )
        for turn in range(2)
    ]
    return QuestionRecord(question=question, category=category, turns=turns)


QUESTIONS = {
    "1": Question("1", "stem", [{"role": "user", "content": "Why {x}?"}], ("More.",)),
    "2": Question("2", "math", [{"role": "user", "content": "2+2?"}], ("And 1?",)),
}


def test_each_turn_and_method_has_a_prompt_with_what_stood_before(tmp_path):
    grading = Grading.read(write_prompts(tmp_path, [*NAMES, "pair-v2"]), write_references(tmp_path))
    records = [record_of("1", "stem"), record_of("2", "math")]
    found = dict(requests(records, QUESTIONS, ["plain", "medusa"], grading))
    assert list(found) == [
        f"{question}/{turn}/{method}"
        for question in "12"
        for turn in (0, 1)
        for method in ("plain", "medusa")
    ]
    system, user = found["1/0/medusa"]
    assert (system["role"], system["content"]) == ("system", "single-v1")
    assert user["content"].startswith("Why {x}?|<10>|{ref_answer_1}|Why {x}?|<10>")
    system, user = found["2/1/medusa"]
    assert system["content"] == "single-math-v1-multi-turn"
    # the second turn's prompt held the first method's answer
    assert user["content"] == "2+2?|<0>|four|2+2?|<0>|And 1?|<11>"


def test_what_is_missing_is_named(tmp_path):
    prompts = write_prompts(tmp_path)
    records = [record_of("2", "math")]
    with pytest.raises(ValueError, match=r"question 2 \(math\) needs a reference answer of turn 1"):
        requests(records, QUESTIONS, ["plain"], Grading.read(prompts, None))
    with pytest.raises(ValueError, match="question 3, which is not in the suite's file"):
        requests([record_of("3", "stem")], QUESTIONS, [], Grading.read(prompts, None))
    with pytest.raises(ValueError, match="the prompt single-math-v1-multi-turn is missing"):
        Grading.read(write_prompts(tmp_path, NAMES[:3]), None)
    (tmp_path / "bad.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(ValueError, match="line 1: type: field required"):
        Grading.read(str(tmp_path / "bad.jsonl"), None)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Good. Rating: [[7]]", 7),
        ("Rating: [[8.5]], not [[2]]", 8.5),
        ("Rating: [6]", 6),
        ("Rating: [[70]]", None),
        ("Rating: 7", None),
        ("", None),
    ],
)
def test_a_rating_is_parsed(answer, value):
    assert rating(answer) == value


def test_ratings_are_averaged_and_failures_counted():
    records = [record_of("1", "stem"), record_of("2", "math")]
    graded = {"1/0/plain": "[[4]]", "1/1/plain": "[[8]]", "2/0/plain": "[[6]]", "2/1/plain": "no"}
    found = scores(records, ["plain", "medusa"], graded)
    assert found["plain"]["rating"] == 6
    assert found["plain"]["by_turn"] == {"1": 5, "2": 8}
    assert found["plain"]["by_category"] == {"stem": 6, "math": 6}
    assert (found["plain"]["rated"], found["plain"]["failures"]) == (3, 1)
    assert found["medusa"]["rating"] is None
    assert found["medusa"]["failures"] == 4


def test_filled_in_texts_may_hold_braces():
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "2"}) == "{b} 2 {c}"
