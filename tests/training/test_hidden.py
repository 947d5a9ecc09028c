"""Hidden states that several runs share."""

import shutil
from contextlib import ExitStack

import pytest
import torch
from models import tiny

from medusa.core.checks import new_heads
from medusa.data.chats import Example
from medusa.files import locked
from medusa.training import hidden
from medusa.training.hidden import cache_bytes, cached_states
from medusa.training.training_model import TrainingModel

EXAMPLES = [Example.answered([1, 2, 3], [4, 5, 6, 7]), Example.answered([8], [9, 10, 11])]


@pytest.fixture
def training_model():
    base = tiny(dtype=torch.float32).requires_grad_(False)
    return TrainingModel(base, new_heads(base, 2, 1, True, bias=True))


def test_states_are_computed_once_for_each_model_and_data(training_model, tmp_path, monkeypatch):
    kept = cached_states(training_model, EXAMPLES, tmp_path)
    assert len(kept) == 2
    files = sum(file.stat().st_size for file in kept.folder.glob("*.safetensors"))
    assert (
        cache_bytes(training_model, EXAMPLES)
        <= files
        <= cache_bytes(training_model, EXAMPLES) + 500
    )
    other = cached_states(training_model, EXAMPLES[:1], tmp_path)
    assert other.folder != kept.folder
    monkeypatch.setattr(hidden, "_compute", None)
    again = cached_states(training_model, EXAMPLES, tmp_path)
    assert again.folder == kept.folder
    assert torch.equal(again[1][1], kept[1][1])


def test_a_run_waits_while_another_computes_the_same_states(training_model, tmp_path, monkeypatch):
    done = cached_states(training_model, EXAMPLES, tmp_path / "done").folder
    folder, said = tmp_path / "shared" / done.name, []
    monkeypatch.setattr(hidden, "_compute", None)
    with ExitStack() as other:
        other.enter_context(locked(folder))

        def say(line):
            said.append(line)
            shutil.copytree(done, folder)  # the other run ends
            other.close()

        kept = cached_states(training_model, EXAMPLES, tmp_path / "shared", say=say)
    assert kept.folder == folder
    assert len(said) == 1
    assert "waiting for it" in said[0]


def test_failed_and_killed_runs_leave_nothing_that_does_harm(training_model, tmp_path, monkeypatch):
    name = cached_states(training_model, EXAMPLES, tmp_path / "done").folder.name
    left = tmp_path / "shared" / f".{name}.unfinished"
    left.mkdir(parents=True)
    (left / "states-00000.safetensors").write_bytes(b"half")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hidden, "_write_shard", full)
        with pytest.raises(OSError, match="No space"):
            cached_states(training_model, EXAMPLES, tmp_path / "shared")
    assert [file.name for file in (tmp_path / "shared").iterdir() if file.is_dir()] == []
    assert len(cached_states(training_model, EXAMPLES, tmp_path / "shared")) == 2


def test_states_are_the_same_in_one_file_and_in_several(training_model, tmp_path, monkeypatch):
    whole = cached_states(training_model, EXAMPLES, tmp_path / "whole")
    monkeypatch.setattr(hidden, "SHARD_BYTES", 1)
    parts = cached_states(training_model, EXAMPLES, tmp_path / "parts")
    files = [len(list(each.folder.glob("*.safetensors"))) for each in (whole, parts)]
    assert files == [1, len(EXAMPLES)]
    for number in range(len(EXAMPLES)):
        for mine, other in zip(whole[number], parts[number], strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("index.json", b""),
        ("index.json", b'{"digest": "x", "examples": [[0, 1]]}'),
        ("index.json", b'{"digest": "x", "examples": []}'),
        ("states-00000.safetensors", b"half"),
        ("states-00000.safetensors", None),
    ],
)
def test_damaged_states_are_named(training_model, tmp_path, file, content):
    place = cached_states(training_model, EXAMPLES, tmp_path).folder
    (place / file).unlink()
    if content is not None:
        (place / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{place.name} holds .*elete it"):
        cached_states(training_model, EXAMPLES, tmp_path)
