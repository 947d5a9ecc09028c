from dataclasses import replace

import pytest

from medusa.demo.tasks import CATEGORIES, make_task
from tools.demo_model.recipe import BackboneRecipe
from tools.demo_model.tokenizer import train_tokenizer

SMALL = replace(BackboneRecipe(), vocab_size=1000, layers=2, drill_steps=20)


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer trained on tasks, with the vocabulary size of the small recipe."""
    tasks = [make_task(name, seed, "train") for name in CATEGORIES for seed in range(40)]
    texts = (text for task in tasks for text in (task.prompt, task.answer))
    return train_tokenizer(texts, SMALL.vocab_size, SMALL.context)


@pytest.fixture
def recipe():
    """The backbone's recipe with a small model and a short drill."""
    return SMALL
