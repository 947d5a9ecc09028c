import pytest

from tools.smollm2.code_prompts import code_prompts


def test_prompts_are_different_and_the_same_for_a_seed():
    prompts = list(code_prompts(300, 1))
    assert len(set(prompts)) == 300
    assert list(code_prompts(300, 1)) == prompts
    assert list(code_prompts(300, 2)) != prompts
    assert not any("{" in prompt for prompt in prompts)


def test_there_are_not_endlessly_many():
    with pytest.raises(ValueError, match="fewer than 100000"):
        list(code_prompts(100_000))
