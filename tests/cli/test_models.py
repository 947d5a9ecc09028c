"""What MODEL stands for on the command line."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from medusa.cli import app

runner = CliRunner()


def generate(*arguments):
    return runner.invoke(app, ["generate", *map(str, arguments), "-p", "one two", "--max-new-tokens", "6"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
def test_an_adapter_is_answered_by_on_its_base(folders, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    config = peft.LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "lora")
    told = generate(tmp_path / "lora")
    assert told.exit_code == 0, told.output
    assert "decoding plainly" in told.stderr
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one two"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    new = adapted.get_base_model().generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert told.stdout == tokenizer.decode(new, skip_special_tokens=True) + "\n"


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "torch .* finds cpu"), ("cuda:7", "--device cuda:7"), ("gpu", "no such kind of device"), ("cpu", "")],
)
@pytest.mark.parametrize("model", ["demo", "HEADS"])
def test_a_device_that_is_not_there_is_named_before_loading(folders, device, said, model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    told = generate(folders / "heads" if model == "HEADS" else model, "--device", device)
    assert told.exit_code == (1 if said else 0)
    assert "Traceback" not in told.output
    assert re.search(said, told.stderr)


def test_heads_in_a_format_that_is_not_read_are_named(tmp_path):
    torch.save({}, tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text("{}")
    told = generate(tmp_path)
    assert told.exit_code == 1
    assert "authors' format" in told.stderr
