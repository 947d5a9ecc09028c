"""Suites: files of public benchmarks become questions, and wrong records are named."""

import gzip
import json

import pytest

from medusa.evaluation.suites import SUITES, read_suite

TURNS = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "more": 1}
PROBLEM = {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f", "test": "pass"}


def written(tmp_path, *records, name="a.jsonl"):
    text = "".join(json.dumps(record) + "\n" for record in records)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    else:
        (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_mt_bench_has_two_turns_and_a_temperature_for_each_category(tmp_path):
    other = {**TURNS, "question_id": 82, "category": "math"}
    writing, maths = read_suite("mt-bench", written(tmp_path, TURNS, other))
    assert writing.id == "81"
    assert writing.messages == [{"role": "user", "content": "Write."}]
    assert writing.later == ("Again.",)
    assert (writing.temperature, maths.temperature) == (0.7, 0.0)


def test_spec_bench_leaves_the_temperature_to_the_caller(tmp_path):
    (question,) = read_suite("spec-bench", written(tmp_path, {**TURNS, "question_id": "a-1"}))
    assert (question.id, question.temperature) == ("a-1", None)


def test_alpaca_eval_is_one_list(tmp_path):
    record = {"instruction": "Do.", "output": "Done.", "generator": "x", "dataset": "koala"}
    (tmp_path / "a.json").write_text(json.dumps([record, record]))
    questions = read_suite("alpaca-eval", str(tmp_path / "a.json"))
    assert [each.id for each in questions] == ["0", "1"]
    assert questions[0].category == "koala"
    assert questions[0].check is None


def test_human_eval_is_compressed_and_its_programs_are_run(tmp_path):
    test = "def check(candidate):\n    assert candidate(2) == 4\n"
    (question,) = read_suite(
        "human-eval", written(tmp_path, {**PROBLEM, "test": test}, name="a.jsonl.gz")
    )
    assert "def f(x):" in question.messages[0]["content"]
    assert question.check("    return 2 * x\n")
    assert question.check("Here it is:\n```python\ndef f(x):\n    return x + x\n```\nDone.")
    assert not question.check("    return x\n")


def test_gsm8k_is_checked_by_its_number(tmp_path):
    record = {"question": "How many?", "answer": "2 + 3 = 5\n#### 1,005"}
    (question,) = read_suite("gsm8k", written(tmp_path, record))
    assert question.check("So there are 1005.")
    assert not question.check("So there are 5.")


def test_any_prompts_can_be_asked(tmp_path):
    chat = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}
    questions = read_suite("prompts", written(tmp_path, {"prompt": "P", "category": "c"}, chat))
    assert [each.category for each in questions] == ["c", "prompts"]
    assert questions[1].messages == chat["messages"]


def test_a_limit_counts_each_category_and_categories_take_turns(tmp_path):
    records = [
        {**TURNS, "question_id": number, "category": category}
        for number, category in enumerate("aaabbc")
    ]
    questions = read_suite("spec-bench", written(tmp_path, *records), limit=2)
    assert [each.category for each in questions] == ["a", "b", "c", "a", "b"]
    assert [each.id for each in questions] == ["0", "3", "5", "1", "4"]


@pytest.mark.parametrize(
    ("suite", "record", "said"),
    [
        ("mt-bench", {**TURNS, "turns": []}, "turns: list should have at least 1 item"),
        ("mt-bench", {**TURNS, "turns": ["a", 2]}, "turns[1]: input should be a valid string"),
        ("mt-bench", {"question_id": 1}, "category: field required"),
        ("alpaca-eval", TURNS, "instruction: field required"),
        ("human-eval", {**PROBLEM, "entry_point": ""}, "entry_point: string should have"),
        ("gsm8k", {"question": "Q", "answer": "none"}, "answer: the answer holds no number"),
        ("spec-bench", ["a"], "the record: "),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_field(tmp_path, suite, record, said):
    good = {"mt-bench": TURNS, "human-eval": PROBLEM}.get(suite)
    records = [record] if good is None else [{**good, "question_id": 7}, record]
    with pytest.raises(ValueError, match=r"a\.jsonl, line ") as caught:
        read_suite(suite, written(tmp_path, *records))
    assert f"line {len(records)}: {said}" in str(caught.value)


def test_a_broken_line_and_a_repeated_name_are_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(TURNS) + "\n{\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_suite("mt-bench", str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="line 2: another question has the name 81"):
        read_suite("mt-bench", written(tmp_path, TURNS, TURNS))


def test_all_suites_have_readers():
    assert len(SUITES) == 7
