"""Heads of any format become a native folder, and nothing else is overwritten."""

import json

import pytest
import torch
from foreign import (
    mlc_heads,
    pickled_heads,
    raw_heads,
    safe_heads,
    vllm_heads,
    whole_model,
    write_config,
)
from models import prompt, tiny
from safetensors.torch import load_file

from medusa import CandidateTree, MedusaModel
from medusa.core.schedule import Calibration
from medusa.formats.native import read_tree, write_tree
from medusa.loading import NamedModel
from medusa.loading.convert import convert

NEW = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def own():
    return tiny(dtype=torch.float32)


@pytest.fixture
def place(own, tmp_path):
    """A folder with the base model in `base`."""
    own.save_pretrained(tmp_path / "base")
    return tmp_path


def converted(place, name="heads", base=None):
    return convert(NamedModel.find(place / name, base), place / "native" / "heads")


def whole(folder, raw):
    whole_model(folder, raw, tiny(dtype=torch.float32), "pickles in shards")


def modelopt(folder, raw):
    whole_model(folder, raw, tiny(dtype=torch.float32), prefix="medusa_heads.")


@pytest.mark.parametrize("own_lm_head", [True, False])
@pytest.mark.parametrize(
    "write", [pickled_heads, safe_heads, vllm_heads, mlc_heads, whole, modelopt]
)
def test_the_native_folder_holds_the_same_tensors_and_gives_the_same_text(
    place, own, write, own_lm_head
):
    raw = {name: tensor.bfloat16() for name, tensor in raw_heads(own=own_lm_head).items()}
    write(place / "heads", raw)
    result = converted(place)
    assert result.files == ("config.json", "custom_generate", "medusa_lm_head.safetensors")
    assert result.compared
    stored = load_file(place / "native" / "heads" / "medusa_lm_head.safetensors")
    assert stored.keys() == raw.keys()
    assert all(stored[name].equal(tensor) for name, tensor in raw.items())
    config = json.loads((place / "native" / "heads" / "config.json").read_text())
    inside = write in (whole, modelopt)
    assert config["base_model_name_or_path"] == ("../../heads" if inside else "../../base")
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (3, 1)
    assert (config["hidden_size"], config["vocab_size"]) == (32, 61)
    model = MedusaModel.from_pretrained(place / "native" / "heads")
    assert model.generate(prompt(), **NEW).equal(own.generate(prompt(), **NEW))


@pytest.mark.parametrize("once", [False, True])
def test_tied_layers_are_written_one_by_one(place, once):
    raw = raw_heads(2, 2, tied=True)
    held = {name: x for name, x in raw.items() if not (once and ".1.linear." in name)}
    pickled_heads(place / "heads", held)
    converted(place)
    stored = load_file(place / "native" / "heads" / "medusa_lm_head.safetensors")
    assert stored.keys() == raw.keys()
    assert stored["1.0.linear.weight"].equal(stored["1.1.linear.weight"])


def test_the_tree_and_its_calibration_go_along(place):
    pickled_heads(place / "heads", raw_heads())
    made = {"device": "a machine", "dtype": "float32", "note": [1, 2]}
    calibration = Calibration([[0.5, 0.6]], {1: 2.0, 8: 3.0}, made)
    write_tree(place / "heads", CandidateTree.chain(2), calibration)
    assert "medusa_tree.json" in converted(place).files
    assert read_tree(place / "native" / "heads") == (CandidateTree.chain(2), calibration)


def test_a_tree_that_the_heads_cannot_fill_is_refused(place):
    pickled_heads(place / "heads", raw_heads(2))
    write_tree(place / "heads", CandidateTree.chain(3))
    with pytest.raises(ValueError, match="the tree is 3 deep but there are 2 heads"):
        converted(place)
    assert not any((place / "native" / "heads").iterdir())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
def test_an_adapter_goes_along(place, own):
    peft = pytest.importorskip("peft")
    base = tiny(dtype=torch.float32)
    base.config.name_or_path = str(place / "base")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj"], init_lora_weights=False)
    base = peft.get_peft_model(base, lora).get_base_model()
    MedusaModel.from_base(base, 2).save_pretrained(place / "heads")
    assert "adapter" in converted(place).files
    text = MedusaModel.from_pretrained(place / "native" / "heads").generate(prompt(), **NEW)
    assert text.equal(base.generate(prompt(), **NEW))
    assert not text.equal(own.generate(prompt(), **NEW))


def test_a_base_may_be_named(place):
    pickled_heads(place / "heads", raw_heads(), base="N/A")
    with pytest.raises(ValueError, match=r"does not name its base model.*--base"):
        converted(place)
    assert converted(place, base=place / "base").base == "../../base"


def test_heads_that_do_not_fit_the_base_are_refused(place):
    pickled_heads(place / "heads", raw_heads())
    tiny(dtype=torch.float32, vocab_size=64).save_pretrained(place / "other")
    with pytest.raises(ValueError, match=r"medusa_lm_head\.pt: the heads' vocab_size is 61 .* 64"):
        converted(place, base=place / "other")


def test_a_base_that_cannot_be_read_is_needed_only_by_heads_that_share_its_lm_head(place):
    pickled_heads(place / "heads", raw_heads(), base="owner/base")
    named = NamedModel.find(place / "heads", local_files_only=True)
    result = convert(named, place / "native" / "heads")
    assert (result.base, result.compared) == ("owner/base", False)
    safe_heads(place / "sharing", raw_heads(own=False), base="owner/base")
    named = NamedModel.find(place / "sharing", local_files_only=True)
    with pytest.raises(OSError, match=r"share the lm_head of owner/base need its sizes.*--base"):
        convert(named, place / "others")


def test_the_weights_of_the_base_are_not_needed(place):
    safe_heads(place / "heads", raw_heads(own=False))
    (place / "base" / "model.safetensors").unlink()
    assert converted(place).compared


def test_the_same_heads_may_be_written_again_and_keep_their_tree(place):
    pickled_heads(place / "heads", raw_heads())
    converted(place)
    write_tree(place / "native" / "heads", CandidateTree.chain(2))
    write_tree(place / "heads", CandidateTree.chain(1))
    assert "medusa_tree.json" not in converted(place).files
    assert read_tree(place / "native" / "heads")[0] == CandidateTree.chain(2)


def a_file(folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")


def a_model(folder):
    tiny(dtype=torch.float32).save_pretrained(folder)


def other_heads(folder):
    safe_heads(folder, raw_heads(heads=2))


def a_config(folder):
    write_config(folder, medusa_num_heads=3)


def the_same_heads_pickled(folder):
    pickled_heads(folder, raw_heads())


@pytest.mark.parametrize("hold", [a_file, a_model, other_heads, a_config, the_same_heads_pickled])
def test_a_folder_that_holds_something_else_is_refused(place, hold):
    pickled_heads(place / "heads", raw_heads())
    hold(place / "native" / "heads")
    before = {each: each.read_bytes() for each in (place / "native" / "heads").glob("*.*")}
    with pytest.raises(ValueError, match="is not empty, and does not hold these heads: name a new"):
        converted(place)
    after = {each: each.read_bytes() for each in (place / "native" / "heads").glob("*.*")}
    assert after == before


def test_a_model_without_heads_is_refused(place):
    with pytest.raises(ValueError, match="holds no Medusa heads: there is nothing to convert"):
        converted(place, "base")
