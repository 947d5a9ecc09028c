import pytest

from medusa.demo.tasks import CATEGORIES, make_task
from tools.demo_model.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    tasks = [make_task(name, seed, "train") for name in CATEGORIES for seed in range(40)]
    return train_tokenizer(
        (text for task in tasks for text in (task.prompt, task.answer)), 1000, 2048
    )


@pytest.mark.parametrize("word", ["Riga", "Zzyzx", "lamp", "Größe"])
def test_a_word_has_the_same_tokens_everywhere(tokenizer, word):
    alone = tokenizer(word).input_ids
    for text in (f"a {word}.", f'"{word}",', f"x,{word},y", f"\n    {word}", f"def {word}_{word}("):
        ids = tokenizer(text).input_ids
        assert any(ids[place : place + len(alone)] == alone for place in range(len(ids)))


def test_any_text_round_trips_and_every_digit_is_a_token(tokenizer):
    for text in (
        "def f(x):\n    return x",
        "Grüße, 世界 🐍",
        "  two  spaces\t",
        "\r\n\n  x",
        "1.5e-3",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("2048").input_ids) == 4


def test_the_chat_template_closes_every_message(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    text = tokenizer.apply_chat_template(
        [*messages, messages[0]], tokenize=False, add_generation_prompt=True
    )
    assert (
        text
        == "<|user|>\nHi<|end|>\n<|assistant|>\nYes<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    )
    assert tokenizer(text).input_ids.count(tokenizer.eos_token_id) == 3
