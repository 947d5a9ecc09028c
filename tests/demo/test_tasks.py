import json
import re

import pytest

from medusa.demo.tasks import CATEGORIES, CHECKED, check, make_task
from medusa.demo.tasks.task import Pool

SEEDS = range(80)


@pytest.mark.parametrize("category", CHECKED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_checkers_accept_the_reference_answer_and_reject_broken_ones(category, split):
    for seed in SEEDS:
        task = make_task(category, seed, split)
        assert check(task, task.answer)
        for wrong in (
            "",
            "no",
            task.answer[: len(task.answer) // 2],
            task.answer + "\n" + task.answer,
        ):
            assert not check(task, wrong)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_seed_determines_the_task(category):
    assert make_task(category, 7) == make_task(category, 7)
    assert make_task(category, 7) != make_task(category, 8)
    assert json.loads(json.dumps(make_task(category, 7).facts)) == make_task(category, 7).facts


@pytest.mark.parametrize(
    ("category", "changed"),
    [("math", r"= (\d+)"), ("extraction", r": (\d+)"), ("tables", r"\| (\d+)")],
)
def test_checkers_reject_an_answer_with_one_changed_number(category, changed):
    for seed in SEEDS:
        task = make_task(category, seed)
        for match in re.finditer(changed, task.answer):
            number = str(int(match[1]) + 1)
            assert not check(
                task, task.answer[: match.start(1)] + number + task.answer[match.end(1) :]
            )


def test_the_sql_checker_rejects_another_column_bound_or_order():
    noticed = total = 0
    for seed in range(40):
        task = make_task("sql", seed)
        for old, new in ((" DESC", " ASC"), (" > ", " < "), ("AVG", "SUM"), ("MAX", "MIN")):
            if old in task.answer:
                total += 1
                noticed += not check(task, task.answer.replace(old, new, 1))
    assert noticed / total > 0.95
    assert not check(make_task("sql", 1), "DROP TABLE customers;")


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n        pass",
        "import os",
        "return ().__class__",
        "return open('x')",
        "values.append(1)\n    return eval('1')",
    ],
)
def test_harmful_code_is_not_run(body):
    task = make_task("code", 3)
    assert not check(task, f"def {task.facts['name']}(values):\n    {body}")


def test_held_out_values_never_occur_in_training():
    pool = Pool([f"value {n}" for n in range(100)])
    assert not set(pool.values["train"]) & set(pool.values["test"])
    assert len(pool.values["test"]) == 20
    again = Pool([f"value {n}" for n in reversed(range(101))])
    assert len(set(again.values["test"]) ^ set(pool.values["test"])) <= 2


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_have_many_wordings_and_those_of_tests_are_new(category):
    def wordings(split):
        values = r"\d+|\b[A-Z][a-z]+\b"
        return {re.sub(values, "_", make_task(category, seed, split).prompt) for seed in range(400)}

    assert len(wordings("train")) >= 100
    assert len(wordings("test") & wordings("train")) <= 0.02 * len(wordings("test"))
