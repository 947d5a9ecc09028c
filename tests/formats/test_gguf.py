import copy
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from models import tiny
from packaging.version import Version
from typer.testing import CliRunner

from benchmarks.gguf_files import write_gguf
from medusa import MedusaModel
from medusa.cli import app
from medusa.formats import bases
from medusa.formats import gguf as gguf_format
from medusa.formats.gguf import files_of, is_gguf
from medusa.loading import NamedModel

reads_gguf = pytest.mark.skipif(
    Version(transformers.__version__) < Version(gguf_format.OLDEST_TRANSFORMERS),
    reason="needs a newer transformers",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "medusa" / "gguf"


@pytest.fixture
def base(tokenizer):
    return tiny(
        "llama",
        torch.float32,
        vocab_size=len(tokenizer),
        num_key_value_heads=4,
        intermediate_size=64,
    )


@pytest.fixture
def file(tmp_path, base, tokenizer):
    write_gguf(base, tmp_path / "tiny.gguf", "f32", tokenizer)
    return tmp_path / "tiny.gguf"


@reads_gguf
def test_a_file_gives_the_model_that_it_was_made_of(file, base, cache):
    model = bases.load(str(file))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, base(ids).logits)
    assert model.dtype == torch.float32
    assert model.config.name_or_path == str(file)
    again = bases.load(str(file), dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1


@reads_gguf
def test_a_file_of_that_name_in_the_working_directory_is_not_read(
    file, base, tmp_path, monkeypatch, tokenizer
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.model.norm.weight.fill_(7)
    write_gguf(other, tmp_path / "here" / file.name, "f32", tokenizer)
    assert torch.equal(bases.load(file).model.norm.weight, base.model.norm.weight)


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        ({"F32"}, torch.float32),
        ({"F16"}, torch.float16),
        ({"F16", "F32"}, torch.float16),
        ({"BF16", "F32"}, torch.bfloat16),
        ({"Q8_0", "F16"}, torch.bfloat16),
    ],
)
def test_the_dtype_of_mixed_files_loses_no_more_than_need_be(monkeypatch, tmp_path, kinds, dtype):
    tensors = [
        SimpleNamespace(tensor_type=SimpleNamespace(name=kind), shape=(2, 2)) for kind in kinds
    ]
    monkeypatch.setattr("gguf.GGUFReader", lambda _: SimpleNamespace(tensors=tensors))
    assert gguf_format._dtype(tmp_path / "any.gguf") == dtype


@reads_gguf
@pytest.mark.parametrize(
    ("kind", "dtype", "error"),
    [
        ("f16", torch.float16, 1e-3),
        ("bf16", torch.bfloat16, 1e-2),
        ("q8_0", torch.bfloat16, 2e-2),
    ],
)
def test_the_dtype_is_that_of_the_file(tmp_path, base, tokenizer, kind, dtype, error):
    write_gguf(base, tmp_path / "small.gguf", kind, tokenizer)
    model = bases.load(tmp_path / "small.gguf", dtype="auto")
    assert model.dtype == dtype
    mine, theirs = (each.model.layers[0].mlp.up_proj.weight.float() for each in (model, base))
    assert not torch.equal(mine, theirs)
    torch.testing.assert_close(mine, theirs, rtol=error, atol=error * theirs.abs().max().item())


@reads_gguf
def test_a_changed_file_is_converted_again(file, base, tokenizer):
    before = files_of(str(file))
    with torch.no_grad():
        base.model.norm.weight.mul_(2)
    write_gguf(base, file, "f32", tokenizer)
    os.utime(file, ns=(1, 1))
    assert files_of(str(file)) != before
    assert torch.equal(bases.load(file).model.norm.weight, base.model.norm.weight)


@reads_gguf
def test_the_tokenizer_config_and_ends_are_read(file, tokenizer):
    named = NamedModel.find(file)
    text = "one two three\nthe cat"
    assert named.tokenizer()(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert named.tokenizer().chat_template == tokenizer.chat_template
    assert named.config().num_hidden_layers == 2
    assert named.end_ids() == {1}


@reads_gguf
def test_heads_name_the_file(file, base, tmp_path):
    model = MedusaModel.from_base(file, num_heads=2)
    model.save_pretrained(tmp_path / "heads")
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert config["base_model_name_or_path"] == "../tiny.gguf"
    again = MedusaModel.from_pretrained(tmp_path / "heads")
    ids = torch.arange(5, 10)[None]
    options = {"max_new_tokens": 8, "do_sample": False}
    assert again.generate(ids, **options).tolist() == base.generate(ids, **options).tolist()
    with torch.no_grad():
        again.base.model.norm.weight.mul_(2)
    with pytest.raises(ValueError, match=r"the base model is not .*tiny\.gguf any more"):
        again.save_pretrained(tmp_path / "changed")


@reads_gguf
def test_a_file_trains_and_generates_on_the_command_line(file, chats, tmp_path):
    out = tmp_path / "heads"
    options = ["--num-heads", "1", "--epochs", "1"]
    trained = CliRunner().invoke(
        app, ["train", str(file), "--data", str(chats), "--output", str(out), *options]
    )
    assert trained.exit_code == 0, trained.output
    for model in (file, out):
        result = CliRunner().invoke(
            app, ["generate", str(model), "-p", "one", "--max-new-tokens", "4"]
        )
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no file of llama.cpp"])
def test_a_broken_file_is_named(tmp_path, content):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.gguf is not a GGUF file"):
        bases.load(file)


def test_without_the_package_the_remedy_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'medusa-decoding\[gguf\]'"):
        bases.load(file)


def test_an_old_transformers_is_refused(file, monkeypatch):
    monkeypatch.setattr(gguf_format, "OLDEST_TRANSFORMERS", "100.1")
    with pytest.raises(ImportError, match=r"100\.1 or newer; this is .*: pip install -U"):
        bases.load(file)


def test_only_files_count(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(tmp_path / "folder.gguf")
    assert not is_gguf("owner/name.gguf")
    for name in ("./missing.gguf", "missing.gguf"):
        with pytest.raises(FileNotFoundError, match=f"no file {name}: give a GGUF file"):
            NamedModel.find(name)


def test_files_of_other_models_stay_where_they_are(base_folder):
    assert files_of("owner/name") == "owner/name"
    assert files_of(str(base_folder)) == str(base_folder)
