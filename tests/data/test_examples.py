import json
import shutil

import pytest
import torch
from models import ARCHITECTURES, tiny
from transformers import GenerationConfig

from medusa import MedusaModel
from medusa.data.chats import Example
from medusa.data.examples import batches, collator, pack, read_examples
from medusa.training.losses import head_targets, next_targets
from medusa.training.recipe import Recipe
from medusa.training.run import read_data
from medusa.training.source import Source
from medusa.training.training_model import TrainingModel


def test_truncated_empty_and_malformed_records_are_counted(tmp_path, tokenizer):
    file = tmp_path / "data.jsonl"
    lines = [
        {"text": "a cat sat on the mat"},
        {"prompt": "where is the cat? " * 20, "response": "mat"},
        {"bad": 1},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    options = {"max_length": 30, "vocab_size": len(tokenizer)}
    with pytest.raises(ValueError, match=r"data.jsonl, line 3.*--skip-bad"):
        read_examples(str(file), tokenizer, **options)
    read = read_examples(str(file), tokenizer, skip_bad=True, **options)
    assert (len(read.examples), read.cut, read.empty, len(read.bad)) == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        read_examples(str(file), tokenizer, max_length=30, vocab_size=20)
    file.write_text('{"bad": 1}')
    with pytest.raises(ValueError, match=r"nothing to learn from.*1 malformed"):
        read_examples(str(file), tokenizer, skip_bad=True, **options)


def test_any_error_of_a_record_is_a_bad_record(tmp_path, tokenizer):
    picky = (  # refuses some texts and writes all tool calls
        "{% for m in messages %}{% if 'refuse' in m.content %}{{ raise_exception('no\nsuch\nthing') }}{% endif %}"  # noqa: E501
        "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    good = {"prompt": "a cat", "response": "sat"}
    bad = [
        {**good, "prompt": "refuse"},
        {**good, "response": "\ud800"},
        {**good, "history": 3},
        {**good, "text": "more"},
    ]
    bad += [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "tool_calls": ["\ud800"]},
            ]
        }
    ]
    file = tmp_path / "data.jsonl"
    lines = [json.dumps(good), "[" * 100_000, *map(json.dumps, bad)]
    file.write_text("\n".join(lines))
    options = {"max_length": 30, "vocab_size": len(tokenizer), "template": picky}
    read = read_examples(str(file), tokenizer, skip_bad=True, **options)
    assert (len(read.examples), len(read.bad)) == (1, len(lines) - 1)
    assert [each.partition(":")[0] for each in read.bad] == [
        f"data.jsonl, line {n}" for n in range(2, len(lines) + 1)
    ]
    assert not any("\n" in each for each in read.bad)


def test_eos_ids_of_the_generation_configuration_are_trained_on(tmp_path, base_folder, tokenizer):
    folder, data = tmp_path / "base", tmp_path / "data.jsonl"
    shutil.copytree(base_folder, folder)
    turns = [("user", "q"), ("assistant", "a cat"), ("system", "s"), ("assistant", "sat")]
    data.write_text(
        json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    )
    end = tokenizer.convert_tokens_to_ids("<|system|>")
    roles = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    roles += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    for ends in ([1, end], 1, None):
        GenerationConfig(eos_token_id=ends).save_pretrained(folder)
        source = Source(str(folder), str(data), template=roles)
        read = read_data(
            Recipe(evaluation_share=0.0), source, tokenizer, source.config(), say=lambda _: None
        )
        assert (end in read.training[0].labels) == (ends == [1, end])
    (folder / "generation_config.json").unlink()
    assert source.stops() == set()


def test_packing_keeps_every_example_once_and_within_the_length():
    examples = [Example([n] * n, [n] * n) for n in (3, 9, 4, 4, 8, 1)]
    rows = pack(examples, 10)
    assert sorted(len(each.ids) for row in rows for each in row) == [1, 3, 4, 4, 8, 9]
    assert all(sum(len(each.ids) for each in row) <= 10 for row in rows)
    assert len(rows) == 4


def test_batches_stay_within_their_token_limit():
    examples = [Example([1] * n, [1] * n) for n in range(1, 20)]
    found = list(batches(examples, 40))
    assert sum(map(len, found)) == 19
    assert all(len(batch) * max(len(row[0].ids) for row in batch) <= 40 for batch in found)


def test_targets_are_the_tokens_ahead_within_an_example():
    """Compare with the definition, position by position."""
    one, other = Example.answered([5, 6, 7], [8, 9, 10]), Example([1, 2, 3, 4], [1, 2, 3, 4])
    batch = collator(0)([[one, other]])
    following = next_targets(batch["labels"], batch["segments"])[0]
    ahead = head_targets(batch["labels"], batch["segments"], 3)[0]
    expected_next, expected_ahead = [], []
    for example in (one, other):
        ids, labels = example.ids, [-100, *example.labels[1:]]
        for place in range(len(ids)):
            after = [labels[place + n] if place + n < len(ids) else -100 for n in range(1, 5)]
            expected_next.append(after[0])
            expected_ahead.append(after[1:] if after[0] != -100 else [-100] * 3)
    assert following.tolist() == expected_next
    assert ahead.tolist() == expected_ahead


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"mixtral", "qwen3_moe"}))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_examples_do_not_see_each_other(name, attention):
    """Hidden states in a packed row equal those of each example alone, even in sliding windows."""
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("has a soft-cap in its attention, which is eager's alone")
    base = tiny(name, attention=attention).requires_grad_(False)
    model = MedusaModel.from_base(base, num_heads=2)
    training_model = TrainingModel(base, model.heads).eval()
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 61, (n,), generator=generator).tolist() for n in (14, 11, 5)]
    examples = [Example(each, each) for each in ids]
    row = training_model.positions(**collator(0)([examples]))
    alone = [training_model.positions(**collator(0)([[example]])) for example in examples]
    torch.testing.assert_close(
        row.hidden, torch.cat([each.hidden for each in alone]), rtol=1e-3, atol=1e-5
    )
    assert torch.equal(row.ahead, torch.cat([each.ahead for each in alone]))
    padded = training_model.positions(**collator(0)([[example] for example in examples]))
    torch.testing.assert_close(padded.hidden, row.hidden, rtol=1e-3, atol=1e-5)
