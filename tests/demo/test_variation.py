import json
import random
import re

import pytest

from medusa.demo.tasks import extraction, make_task
from medusa.demo.variation import CLAUSES, PHRASES, composed, equations, invented, renamed, reworded

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
        assert len(set(re.findall(r"\w+", answer)) & set(re.findall(r"\w+", prompt))) >= len(copied) - 1
    assert changed > 10


@pytest.mark.parametrize("strange", [0.0, 0.5])
@pytest.mark.parametrize("anew", [composed, reworded])
def test_a_text_in_other_words_still_holds_the_facts(anew, strange):
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


def test_words_of_pieces_are_spelled_with_them():
    rng = random.Random(0)
    words = [invented(rng, "Riga", ["zq", "xw"]) for _ in range(200)]
    assert 50 < sum(set(word.lower()) <= set("zqxw") for word in words) < 150
    assert all(word[0].isupper() for word in words)


def test_clauses_hold_one_field_each_and_come_from_training():
    assert set(CLAUSES) == set(PHRASES)
    for name, clauses in CLAUSES.items():
        assert all(clause.count("{}") == 1 for clause in clauses), name
    known = [template for pool in POOLS for template in pool.values["train"]]
    for name, clauses in CLAUSES.items():
        for clause in clauses:
            said = clause.replace("{}", f"{{{name}}}")
            assert any(said in template for template in known)


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
    assert all(invented(rng, "Riga")[0].isupper() and invented(rng, "lamp").islower() for _ in range(50))
