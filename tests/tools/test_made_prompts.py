"""Tests of the prompts from which the data of SmolLM2's heads are made."""

import pytest

from tools.smollm2.code_prompts import code_prompts
from tools.smollm2.task_prompts import task_prompts


@pytest.mark.parametrize("prompts", [code_prompts, task_prompts])
def test_prompts_are_different_and_the_same_for_a_seed(prompts):
    found = list(prompts(300, 1))
    assert len(set(found)) == 300
    assert list(prompts(300, 1)) == found
    assert list(prompts(300, 2)) != found
    assert not any("{" in prompt for prompt in found)


def test_there_are_not_endlessly_many():
    with pytest.raises(ValueError, match="fewer than 100000"):
        list(code_prompts(100_000))
