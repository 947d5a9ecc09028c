"""Draft models: the first layers of a model, new narrow ones, and their training."""

import json
import re

import pytest
import torch
from models import prompt, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from medusa.data.chats import Example
from medusa.evaluation.methods import transformers_run
from medusa.evaluation.specs import method_of
from tools.demo_model import draft as demo_draft
from tools.demo_model.draft import narrow_llama, task_examples
from tools.drafts import (
    Batches,
    agreement,
    answer_logits,
    first_layers,
    split,
    train,
    training_parser,
)
from tools.smollm2 import draft as smollm2_draft

IDS = torch.arange(1, 12)[None]


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2", "gpt2", "opt", "mixtral"])
def test_the_first_layers_compute_what_the_base_model_s_do(name):
    """They give the logits of a base model whose other layers are taken away."""
    base = tiny(name, attention="eager")
    draft = first_layers(base, 1).eval()
    assert draft.config.num_hidden_layers == 1
    assert base.config.num_hidden_layers == 2, "the base model is unchanged"
    own = dict(base.named_parameters())
    for key, parameter in draft.named_parameters():
        assert torch.equal(parameter, own[key])
        assert parameter.data_ptr() != own[key].data_ptr()
    layers = next(each for each in base.modules() if isinstance(each, torch.nn.ModuleList))
    del layers[1:]
    base.config.num_hidden_layers = 1
    with torch.inference_mode():
        assert torch.equal(draft(IDS).logits, base(IDS).logits)


def test_a_draft_must_have_fewer_layers():
    with pytest.raises(ValueError, match=r"--layers 2: a draft of a model of 2 layers must have"):
        first_layers(tiny(), 2)


def test_a_new_llama_has_the_vocabulary_and_looks_at_the_token_before():
    base = tiny(eos_token_id=3)
    draft = narrow_llama(base, 1, 64)
    assert draft.config.vocab_size == base.config.vocab_size
    assert draft.config.eos_token_id == 3
    draft.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = draft(IDS, output_attentions=True).attentions[0]
    assert attention[0, 0].diagonal(-1)[1:].mean() > 0.3 > attention[0, 1].diagonal(-1)[1:].mean()
    with pytest.raises(ValueError, match="--hidden-size 40: it must be a multiple of 32"):
        narrow_llama(base, 1, 40)


def batches_of(*texts):
    rows = [[Example.answered(text[:2], text[2:])] for text in texts]
    return Batches([rows], pad=0)


def test_only_answers_count_and_padding_changes_nothing():
    base = tiny()
    long, short = list(range(1, 11)), list(range(20, 25))
    together = batches_of(long, short)[0]
    apart = [answer_logits(base, batches_of(each)[0]) for each in (long, short)]
    both = answer_logits(base, together)
    assert len(both) == 8 + 3
    assert torch.allclose(both, torch.cat(apart), atol=1e-5)
    expected = base(torch.tensor([short])).logits[0, 1:4].float()
    assert torch.allclose(apart[1], expected, atol=1e-5)


def test_agreement_counts_the_same_best_tokens():
    base, data = tiny(), batches_of([1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert agreement(base, base, data) == (5, 5)
    same, total = agreement(tiny(seed=1), base, data)
    assert total == 5
    assert same < 5


@pytest.mark.parametrize("soft", [[], ["--soft"]])
def test_a_draft_learns_its_base_model(soft):
    """Targets of --soft are the base's own; the answers' tokens are greedy answers of the base."""
    base = tiny(dtype=torch.float32)
    texts = base.generate(
        torch.cat([prompt(2, seed) for seed in range(16)]), max_new_tokens=20, do_sample=False
    ).tolist()
    data = Batches([[[Example.answered(text[:2], text[2:])] for text in texts]], pad=0)
    parser = training_parser(None, layers=1, lr=1e-2)
    options = parser.parse_args(["--output", "x", "--epochs", "40", *soft])
    torch.manual_seed(0)
    draft = first_layers(base, 1)
    before, total = agreement(draft.eval(), base, data)
    train(draft, base, data, options)
    after, _ = agreement(draft.eval(), base, data)
    assert after > max(before, 0.5 * total)


def run(monkeypatch, capsys, command, *arguments):
    """Run a command; return its agreements before and after training."""
    monkeypatch.setattr("sys.argv", ["draft", *map(str, arguments)])
    command.main()
    said = capsys.readouterr().out
    before, after = map(float, re.findall(r"token at ([\d.]+)% of [\d,]+ held-out tokens", said))
    return before, after


def test_a_draft_of_the_embedded_model_is_made_by_a_command(monkeypatch, capsys, tmp_path):
    shape = ["--layers", 1, "--hidden-size", 32]
    data = ["--tasks", 60, "--lr", "2e-2", "--batch-tokens", 1024, "--epochs", 2]
    before, after = run(monkeypatch, capsys, demo_draft, "--output", tmp_path, *shape, *data)
    assert before < 5 < after
    draft = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert draft.config.vocab_size == len(tokenizer) == 2048
    assert draft.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_draft_of_a_model_s_own_answers_speeds_it_up(monkeypatch, capsys, tmp_path, tokenizer):
    """Answers that repeat a sentence are learnt, and then accepted."""
    base = tiny(vocab_size=len(tokenizer), dtype=torch.float32, num_hidden_layers=3)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    ids = tokenizer("Why is this a tree?", return_tensors="pt")["input_ids"]
    answer = base.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(answer)
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    lines = [json.dumps({"messages": chat}) + "\n"] * 40
    (tmp_path / "answers.jsonl").write_text("".join(lines))
    data = ["--data", tmp_path / "answers.jsonl", "--epochs", 40, "--lr", "1e-2", "--soft"]
    folder = tmp_path / "draft"
    which = ["--model", tmp_path / "base", "--layers", 1, "--output", folder]
    before, after = run(monkeypatch, capsys, smollm2_draft, *which, *data)
    assert after > max(before, 50)
    prompt_ids = tokenizer.apply_chat_template(
        chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    method = method_of(f"draft={folder},gamma=3", None, lambda: base)
    arguments = {"max_new_tokens": 12, "do_sample": False}
    drafted = method(None, prompt_ids, arguments)
    assert drafted.ids == transformers_run(base, prompt_ids, arguments).ids
    assert max(drafted.accepted) > 1, "drafted tokens were accepted"


def test_tasks_are_cut_to_the_maximum_length(tokenizer):
    examples = task_examples(tokenizer, 12, 80)
    assert 0 < len(examples) <= 12
    assert max(len(each.ids) for each in examples) == 80
    assert all(each.learnt for each in examples)


def test_one_example_of_twenty_is_held_out():
    examples = [Example([number, number], [number, number]) for number in range(41)]
    learnt, held_out = split(examples)
    assert [each.ids[0] for each in held_out] == [0, 20, 40]
    assert sorted(each.ids[0] for each in learnt + held_out) == list(range(41))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "./nowhere", "--data", "one.jsonl"], "error: "),
        (["--data", "missing.jsonl"], "error: no file or folder missing.jsonl"),
        (["--data", "one.jsonl"], "error: a draft model needs at least two answers"),
        (["--data", "one.jsonl", "--held-out", "none.jsonl"], "error: no file or folder none"),
        (["--data", "one.jsonl", "--layers", "9"], "error: --layers 9: a draft of a model of 2"),
    ],
)
def test_errors_are_one_line(monkeypatch, tmp_path, tokenizer, arguments, said):
    base = tiny(vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jsonl").write_text('{"prompt": "Why?", "answer": "So."}\n')
    given = ["--model", "base", "--layers", "1", "--output", "out", *arguments]
    monkeypatch.setattr("sys.argv", ["draft", *given])
    with pytest.raises(SystemExit) as ended:
        smollm2_draft.main()
    assert str(ended.value).startswith(said)
