"""Heads in the native format: saving, loading, the hub, and what a save may replace."""

import json

import pytest
import torch
from models import OWN_TREE, changed_heads, prompt, tiny
from safetensors.torch import load_file, save_file

from medusa import CandidateTree, MedusaModel
from medusa.core.schedule import UNCALIBRATED, Calibration
from medusa.formats.names import CONFIG, TREE, WEIGHTS, find_heads
from medusa.formats.native import named_base, read_tree
from medusa.formats.stored import StoredHeads
from medusa.hardware.provenance import device_name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_saved_heads_and_tree_load_unchanged(base, tmp_path, own, num_layers, bias):
    if not own and num_layers == 0:
        pytest.skip("heads without any parameter")
    model = changed_heads(base, own_lm_head=own, num_layers=num_layers, bias=bias)
    model.save_pretrained(tmp_path / "deep" / "heads")
    again = MedusaModel.from_pretrained(tmp_path / "deep" / "heads", base=base)
    assert again.tree == OWN_TREE
    for saved, loaded in zip(model.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(saved, loaded)
    hidden = torch.randn(4, 32)
    assert torch.equal(model.heads(hidden, model.lm_head), again.heads(hidden, again.lm_head))


@pytest.mark.parametrize("own", [True, False])
def test_heads_that_the_tree_does_not_use_are_not_loaded_and_not_lost(base, tmp_path, own):
    model = changed_heads(base, own_lm_head=own)
    model.tree = CandidateTree([(0,), (1,)])
    model.save_pretrained(tmp_path)
    again = MedusaModel.from_pretrained(tmp_path, base=base)
    assert again.heads.config.num_heads == 1
    assert len(again.heads.w1[0]) == 1
    hidden = torch.randn(4, 32)
    expected = model.heads(hidden, model.lm_head)
    assert torch.equal(again.heads(hidden, again.lm_head), expected[:1])
    assert torch.equal(model.heads(hidden, model.lm_head, first=2), expected[:2])
    with pytest.raises(ValueError, match="holds 3 heads and would be left with 1"):
        again.save_pretrained(tmp_path)
    whole = MedusaModel.from_pretrained(tmp_path, base=base, all_heads=True)
    whole.save_pretrained(tmp_path)
    assert torch.equal(whole.heads(hidden, whole.lm_head), expected)
    deeper = MedusaModel.from_pretrained(tmp_path, base=base, tree=CandidateTree.chain(2))
    assert deeper.heads.config.num_heads == 2


def test_a_calibration_loads_unchanged_and_warns_on_another_device(base, tmp_path):
    model = changed_heads(base)
    made = {"device": device_name(base.device), "dtype": "float32", "predicted": {"speedup": 1.5}}
    model.calibration = Calibration([[0.5, 0.6]], {1: 2.0, 8: 3.0}, made)
    model.save_pretrained(tmp_path)
    assert MedusaModel.from_pretrained(tmp_path, base=base).calibration == model.calibration
    model.calibration = Calibration(
        [[0.5, 0.6]], {1: 2.0, 8: 3.0}, {**made, "device": "another machine"}
    )
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="calibrated on another machine .*medusa calibrate"):
        again = MedusaModel.from_pretrained(tmp_path, base=base)
    assert again.tree == model.tree
    assert again.calibration == Calibration([[0.5, 0.6]], UNCALIBRATED.latency)
    again.save_pretrained(tmp_path / "known")
    known = MedusaModel.from_pretrained(tmp_path / "known", base=base)
    assert known.calibration == again.calibration, (
        "accuracies go with the heads, latencies stay on their machine"
    )


def test_a_calibration_warns_where_weights_are_packed_in_another_way(base, tmp_path):
    model = changed_heads(base)
    made = {"device": device_name(base.device), "dtype": "float32", "prepack": None}
    model.calibration = Calibration([[0.5, 0.6]], {1: 2.0, 8: 3.0}, made)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"on prepack=None \(here prepack='half'\)"):
        again = MedusaModel.from_pretrained(tmp_path, base=base, prepack="half")
    assert again.calibration.latency == UNCALIBRATED.latency
    assert MedusaModel.from_pretrained(tmp_path, base=base).calibration == model.calibration


def test_a_calibration_without_a_faster_tree_decodes_plainly_and_says_so(base, tmp_path):
    model = changed_heads(base)
    model.tree = CandidateTree()
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no tree that pays"):
        again = MedusaModel.from_pretrained(tmp_path, base=base)
    output = again.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=5, return_dict_in_generate=True
    )
    assert set(output.stats.step_nodes) == {1}


def test_tensors_have_the_names_of_the_original_format(base, tmp_path):
    changed_heads(base, num_layers=2).save_pretrained(tmp_path)
    named = load_file(tmp_path / WEIGHTS)
    assert {
        name: list(tensor.shape) for name, tensor in named.items() if name.startswith("1.")
    } == {
        "1.0.linear.weight": [32, 32],
        "1.0.linear.bias": [32],
        "1.1.linear.weight": [32, 32],
        "1.1.linear.bias": [32],
        "1.2.weight": [61, 32],
    }
    assert {name.split(".")[0] for name in named} == {"0", "1", "2"}
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (3, 2)
    assert json.loads((tmp_path / TREE).read_text())["paths"] == [[0], [3], [3, 1], [3, 1, 0]]


@pytest.mark.parametrize("own", [True, False])
def test_the_tokens_that_heads_may_propose_are_stored(base, tmp_path, own):
    model, tokens = changed_heads(base, own_lm_head=own), torch.tensor([1, 5, 42, 60])
    model.heads.restrict(tokens)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["truncated_vocab_size"] == 4
    loaded = MedusaModel.from_pretrained(tmp_path, base=base, all_heads=True)
    assert torch.equal(loaded.heads.token_map, tokens)
    assert loaded.heads.config == model.heads.config
    loaded.save_pretrained(tmp_path)  # a token map is no head


def test_the_numbers_of_heads_and_layers_come_from_the_tensors(base, tmp_path):
    """Some released files state another number of heads than they contain."""
    model = changed_heads(base)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config.update(medusa_num_heads=5, medusa_num_layers=7, hidden_size=1, vocab_size=2)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert MedusaModel.from_pretrained(tmp_path, base=base).heads.config == model.heads.config


def test_the_error_names_a_missing_base_model(tmp_path):
    heads = changed_heads(tiny("llama", torch.float32))
    for name in ("../away", str(tmp_path / "away"), "model"):
        heads.save_pretrained(tmp_path / "heads", base=name)
        place = (tmp_path / "heads" / name).resolve()
        with pytest.raises(FileNotFoundError, match=f"base model in {place}, which is not there"):
            named_base(tmp_path / "heads")


def test_the_base_model_is_loaded_by_its_given_name(tmp_path):
    own = tiny("llama", torch.float32)
    own.save_pretrained(tmp_path / "heads" / "base")
    changed_heads(own).save_pretrained(tmp_path / "heads", base="base")
    model = MedusaModel.from_pretrained(tmp_path / "heads")
    assert torch.equal(model.base(prompt()).logits, own(prompt()).logits)
    changed_heads(MedusaModel.from_base(tmp_path / "heads" / "base").base).save_pretrained(
        tmp_path / "other"
    )
    assert named_base(tmp_path / "other").name == str(tmp_path / "other" / "../heads/base")
    changed_heads(own).save_pretrained(tmp_path / "unnamed")
    by_name = MedusaModel.from_pretrained(
        tmp_path / "unnamed", base=tmp_path / "heads" / "base", dtype=torch.bfloat16
    )
    assert by_name.dtype == next(by_name.heads.parameters()).dtype == torch.bfloat16


def test_heads_without_a_base_name_need_a_base_argument(base, tmp_path):
    changed_heads(base).save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "N/A"
    with pytest.raises(
        ValueError, match=r"does not name its base model: pass it \(from_pretrained\(\.\.\., base="
    ):
        MedusaModel.from_pretrained(tmp_path)


def test_a_tree_argument_replaces_the_folders_tree_and_none_means_the_default(base, tmp_path):
    changed_heads(base).save_pretrained(tmp_path)
    chain = CandidateTree.chain(2)
    assert MedusaModel.from_pretrained(tmp_path, base=base, tree=chain).tree == chain
    (tmp_path / TREE).unlink()
    assert read_tree(tmp_path) is None
    assert MedusaModel.from_pretrained(tmp_path, base=base).tree == CandidateTree.default(3)


def test_loaded_heads_generate_the_same_text_on_the_bases_device(base, tmp_path):
    """Saving and loading keep the text, and the heads are on the base model's device."""
    model = changed_heads(base)
    model.save_pretrained(tmp_path)
    again = MedusaModel.from_pretrained(tmp_path, base=tiny("llama", torch.float64))
    assert next(again.heads.parameters()).dtype == torch.float64
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    ours, theirs = (
        each.generate(prompt(), **options)
        for each in (model, MedusaModel.from_pretrained(tmp_path, base=base))
    )
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.stats.accepted == theirs.stats.accepted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 64}, "vocab_size is 61 but .* has 64"),
        ({"hidden_size": 16}, "hidden_size is 32 but .* has 16"),
    ],
)
def test_heads_of_another_size_are_refused(base, tmp_path, changes, words):
    changed_heads(base).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        MedusaModel.from_pretrained(tmp_path, base=tiny("llama", torch.float32, **changes))


def without(*names):
    return lambda named: {name: tensor for name, tensor in named.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("1.0.linear.bias"), r"missing tensor 1\.0\.linear\.bias"),
        (
            without("1.1.weight", "2.0.linear.weight"),
            r"missing tensor 1\.1\.weight; missing tensor 2\.0\.linear\.wei",
        ),
        (
            lambda named: {**named, "0.1.linear.bias": torch.zeros(32)},
            r"unknown tensor 0\.1\.linear\.bias",
        ),
        (
            lambda named: {**named, "0.9.weight": torch.zeros(61, 32)},
            r"unknown tensor 0\.9\.weight",
        ),
        (
            lambda named: {**named, "2.0.linear.bias": torch.zeros(7)},
            r"2\.0\.linear\.bias has shape \[7\].*\[32\]",
        ),
        (
            lambda named: {**named, "lm_head.weight": torch.zeros(1)},
            r"not Medusa heads': lm_head\.weight",
        ),
        (
            lambda named: {"medusa_head.0.x": torch.zeros(1)},
            r"not Medusa heads': medusa_head\.0\.x",
        ),
        (lambda named: {}, "no tensors"),
    ],
    ids=[
        "missing",
        "two missing",
        "unknown",
        "second projection",
        "shape",
        "alien",
        "only aliens",
        "empty",
    ],
)
def test_the_error_names_the_tensor_that_does_not_fit(base, tmp_path, change, words):
    changed_heads(base).save_pretrained(tmp_path)
    save_file(change(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=words):
        MedusaModel.from_pretrained(tmp_path, base=base)


def test_the_error_names_a_folder_without_heads(base, tmp_path):
    assert StoredHeads.find(tmp_path) is None
    with pytest.raises(
        ValueError, match=r"neither Medusa heads nor a model: it has no config\.json"
    ):
        MedusaModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_heads(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_heads("./nowhere")
    changed_heads(base).save_pretrained(tmp_path)
    assert find_heads(tmp_path) == tmp_path


def test_broken_heads_are_not_saved(base, tmp_path):
    model = changed_heads(base)
    model.save_pretrained(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    model.heads.w2.data[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"1\.1\.weight holds NaN"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_heads_do_not_replace_a_model(base, tmp_path):
    base.save_pretrained(tmp_path / "base")
    before = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    model = MedusaModel.from_base(tmp_path / "base", 2)
    for options in ({}, {"base": "."}):
        with pytest.raises(
            ValueError, match=r"base holds a model, whose config\.json .*another folder"
        ):
            model.save_pretrained(tmp_path / "base", **options)
    model.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()} == before


@pytest.mark.parametrize("failing", ["write_json", "save_file", "write_tree"])
def test_a_failed_save_keeps_the_previous_heads(base, tmp_path, monkeypatch, failing):
    model = changed_heads(base)
    model.save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(f"medusa.formats.native.{failing}", full)
    model.tree = CandidateTree.chain(2)
    model.heads.w2.data.add_(1)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_saved_files_have_default_permissions(base, tmp_path):
    (tmp_path / "plain").touch()
    changed_heads(base).save_pretrained(tmp_path / "heads")
    modes = {each.stat().st_mode for each in (tmp_path / "heads").rglob("*") if each.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_heads_may_be_saved_again_if_only_their_weights_are_missing(base, tmp_path):
    """The configuration of heads does not count as that of a model."""
    changed_heads(base).save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    changed_heads(base).save_pretrained(tmp_path)
    assert StoredHeads.of(tmp_path).num_heads == 3
