"""Heads in the formats of other programs: read, checked, refused by the names in their files."""

import json
import os
import re

import foreign
import pytest
import torch
from foreign import (
    FORMS,
    head_logits,
    mlc_heads,
    pickled_heads,
    raw_heads,
    safe_heads,
    store,
    vllm_heads,
    whole_model,
    write_config,
)
from models import VOCAB, prompt, tiny
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from medusa import CandidateTree, MedusaModel
from medusa.formats.names import find_heads
from medusa.formats.stored import StoredHeads

NEW = {"max_new_tokens": 16, "do_sample": False}


@pytest.fixture(scope="module")
def own():
    """The base model of all heads here."""
    return tiny(dtype=torch.float64)


@pytest.fixture
def folder(own, tmp_path):
    """A folder for heads, beside the base model in `base`."""
    own.save_pretrained(tmp_path / "base")
    return tmp_path / "heads"


def check(folder, raw, own, **options):
    """Check that the heads in a folder compute what the raw tensors do, and the text is exact."""
    model = MedusaModel.from_pretrained(folder, all_heads=True, dtype=torch.float64, **options)
    hidden = torch.randn(4, 32, dtype=torch.float64)
    expected = head_logits(raw, hidden, own.lm_head.weight)
    torch.testing.assert_close(model.heads(hidden, model.lm_head), expected)
    assert model.generate(prompt(), **NEW).equal(own.generate(prompt(), **NEW))
    return model


SHAPES = [(1, True, True), (0, True, True), (2, True, True), (1, False, True), (2, False, False)]
"""Layers, own lm_heads and biases of heads."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("write", [pickled_heads, safe_heads, vllm_heads, mlc_heads])
def test_heads_alone_are_read(folder, own, write, shape):
    layers, own_lm_head, bias = shape
    raw = raw_heads(5, layers, own_lm_head, bias)
    write(folder, raw)
    model = check(folder, raw, own)
    config = model.heads.config
    assert (config.num_heads, config.num_layers) == (5, layers)
    assert config.own_lm_head == own_lm_head
    assert config.bias == (bias and layers > 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prefix", ["medusa_head.", "medusa_heads."])
def test_heads_inside_a_model_are_read_with_the_model(tmp_path, own, prefix, shape):
    layers, own_lm_head, bias = shape
    raw = raw_heads(3, layers, own_lm_head, bias)
    whole_model(tmp_path / "whole", raw, own, prefix=prefix)
    model = check(tmp_path / "whole", raw, own)
    assert not [name for name in model.base.state_dict() if "medusa" in name]


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_model_is_read_from_files_of_all_kinds(tmp_path, own, form):
    raw = raw_heads()
    whole_model(tmp_path / "whole", raw, own, form)
    model = check(tmp_path / "whole", raw, own)
    model.save_pretrained(tmp_path / "heads")
    named = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert named["base_model_name_or_path"] == "../whole"
    check(tmp_path / "heads", raw, own)


@pytest.fixture
def warnings_logged():
    """transformers logs warnings, which the command line turns off."""
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    yield
    logging.set_verbosity(before)


def test_transformers_reports_no_heads_but_other_tensors(tmp_path, own, warnings_logged, caplog):
    whole_model(tmp_path / "whole", raw_heads(), own)
    MedusaModel.from_pretrained(tmp_path / "whole")
    assert "medusa_head" not in caplog.text
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    MedusaModel.from_pretrained(tmp_path / "whole")
    assert "model.norm.weight" in caplog.text


def test_heads_inside_a_model_run_on_another_base_if_it_is_named(tmp_path, own):
    other, raw = tiny(dtype=torch.float64, seed=3), raw_heads()
    other.save_pretrained(tmp_path / "other")
    whole_model(tmp_path / "whole", raw, own)
    check(tmp_path / "whole", raw, other, base=tmp_path / "other")


def test_layers_that_are_tied_may_be_repeated_or_stored_once(folder, own):
    raw = raw_heads(3, 2, tied=True)
    pickled_heads(folder, raw)
    check(folder, raw, own)
    once = {name: tensor for name, tensor in raw.items() if ".1.linear." not in name}
    assert len(once) == len(raw) - 6
    torch.save(once, folder / "medusa_lm_head.pt")
    with pytest.warns(UserWarning, match="stores one layer of each head: the 2 layers are read"):
        check(folder, raw, own)


def test_pickles_of_torch_before_1_6_are_read(folder, own):
    raw = raw_heads()
    pickled_heads(folder, raw)
    file = folder / "medusa_lm_head.pt"
    torch.save(raw, file, _use_new_zipfile_serialization=False)
    check(folder, raw, own)


def test_only_the_heads_of_the_tree_are_read(folder):
    vllm_heads(folder, raw_heads(5))
    model = MedusaModel.from_pretrained(folder, tree=CandidateTree.chain(2))
    assert model.heads.config.num_heads == 2


def test_heads_in_half_precision_run_in_the_dtype_of_the_base(folder, own):
    raw = {name: tensor.half() for name, tensor in raw_heads().items()}
    pickled_heads(folder, raw)
    model = check(folder, raw, own)
    assert next(model.heads.parameters()).dtype == torch.float64


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_heads.0.weight"])
def test_a_shared_lm_head_must_be_that_of_the_base(folder, own, name):
    raw = raw_heads(own=False)
    vllm_heads(folder, raw, own.lm_head.weight, shared_name=name)
    check(folder, raw, own)
    vllm_heads(folder, raw, own.lm_head.weight + 1, shared_name=name)
    with pytest.raises(ValueError, match=rf"{name} is not the base model's lm_head"):
        MedusaModel.from_pretrained(folder)


def test_a_shared_lm_head_may_hold_the_draft_vocabulary_alone(folder, own):
    raw, tokens = raw_heads(own=False), torch.tensor([1, 5, 20, 42, 60])
    for wrong in (0, 1):
        vllm_heads(folder, raw, own.lm_head.weight[tokens] + wrong)
        file = folder / "model.safetensors"
        save_file({**load_file(file), "token_map": tokens}, file)
        if not wrong:
            model = MedusaModel.from_pretrained(folder, dtype=torch.float64)
            assert model.heads.token_map.equal(tokens)
            assert model.generate(prompt(), **NEW).equal(own.generate(prompt(), **NEW))
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the base model's lm_head"):
        MedusaModel.from_pretrained(folder)


@pytest.mark.parametrize("write", [pickled_heads, safe_heads, vllm_heads, mlc_heads, whole_model])
def test_heads_that_are_right_are_accepted(folder, own, write):
    """Heads whose lm_heads are fitted to the base's own text by least squares."""
    text = own.generate(prompt(), max_new_tokens=20, do_sample=False)
    states = MedusaModel.from_base(own).hidden_states(text[:, :20])[0]
    raw = raw_heads()
    for name, tensor in raw.items():
        head, last = int(name[0]), name.endswith(".1.weight")
        following = torch.nn.functional.one_hot(text[0, head + 2 : head + 22], VOCAB).to(states)
        tensor.copy_(torch.linalg.lstsq(states, following).solution.mT if last else tensor * 0)
    write(folder, raw, *([own] if write is whole_model else []))
    model = MedusaModel.from_pretrained(folder, dtype=torch.float64)
    output = model.generate(prompt(), return_dict_in_generate=True, **NEW)
    assert output.sequences.equal(own.generate(prompt(), **NEW))
    assert output.stats.acceleration_rate > 2.5


@pytest.mark.parametrize("name", ["N/A", None])
def test_heads_that_name_no_base_ask_for_it(folder, own, name):
    raw = raw_heads()
    pickled_heads(folder, raw, base=name)
    with pytest.raises(ValueError, match=r"does not name its base model: pass it .*base=.*--base"):
        MedusaModel.from_pretrained(folder)
    check(folder, raw, own, base=folder.parent / "base")
    (folder / "config.json").unlink()
    check(folder, raw, own, base=folder.parent / "base")


def without(name):
    return lambda raw: {key: tensor for key, tensor in raw.items() if key != name}


WRONG = [
    (without("1.0.linear.bias"), "missing tensor {bias}"),
    (without("1.1.weight"), "missing tensor {lm_head}"),
    (lambda raw: {**raw, "1.0.linear.bias": torch.zeros(7)}, r"{bias} has shape \[7\]"),
    (
        lambda raw: {**raw, "1.0.linear.weight": torch.zeros(32)},
        r"{weight} has shape \[32\], and a matrix",
    ),
    (
        lambda raw: {**raw, "1.0.linear.weight": torch.zeros(32, 32).int()},
        "{weight} holds int32",
    ),
    (
        lambda raw: {**raw, "1.0.linear.weight": torch.full((32, 32), torch.nan)},
        "{weight} holds NaN",
    ),
]
NAMES = {
    pickled_heads: ("1.0.linear.weight", "1.0.linear.bias", "1.1.weight"),
    mlc_heads: (
        "medusa_head.1.0.linear.weight",
        "medusa_head.1.0.linear.bias",
        "medusa_head.1.1.weight",
    ),
    vllm_heads: ("blocks.1.layers.0.weight", "blocks.1.layers.0.bias", "lm_heads.1.weight"),
}


@pytest.mark.parametrize(("change", "words"), WRONG)
@pytest.mark.parametrize("write", NAMES)
def test_the_error_names_a_wrong_tensor_as_its_file_does(folder, write, change, words):
    write(folder, change(raw_heads()))
    weight, bias, lm_head = map(re.escape, NAMES[write])
    with pytest.raises(ValueError, match=words.format(weight=weight, bias=bias, lm_head=lm_head)):
        MedusaModel.from_pretrained(folder)


@pytest.mark.parametrize("surplus", ["medusa_head.1.0.act.weight", "medusa_head.extra"])
def test_tensors_beside_heads_inside_a_model_are_refused(tmp_path, own, surplus):
    raw = {**raw_heads(), surplus.removeprefix("medusa_head."): torch.zeros(3)}
    whole_model(tmp_path, raw, own)
    with pytest.raises(ValueError, match=rf"not Medusa heads': {surplus}$"):
        MedusaModel.from_pretrained(tmp_path)


def test_tensors_beside_heads_alone_are_refused(folder):
    vllm_heads(folder, raw_heads())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "blocks.0.norm": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model\.safetensors: .*not Medusa heads': blocks\.0\.norm"
    ):
        MedusaModel.from_pretrained(folder)


def test_a_shard_that_is_missing_is_named(tmp_path, own):
    whole_model(tmp_path, raw_heads(), own, "pickles in shards")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match="pytorch_model-00002-of-00002"):
        MedusaModel.from_pretrained(tmp_path, base=own)


class Touching:
    """An object whose pickle creates a file when it is opened with code."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path, modern):
    mark = tmp_path / "code ran"
    pickled_heads(folder, raw_heads())
    evil = {**raw_heads(), "0.0.linear.weight": Touching(mark)}
    file = folder / "medusa_lm_head.pt"
    torch.save(evil, file, _use_new_zipfile_serialization=modern)
    with pytest.raises(ValueError, match=r"\.pt is refused: opening it would run code .*mkdir"):
        MedusaModel.from_pretrained(folder)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the pickle does run code"


def test_a_model_in_a_pickle_that_would_run_code_is_refused(tmp_path, own):
    whole_model(tmp_path / "whole", raw_heads(), own, "one pickle")
    file = tmp_path / "whole" / "pytorch_model.bin"
    torch.save({"model.norm.weight": Touching(tmp_path / "mark")}, file)
    with pytest.raises(ValueError, match=r"\.bin is refused: opening it would run code"):
        MedusaModel.from_pretrained(tmp_path / "whole")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole file of tensors"),
        (b"PK\x03\x04 and so on", "not a whole file of tensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "git lfs pull"),
    ],
)
def test_broken_pickles_are_named(folder, content, words):
    pickled_heads(folder, raw_heads())
    (folder / "medusa_lm_head.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"medusa_lm_head\.pt is .*{words}"):
        MedusaModel.from_pretrained(folder)


def test_a_pickle_without_names_is_refused(folder):
    pickled_heads(folder, raw_heads())
    torch.save([torch.zeros(2)], folder / "medusa_lm_head.pt")
    with pytest.raises(ValueError, match="holds a list, and named tensors are needed"):
        find_heads(folder)


def test_no_base_model_is_taken_for_heads(tmp_path, own):
    write_config(tmp_path, model_type="llama")
    for form in FORMS:
        store(tmp_path, {name: t.clone() for name, t in own.state_dict().items()}, form)
        assert StoredHeads.find(tmp_path) is None
        assert find_heads(tmp_path) is None


def test_saving_beside_heads_in_another_format_is_refused(folder, own):
    pickled_heads(folder, raw_heads(5))
    model = MedusaModel.from_pretrained(folder, all_heads=True)
    with pytest.raises(ValueError, match=r"another format \(medusa_lm_head\.pt\): save in another"):
        model.save_pretrained(folder)
    foreign.whole_model(folder.parent / "whole", raw_heads(), own)
    with pytest.raises(ValueError, match="holds a model"):
        MedusaModel.from_pretrained(folder.parent / "whole").save_pretrained(
            folder.parent / "whole"
        )
