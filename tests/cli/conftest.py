"""A tiny model on disk with a byte-level tokenizer and a chat template, and heads beside it."""

from pathlib import Path

import pytest
from models import tiny
from transformers import AutoTokenizer

from medusa import MedusaModel
from tools.demo_model.tokenizer import train_tokenizer

WORDS = [
    "the tree of candidates is verified in one step",
    "naïve café & ½ 東京 🌳",
    "one two three four",
]
POSITIONS = 128


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A folder with `base` and `heads`."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(WORDS, 300, POSITIONS)
    base = tiny(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    MedusaModel.from_base(base, 2).save_pretrained(folder / "heads", base="../base")
    return folder


@pytest.fixture(scope="session")
def tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders / "base")


@pytest.fixture(scope="session")
def reference(folders, tokenizer):
    """The base model's own greedy answer to messages, or to a raw text."""
    base = MedusaModel.from_pretrained(folders / "heads").base

    def answer(prompt, max_new_tokens):
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        ids = inputs["input_ids"]
        new = base.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True)

    return answer
