import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import tiny

from tools.demo_model.tokenizer import train_tokenizer

WORDS = [
    "one two three four five six seven eight nine ten",
    "a cat sat on the mat",
    "where is the cat?",
]


@pytest.fixture(autouse=True, scope="session")
def interrupts_raise():
    """A shell that starts a job in the background makes it ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def torch_modes_are_left_as_found():
    """A test that left gradients off would make others fail, far from the cause.

    Likewise one that left autocast open: its cache of converted weights would then outlive a step.
    """
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    torch.autocast_increment_nesting()
    left_open = open_now = torch.autocast_decrement_nesting()
    while open_now:
        open_now = torch.autocast_decrement_nesting()
    assert not left_open


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(WORDS, 300, 128)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    base = tiny(dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=128)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory) -> Path:
    """24 chats that can be learnt by heart."""
    numbers = WORDS[0].split()
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    lines = []
    for place in range(24):
        run = [numbers[(place + step) % 10] for step in range(6)]
        turns = [
            {"role": "user", "content": f"count from {run[0]}"},
            {"role": "assistant", "content": " ".join(run)},
        ]
        lines.append(json.dumps({"messages": turns}))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def clock(monkeypatch):
    """A clock for progress and logs that stands still until its `now` is set.

    Only they see it: with the process's own clock, servers of other tests would stand still, too.
    """

    class Clock:
        now = 0.0

    still = SimpleNamespace(monotonic=lambda: Clock.now)
    for module in ("log", "progress"):
        monkeypatch.setattr(f"medusa.training.{module}.time", still)
    return Clock
