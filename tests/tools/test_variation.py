import json
import random
import re

import pytest

from medusa.demo.tasks import extraction, make_task
from tools.demo_model.variation import (
    PHRASES,
    asks_for_columns,
    clauses,
    composed,
    equations,
    invented,
    reasked,
    recombined,
    renamed,
    retold,
    reworded,
    tellings,
)

POOLS = (extraction._PERSON, extraction._INVOICE, extraction._EVENT, extraction._PARCEL)


@pytest.mark.parametrize("category", ["extraction", "tables", "sql", "math", "code"])
def test_values_are_renamed_in_prompt_and_answer_alike(category):
    rng, changed = random.Random(0), 0
    for seed in range(60):
        task = make_task(category, seed, "train")
        prompt, answer = renamed(rng, task.prompt, task.answer)
        changed += answer != task.answer
        assert re.sub(r"\w", "", task.answer).count("\n") == answer.count("\n")
        copied = set(re.findall(r"\w+", task.answer)) & set(re.findall(r"\w+", task.prompt))
        assert (
            len(set(re.findall(r"\w+", answer)) & set(re.findall(r"\w+", prompt)))
            >= len(copied) - 1
        )
    assert changed > 10


@pytest.mark.parametrize("strange", [0.0, 0.5])
@pytest.mark.parametrize("anew", [composed, reworded, retold, recombined])
def test_a_reworded_text_contains_all_facts(anew, strange):
    rng = random.Random(1)
    for seed in range(60):
        task = make_task("extraction", seed, "train")
        prompt, answer = renamed(rng, task.prompt, task.answer)
        prompt = anew(rng, prompt, answer, strange)
        leaves = []
        stack = [json.loads(answer)]
        while stack:
            each = stack.pop()
            if isinstance(each, dict):
                stack += each.values()
            elif isinstance(each, list):
                stack += each
            else:
                leaves.append(str(each))
        for leaf in leaves:
            assert leaf in prompt


def test_invented_words_are_joined_from_the_given_pieces():
    rng = random.Random(0)
    words = [invented(rng, "Riga", ["zq", "xw"]) for _ in range(200)]
    assert 50 < sum(set(word.lower()) <= set("zqxw") for word in words) < 150
    assert all(word[0].isupper() for word in words)


def test_every_clause_has_one_field():
    assert set(clauses()) == set(PHRASES)
    for name, said in clauses().items():
        assert all(clause.count("{}") == 1 for clause in said), name
        assert not any("[" in clause or "|" in clause for clause in said)


def test_no_held_out_wording_is_trained_on():
    """No template or clause for training shares five consecutive words with a held-out one."""

    def runs(text):
        words = re.sub(r"\{\w*\}", "_", text).split()
        return {" ".join(words[place : place + 5]) for place in range(len(words) - 4)}

    held_out = set().union(*(runs(template) for pool in POOLS for template in pool.values["test"]))
    told = [
        re.sub(r"\[([^][|]*)[^][]*\]", r"\1", telling)
        for same_fields in tellings().values()
        for telling in same_fields
    ]
    assert not held_out & set().union(*map(runs, told))


def test_every_template_of_tellings_has_its_fields():
    for fields, same_fields in tellings().items():
        for telling in same_fields:
            assert fields == set(
                re.findall(r"\{(\w+)\}", re.sub(r"\[([^][|]*)[^][]*\]", r"\1", telling))
            )
            assert fields == set(re.findall(r"\{(\w+)\}", telling))


def test_tables_tasks_without_all_columns_are_recognised():
    for seed in range(100):
        task = make_task("tables", seed, "train")
        assert asks_for_columns(task.prompt) == (
            ", ".join(task.facts["header"]) + "." in task.prompt
        )


def test_equations_are_true_and_small():
    pairs = equations(random.Random(0), 500)
    for asked, result in pairs:
        a, sign, b, _ = asked.split(" ")
        a, b = int(a), int(b)
        assert int(result) == {"+": a + b, "-": a - b, "*": a * b}[sign]
        assert 0 <= int(result) <= 99
    assert len(set(pairs)) > 300


def test_invented_words_vary_and_keep_the_capital():
    rng = random.Random(0)
    assert len({invented(rng) for _ in range(500)}) > 450
    assert all(
        invented(rng, "Riga")[0].isupper() and invented(rng, "lamp").islower() for _ in range(50)
    )


def test_repeated_values_are_repeated_in_prompt_and_answer_alike():
    rng, before, after = random.Random(0), 0, 0
    for seed in range(40):
        task = make_task("tables", seed, "train")
        prompt, answer = renamed(rng, task.prompt, task.answer, repeated=True)
        before += len(set(task.answer.split()))
        after += len(set(answer.split()))
        shape = [line.count("|") for line in task.answer.splitlines()]
        assert [line.count("|") for line in answer.splitlines()] == shape
        assert all(word in prompt for word in re.findall(r"[A-Z]\w+", answer))
    assert after < 0.85 * before


@pytest.mark.parametrize("category", ["extraction", "tables"])
def test_a_reworded_question_keeps_records_text_and_column_names(category):
    rng, changed = random.Random(0), 0
    for seed in range(60):
        task = make_task(category, seed, "train")
        prompt = reasked(rng, task.prompt, task.answer)
        for before, after in zip(task.prompt.split("\n"), prompt.split("\n"), strict=True):
            if re.search(r"\d", before):
                assert after == before
            kept = [word for word in re.findall(r"[A-Za-z]{2,}", before) if word in task.answer]
            assert all(word in after for word in kept)
            changed += after != before
    assert changed > 40
