"""Errors name the broken file, and its field or tensor."""

import json

import pytest
import torch
from models import changed_heads, tiny
from safetensors.torch import load_file, save_file

from medusa import MedusaModel
from medusa.formats.names import CONFIG, TREE, WEIGHTS, find_heads

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"


def rewritten(change):
    def write(folder):
        named = load_file(folder / WEIGHTS)
        change(named)
        save_file(named, folder / WEIGHTS)

    return write


def content(file, text):
    return lambda folder: (folder / file).write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


def field(name, value):
    def write(folder):
        tree_file = json.loads((folder / TREE).read_text())
        (folder / TREE).write_text(json.dumps({**tree_file, name: value}))

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (content(WEIGHTS, ""), rf"{WEIGHTS} is not a whole safetensors file"),
        (content(WEIGHTS, b"\x10\0\0\0\0\0\0\0{"), rf"{WEIGHTS} is not a whole safetensors file"),
        (content(WEIGHTS, POINTER), rf"{WEIGHTS} is a Git LFS pointer, .*git lfs pull"),
        (
            rewritten(
                lambda named: named.update({"0.99999999.linear.weight": torch.zeros(32, 32)})
            ),
            "missing tensor",
        ),
        (
            rewritten(
                lambda named: named.update({"999999999.0.linear.weight": torch.zeros(32, 32)})
            ),
            "missing tensor",
        ),
        (
            rewritten(lambda named: named.update({"00.0.linear.weight": torch.zeros(32, 32)})),
            "not Medusa heads",
        ),
        (
            rewritten(lambda named: named["1.0.linear.bias"].fill_(torch.nan)),
            r"1\.0\.linear\.bias holds NaN",
        ),
        (
            rewritten(lambda named: named["2.1.weight"].fill_(torch.inf)),
            r"2\.1\.weight holds NaN or infinite",
        ),
        (
            rewritten(lambda named: named.update({"0.1.weight": torch.ones(61, 32).int()})),
            r"0\.1\.weight holds int32",
        ),
        (
            rewritten(lambda named: named.update({"0.1.weight": torch.ones(61)})),
            r"0\.1\.weight has shape \[61\]",
        ),
        (
            rewritten(lambda named: named.update({"token_map": torch.tensor(3)})),
            "unknown tensor token_map",
        ),
        (
            rewritten(lambda named: named.update({"token_map": torch.tensor([3, 61])})),
            "token_map must hold ids from 0 to 60 in ascending order",
        ),
        (
            rewritten(lambda named: named.update({"token_map": torch.arange(62)})),
            "draft_vocab_size must lie in 1 to 61, got 62",
        ),
        (
            rewritten(lambda named: named.update({"token_map": torch.tensor([3.0, 4.0])})),
            "token_map holds float32, and ids are int64",
        ),
        (content(CONFIG, "[]"), rf"{CONFIG}: the whole file: input should be an object"),
        (content(CONFIG, "null"), rf"{CONFIG}: the whole file"),
        (content(CONFIG, "3"), rf"{CONFIG}: the whole file"),
        (content(CONFIG, ""), rf"{CONFIG}: not JSON"),
        (
            content(CONFIG, '{"base_model_name_or_path": 3}'),
            rf"{CONFIG}: base_model_name_or_path: ",
        ),
        (content(CONFIG, '{"version": 99}'), rf"{CONFIG}: version: 99 is unknown"),
        (content(CONFIG, '{"adapter": "../elsewhere"}'), rf"{CONFIG}: adapter: "),
        (content(TREE, ""), rf"{TREE}: not JSON"),
        (content(TREE, "[[0]]"), rf"{TREE}: the whole file"),
        (content(TREE, '{"version": 1}'), rf"{TREE}: paths: field required"),
        (field("paths", None), rf"{TREE}: paths: "),
        (field("paths", [[0.7]]), rf"{TREE}: paths\[0\]\[0\]: "),
        (field("paths", [[True]]), rf"{TREE}: paths\[0\]\[0\]: "),
        (field("paths", [["0"]]), rf"{TREE}: paths\[0\]\[0\]: "),
        (field("paths", [[0, 0]]), rf"{TREE}: paths: path \(0, 0\) needs its parent"),
        (field("paths", [[61]]), "rank 61 but the vocabulary has 61 tokens"),
        (field("version", 99), rf"{TREE}: version: "),
        (field("version", True), rf"{TREE}: version: "),
        (field("version", "1"), rf"{TREE}: version: "),
        (field("accuracies", [[]]), rf"{TREE}: accuracies\[0\]: "),
        (field("accuracies", [[0.5, 0.4]]), rf"{TREE}: accuracies: "),
        (field("accuracies", [[1.5]]), rf"{TREE}: accuracies\[0\]\[0\]: "),
        (field("latency", {}), rf"{TREE}: latency: the time of one node"),
        (field("latency", {"1": -3.0}), rf"{TREE}: latency"),
        (field("latency", {"one": 3.0}), rf"{TREE}: latency"),
    ],
)
def test_the_error_names_the_broken_file_and_its_field(base, tmp_path, damage, message):
    changed_heads(base).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        MedusaModel.from_pretrained(tmp_path, base=base)


def test_the_error_names_the_broken_weights_of_a_base(tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"model\.safetensors is a Git LFS pointer"):
        MedusaModel.from_base(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", "", '{"model_type": '])
def test_the_error_names_the_broken_configuration_of_a_base(base, tmp_path, text):
    base.save_pretrained(tmp_path / "base")
    changed_heads(base).save_pretrained(tmp_path / "heads", base="../base")
    (tmp_path / "base" / CONFIG).write_text(text)
    for load in (
        lambda: MedusaModel.from_base(tmp_path / "base"),
        lambda: MedusaModel.from_pretrained(tmp_path / "heads"),
        lambda: MedusaModel.from_pretrained(tmp_path / "heads", base=tmp_path / "base"),
        lambda: find_heads(tmp_path / "base"),
    ):
        with pytest.raises(ValueError, match=r"base/config\.json: (the whole file|not JSON)"):
            load()
