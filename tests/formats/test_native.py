import json

import pytest
import torch
from models import COMMON, prompt, publish, tiny
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPTNeoConfig,
    MambaConfig,
    T5Config,
)

from medusa import CandidateTree, MedusaModel
from medusa.core.schedule import UNCALIBRATED, Calibration
from medusa.formats.names import CONFIG, TREE, WEIGHTS, find_heads, is_native
from medusa.formats.native import named_base, read_tree
from medusa.hardware.provenance import device_name

OWN_TREE = CandidateTree([(0,), (3,), (3, 1), (3, 1, 0)])


@pytest.fixture(scope="module")
def base():
    return tiny("llama", torch.float32)


def trained(base, **options):
    """Heads that differ from new ones everywhere."""
    model = MedusaModel.from_base(base, num_heads=3, tree=OWN_TREE, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.heads.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_heads_and_tree_come_back_as_they_went(base, tmp_path, own, num_layers, bias):
    if not own and num_layers == 0:
        pytest.skip("heads without any parameter")
    model = trained(base, own_lm_head=own, num_layers=num_layers, bias=bias)
    model.save_pretrained(tmp_path / "deep" / "heads")
    again = MedusaModel.from_pretrained(tmp_path / "deep" / "heads", base=base)
    assert again.tree == OWN_TREE
    for mine, theirs in zip(model.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    hidden = torch.randn(4, 32)
    assert torch.equal(model.heads(hidden, model.lm_head), again.heads(hidden, again.lm_head))


@pytest.mark.parametrize("own", [True, False])
def test_heads_that_the_tree_does_not_use_are_not_loaded_and_not_lost(base, tmp_path, own):
    model = trained(base, own_lm_head=own)
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


def test_a_calibration_comes_back_and_tells_where_it_does_not_fit(base, tmp_path):
    model = trained(base)
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


def test_a_calibration_that_found_nothing_decodes_plainly_and_says_so(base, tmp_path):
    model = trained(base)
    model.tree = CandidateTree()
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no tree that pays"):
        again = MedusaModel.from_pretrained(tmp_path, base=base)
    output = again.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=5, return_dict_in_generate=True
    )
    assert set(output.stats.step_nodes) == {1}


def test_tensors_have_the_names_of_the_original_format(base, tmp_path):
    trained(base, num_layers=2).save_pretrained(tmp_path)
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


def test_the_shape_is_counted_from_the_tensors(base, tmp_path):
    """Released files name other head counts than they hold."""
    model = trained(base)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config.update(medusa_num_heads=5, medusa_num_layers=7, hidden_size=1, vocab_size=2)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert MedusaModel.from_pretrained(tmp_path, base=base).heads.config == model.heads.config


def test_a_base_model_that_is_gone_is_named(tmp_path):
    heads = trained(tiny("llama", torch.float32))
    for name in ("../away", str(tmp_path / "away"), "model"):
        heads.save_pretrained(tmp_path / "heads", base=name)
        place = (tmp_path / "heads" / name).resolve()
        with pytest.raises(FileNotFoundError, match=f"base model in {place}, which is not there"):
            named_base(tmp_path / "heads")


def test_the_base_model_is_loaded_by_the_name_it_is_given(tmp_path):
    own = tiny("llama", torch.float32)
    own.save_pretrained(tmp_path / "heads" / "base")
    trained(own).save_pretrained(tmp_path / "heads", base="base")
    model = MedusaModel.from_pretrained(tmp_path / "heads")
    assert torch.equal(model.base(prompt()).logits, own(prompt()).logits)
    trained(MedusaModel.from_base(tmp_path / "heads" / "base").base).save_pretrained(
        tmp_path / "other"
    )
    assert named_base(tmp_path / "other").name == str(tmp_path / "other" / "../heads/base")
    trained(own).save_pretrained(tmp_path / "unnamed")
    by_name = MedusaModel.from_pretrained(
        tmp_path / "unnamed", base=tmp_path / "heads" / "base", dtype=torch.bfloat16
    )
    assert by_name.dtype == next(by_name.heads.parameters()).dtype == torch.bfloat16


def test_heads_of_an_unnamed_base_ask_for_it(base, tmp_path):
    trained(base).save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "N/A"
    with pytest.raises(
        ValueError, match=r"does not name its base model: pass it \(from_pretrained\(\.\.\., base="
    ):
        MedusaModel.from_pretrained(tmp_path)


def test_a_tree_given_replaces_the_folders_and_none_means_the_default(base, tmp_path):
    trained(base).save_pretrained(tmp_path)
    chain = CandidateTree.chain(2)
    assert MedusaModel.from_pretrained(tmp_path, base=base, tree=chain).tree == chain
    (tmp_path / TREE).unlink()
    assert read_tree(tmp_path) is None
    assert MedusaModel.from_pretrained(tmp_path, base=base).tree == CandidateTree.default(3)


def test_loading_leaves_no_trace_of_the_saved_file(base, tmp_path):
    """The text is the same after a round trip, and the heads stand where the base stands."""
    model = trained(base)
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
def test_heads_of_another_base_are_refused_by_size(base, tmp_path, changes, words):
    trained(base).save_pretrained(tmp_path)
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
def test_what_does_not_fit_is_named(base, tmp_path, change, words):
    trained(base).save_pretrained(tmp_path)
    save_file(change(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=words):
        MedusaModel.from_pretrained(tmp_path, base=base)


def test_folders_that_are_not_heads_are_named(base, tmp_path):
    assert not is_native(tmp_path)
    with pytest.raises(
        ValueError, match=r"neither Medusa heads nor a model: it has no config\.json"
    ):
        MedusaModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_heads(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_heads("./nowhere")
    trained(base).save_pretrained(tmp_path)
    assert is_native(tmp_path)
    assert find_heads(tmp_path) == tmp_path


def test_heads_go_to_the_hub_and_come_from_there(monkeypatch, tmp_path):
    cache = tmp_path / "hub"

    class Hub:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            assert (private, exist_ok) == (True, True)
            assert repo_id != "owner/base", "a refused push makes no repository"

        def file_exists(self, repo_id, name, revision):
            return repo_id == "owner/base" and name == CONFIG

        def upload_folder(self, repo_id, folder_path, **options):
            publish(folder_path, cache, repo_id)
            return f"https://hub/{repo_id}/{options['revision']}"

    monkeypatch.setattr("medusa.loading.model.HfApi", Hub)
    own = tiny("llama", torch.float32)
    own.save_pretrained(tmp_path / "base")
    publish(tmp_path / "base", cache, "owner/base")
    from_folder = trained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    pushed = {"private": True, "token": "secret", "revision": "main"}
    with pytest.raises(
        ValueError, match="which others do not have: name its hub id, base='owner/name'"
    ):
        from_folder.push_to_hub("owner/heads", **pushed)
    with pytest.raises(ValueError, match="has no name"):
        trained(own).push_to_hub("owner/heads", **pushed)
    with pytest.raises(ValueError, match=r"owner/base holds a model, whose config\.json"):
        from_folder.push_to_hub("owner/base", base="owner/base", **pushed)
    assert (
        from_folder.push_to_hub("owner/heads", base="owner/base", **pushed)
        == "https://hub/owner/heads/main"
    )
    again = MedusaModel.from_pretrained("owner/heads", cache_dir=cache, local_files_only=True)
    assert again.tree == OWN_TREE
    options = {"max_new_tokens": 8, "do_sample": False}
    assert (
        again.generate(prompt(), **options).tolist()
        == from_folder.generate(prompt(), **options).tolist()
    )


def refused(config, loader=AutoModelForCausalLM):
    with pytest.raises(ValueError) as problem:  # noqa: PT011
        MedusaModel.from_base(loader.from_config(config), num_heads=2)
    return str(problem.value)


def test_bases_that_cannot_verify_a_tree_are_refused_with_the_remedy():
    t5 = T5Config(vocab_size=61, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    assert "decoder-only" in refused(t5, AutoModelForSeq2SeqLM)
    mamba = MambaConfig(vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert "use a model whose layers are all attention" in refused(mamba)
    bloom = BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2)
    assert "use a model with rotary or learnt positions" in refused(bloom)
    falcon = AutoConfig.for_model(
        "falcon", **COMMON, alibi=True, new_decoder_architecture=True, num_kv_heads=2
    )
    assert "use a model with rotary or learnt positions" in refused(falcon)


def test_local_attention_by_column_is_refused():
    neo = GPTNeoConfig(
        vocab_size=61,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
    )
    assert "local attention" in refused(neo)


def test_arguments_for_loading_are_refused_beside_a_loaded_model(base, tmp_path):
    with pytest.raises(TypeError, match="num_head: unknown"):
        MedusaModel.from_base(base, num_head=3)
    trained(base).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="dtype"):
        MedusaModel.from_pretrained(tmp_path, base=base, dtype=torch.bfloat16)
    assert MedusaModel.from_pretrained(tmp_path, base=base, local_files_only=True).tree == OWN_TREE
    with pytest.raises(TypeError, match="get_base_model"):
        MedusaModel.from_base(torch.nn.Linear(2, 2))


def test_flash_attention_is_refused_with_the_remedy():
    own = tiny("llama", torch.float32)
    own.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match="takes no tree mask; load it with attn_implementation='sdpa'"
    ):
        MedusaModel.from_base(own, num_heads=2)


def test_flash_attention_asked_for_by_name_becomes_sdpa_with_a_warning(tmp_path):
    tiny("llama", torch.float32).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="sdpa"):
        model = MedusaModel.from_base(
            tmp_path, num_heads=2, attn_implementation="flash_attention_2"
        )
    assert model.base.config._attn_implementation == "sdpa"


def test_a_base_that_mixes_in_running_states_is_refused():
    own = tiny("llama", torch.float32)
    own.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        MedusaModel.from_base(own, num_heads=2)


@pytest.mark.parametrize(
    ("embedding", "lm_head"), [("cpu", "cpu"), ("cpu", "disk"), ("disk", "disk")]
)
def test_a_base_that_is_offloaded_decodes_the_same(tmp_path, embedding, lm_head):
    pytest.importorskip("accelerate")
    own = tiny("llama", torch.float32)
    own.save_pretrained(tmp_path / "base")
    MedusaModel.from_base(own, num_heads=2).save_pretrained(tmp_path / "heads", base="../base")
    layers = {f"model.layers.{number}": "disk" for number in range(own.config.num_hidden_layers)}
    places = {
        "model.embed_tokens": embedding,
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": lm_head,
    }
    model = MedusaModel.from_pretrained(
        tmp_path / "heads", device_map={**places, **layers}, offload_folder=tmp_path / "offloaded"
    )
    assert any(parameter.is_meta for parameter in model.base.parameters())
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = own.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), expected)


# --- broken files

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
        told = json.loads((folder / TREE).read_text())
        (folder / TREE).write_text(json.dumps({**told, name: value}))

    return write


@pytest.mark.parametrize(
    ("damage", "said"),
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
            r"0\.1\.weight holds I32",
        ),
        (
            rewritten(lambda named: named.update({"0.1.weight": torch.ones(61)})),
            r"0\.1\.weight has shape \[61\]",
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
def test_a_broken_file_is_named_with_its_field(base, tmp_path, damage, said):
    trained(base).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=said):
        MedusaModel.from_pretrained(tmp_path, base=base)


def test_a_broken_base_is_named(tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"model\.safetensors is a Git LFS pointer"):
        MedusaModel.from_base(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", "", '{"model_type": '])
def test_a_broken_configuration_of_a_base_is_named(base, tmp_path, text):
    base.save_pretrained(tmp_path / "base")
    trained(base).save_pretrained(tmp_path / "heads", base="../base")
    (tmp_path / "base" / CONFIG).write_text(text)
    for load in (
        lambda: MedusaModel.from_base(tmp_path / "base"),
        lambda: MedusaModel.from_pretrained(tmp_path / "heads"),
        lambda: MedusaModel.from_pretrained(tmp_path / "heads", base=tmp_path / "base"),
        lambda: find_heads(tmp_path / "base"),
    ):
        with pytest.raises(ValueError, match=r"base/config\.json: (the whole file|not JSON)"):
            load()


def test_broken_heads_are_not_saved(base, tmp_path):
    model = trained(base)
    model.save_pretrained(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    model.heads.w2.data[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"1\.1\.weight holds NaN"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_heads_do_not_replace_a_model(base, tmp_path):
    base.save_pretrained(tmp_path / "base")
    before = {each.name: each.read_bytes() for each in (tmp_path / "base").iterdir()}
    model = MedusaModel.from_base(tmp_path / "base", 2)
    for options in ({}, {"base": "."}):
        with pytest.raises(
            ValueError, match=r"base holds a model, whose config\.json .*another folder"
        ):
            model.save_pretrained(tmp_path / "base", **options)
    model.save_pretrained(tmp_path)
    assert {each.name: each.read_bytes() for each in (tmp_path / "base").iterdir()} == before


@pytest.mark.parametrize("failing", ["write_json", "save_file", "write_tree"])
def test_a_save_that_fails_leaves_the_heads_of_before(base, tmp_path, monkeypatch, failing):
    model = trained(base)
    model.save_pretrained(tmp_path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(f"medusa.formats.native.{failing}", full)
    model.tree = CandidateTree.chain(2)
    model.heads.w2.data.add_(1)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_saved_files_have_the_permissions_of_any_new_file(base, tmp_path):
    (tmp_path / "plain").touch()
    trained(base).save_pretrained(tmp_path / "heads")
    modes = {each.stat().st_mode for each in (tmp_path / "heads").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_heads_whose_weights_are_gone_may_be_saved_again(base, tmp_path):
    """Their configuration alone is not a model's."""
    trained(base).save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    trained(base).save_pretrained(tmp_path)
    assert is_native(tmp_path)
