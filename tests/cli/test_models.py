"""What MODEL stands for on the command line."""

import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from medusa.cli import app

runner = CliRunner()
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"


def generate(*arguments):
    return runner.invoke(
        app, ["generate", *map(str, arguments), "-p", "one two", "--max-new-tokens", "6"]
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
def test_an_adapter_is_answered_by_on_its_base(folders, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=64, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "lora")
    result = generate(tmp_path / "lora")
    assert result.exit_code == 0, result.output
    assert "decoding plainly" in result.stderr
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one two"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )["input_ids"]
    new = adapted.get_base_model().generate(ids, max_new_tokens=6, do_sample=False)[
        0, ids.shape[1] :
    ]
    assert result.stdout == tokenizer.decode(new, skip_special_tokens=True) + "\n"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"adapter_config.json": "[]"}, r"adapter_config\.json: the whole file"),
        (
            {"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "./gone"}'},
            r"adapter_config\.json: .*\./gone, which is not there",
        ),
        (
            {"adapter_model.safetensors": ""},
            r"adapter_model\.safetensors is not a whole safetensors file",
        ),
        (
            {"adapter_model.safetensors": POINTER},
            r"adapter_model\.safetensors is a Git LFS pointer",
        ),
        ({"tokenizer.json": '{"a": '}, r"the tokenizer in .*lora cannot be read"),
    ],
)
def test_a_broken_adapter_is_named_with_its_file(folders, tmp_path, damage, said):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders / "base" / name, tmp_path / "lora")
    for name, text in damage.items():
        (tmp_path / "lora" / name).write_text(text)
    result = generate(tmp_path / "lora")
    assert result.exit_code == 1
    assert re.search(said, result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--device", "--device-map"])
@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "torch .* finds cpu"),
        ("cuda:7", "--device.* cuda:7"),
        ("gpu", "no such kind of device"),
        ("cpu", ""),
    ],
)
@pytest.mark.parametrize("model", ["demo", "HEADS"])
def test_a_device_that_is_not_there_is_named_before_loading(folders, option, device, said, model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = generate(folders / "heads" if model == "HEADS" else model, option, device)
    assert result.exit_code == (1 if said else 0)
    assert "Traceback" not in result.output
    assert re.search(said, result.stderr)


@pytest.mark.parametrize(
    ("held", "said"), [({}, "no tensors"), ({"x": torch.zeros(1)}, "are not Medusa heads': x")]
)
def test_a_file_without_heads_is_named(tmp_path, held, said):
    torch.save(held, tmp_path / "medusa_lm_head.pt")
    result = generate(tmp_path)
    assert result.exit_code == 1
    assert f"medusa_lm_head.pt: it holds {said}" in result.stderr.replace("tensors that ", "")
