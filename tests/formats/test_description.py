"""Descriptions of folders with heads: what they hold, and what is odd about them."""

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
from models import changed_heads, tiny

from medusa import CandidateTree
from medusa.core.schedule import UNCALIBRATED, Calibration
from medusa.formats.description import Description
from medusa.formats.native import write_tree


def rows(folder):
    return dict(Description.of(folder).rows())


def odd(folder):
    return Description.of(folder).odd()


def test_what_a_folder_of_heads_holds(tmp_path, base):
    base.save_pretrained(tmp_path / "base")
    raw = {name: tensor.half() for name, tensor in raw_heads(5).items()}
    pickled_heads(tmp_path / "heads", raw)
    weights = 5 * (32 * 32 + 32 + 61 * 32)
    assert rows(tmp_path / "heads") == {
        "format": "the authors' format, heads alone",
        "file": "medusa_lm_head.pt (pickled)",
        "heads": "5",
        "layers": "1 in each head, with biases",
        "lm_head": "each head's own",
        "weights": f"{weights:,} in float16, 0.0 MB",
        "fits": "hidden size 32, vocabulary 61",
        "base model": str(tmp_path / "base"),
        "adapter": "none",
        "tree": "none: the default tree is used",
    }
    assert odd(tmp_path / "heads") == ["config.json says medusa_num_heads = 2, the tensors say 5"]


@pytest.mark.parametrize(
    ("write", "kind", "file"),
    [
        (vllm_heads, "vLLM's format, heads alone", "model.safetensors"),
        (mlc_heads, "the authors' format, heads alone", "pytorch_model.bin (pickled)"),
    ],
)
def test_the_format_is_named(tmp_path, write, kind, file):
    write(tmp_path, raw_heads(own=False, bias=False))
    described = rows(tmp_path)
    assert (described["format"], described["file"]) == (kind, file)
    assert described["lm_head"] == "the base model's"
    assert described["layers"] == "1 in each head, without biases"


@pytest.mark.parametrize(
    ("prefix", "owner"), [("medusa_head.", "the authors'"), ("medusa_heads.", "ModelOpt's")]
)
def test_a_whole_model_holds_its_base(tmp_path, base, prefix, owner):
    whole_model(tmp_path, raw_heads(), base, "pickles in shards", prefix)
    write_config(tmp_path, num_heads=4)  # of attention, in some architectures
    described = rows(tmp_path)
    assert described["format"] == f"{owner} format, a whole model with heads inside"
    assert described["file"] == "pytorch_model.bin.index.json (pickled)"
    assert described["base model"] == "in the same files"
    assert odd(tmp_path) == []


def test_this_librarys_own_folder_with_tree_and_calibration(tmp_path, base):
    base.save_pretrained(tmp_path / "base")
    model = changed_heads(base, own_lm_head=False)
    model.heads.restrict(torch.arange(9))
    made = {"device": "a machine", "dtype": "float32"}
    model.calibration = Calibration([[0.5, 0.6]], {1: 2.0}, made)
    model.save_pretrained(tmp_path / "heads", base="../base")
    described = rows(tmp_path / "heads")
    assert described["tree"] == "5 nodes, depth 3"
    assert described["calibration"] == "a machine, float32"
    assert described["draft vocabulary"] == "9 tokens"
    assert described["fits"] == "hidden size 32, vocabulary 61 by config.json"
    assert odd(tmp_path / "heads") == []
    write_tree(tmp_path / "heads", CandidateTree.chain(2), UNCALIBRATED)
    assert rows(tmp_path / "heads")["calibration"] == "none"


def named(**fields):
    return lambda folder: write_config(folder, **fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (named(base_model_name_or_path="N/A"), "no base model is found: name it with --base"),
        (named(base_model_name_or_path="../away"), "no base model is found: name it with --base"),
        (named(model_type="llama"), "model_type is llama, but the folder holds heads alone"),
        (named(vocab_size=62), "config.json says vocab_size = 62, the tensors say 61"),
        (named(medusa_num_layers=0), "config.json says medusa_num_layers = 0, the tensors say 1"),
        (named(version="2"), "version 2 means a shared lm_head, but each head has its own"),
        (
            named(medusa_fc_bias=False),
            "medusa_fc_bias is false, so vLLM would leave out the biases",
        ),
        (
            lambda folder: write_tree(folder, CandidateTree.chain(3)),
            "the tree is 3 deep, for 2 heads",
        ),
        (
            lambda folder: pickled_heads(folder, raw_heads(2, 2, tied=True)),
            "layers are tied: all layers of a head have the same values",
        ),
        (
            lambda folder: pickled_heads(
                folder, {**raw_heads(2), "0.1.weight": torch.zeros(61, 32).half()}
            ),
            "weights have several dtypes: float16, float32",
        ),
        (
            lambda folder: pickled_heads(
                folder, {**raw_heads(2), "1.1.weight": torch.zeros(2, 32)}
            ),
            "the heads cannot be loaded: these heads do not fit: "
            "1.1.weight has shape [2, 32], the base model needs [61, 32]",
        ),
    ],
)
def test_what_is_odd(tmp_path, base, change, said):
    base.save_pretrained(tmp_path / "base")
    pickled_heads(tmp_path / "heads", raw_heads(2))
    assert odd(tmp_path / "heads") == []
    change(tmp_path / "heads")
    assert odd(tmp_path / "heads") == [said]


@pytest.mark.parametrize(
    ("name", "shown"), [("N/A", "not named"), ("../away", "../away, which is not there")]
)
def test_a_base_that_is_missing_is_said_to_be(tmp_path, name, shown):
    pickled_heads(tmp_path, raw_heads(), base=name)
    assert rows(tmp_path)["base model"] == shown


def test_a_configuration_that_is_missing_is_odd(tmp_path):
    pickled_heads(tmp_path, raw_heads())
    (tmp_path / "config.json").unlink()
    assert odd(tmp_path) == [
        "there is no config.json",
        "no base model is found: name it with --base",
    ]


def test_layers_that_are_stored_once_are_odd(tmp_path):
    once = {name: x for name, x in raw_heads(2, 3).items() if name.split(".")[1] in "03"}
    pickled_heads(tmp_path, once, base="owner/base")
    assert odd(tmp_path) == ["layers are tied: the file stores one layer of each head for all"]
    assert rows(tmp_path)["base model"] == "owner/base (on the hub, not on this machine)"


def test_layers_that_differ_are_not_odd(tmp_path):
    pickled_heads(tmp_path, raw_heads(2, 2), base="owner/base")
    assert odd(tmp_path) == []


def test_a_shared_lm_head_with_version_2_is_not_odd(tmp_path):
    safe_heads(tmp_path, raw_heads(own=False), base="owner/base")
    write_config(tmp_path, model_type="medusa")
    assert odd(tmp_path) == []


def test_a_folder_without_heads_is_refused(tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no Medusa heads"):
        Description.of(tmp_path)
