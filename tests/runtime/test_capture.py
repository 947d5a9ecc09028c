import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.core.slots import BLOCK, power_of_two
from medusa.runtime.capture import Captured, Captures

NEW = 30
TREE = CandidateTree.default(3, 8)
NAMES = ["llama", "mistral", "gemma3_text", "gpt2", "opt", "falcon", "olmo2"]


def capturing(name):
    model = MedusaModel.from_base(tiny(name), num_heads=3, tree=TREE)
    model.capture = True
    return model


def scripted(model, ids):
    text = model.base.generate(ids, max_new_tokens=NEW + 8, do_sample=False).tolist()
    model.heads = ScriptedHeads(model, text, 0.7)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_static_shapes_give_the_base_models_text(name):
    model, ids = capturing(name), varied_prompt(name)
    text = scripted(model, ids)
    for _ in range(2):
        output = model.generate(
            ids, max_new_tokens=NEW, do_sample=False, tree=TREE, return_dict_in_generate=True
        )
        assert output.sequences.tolist()[0] == text[0][: ids.shape[1] + NEW]
        assert output.stats.acceleration_rate > 1.2
    assert len(model.captures) == 1, (
        "one shape, and the second request used what the first had captured"
    )


def test_rows_of_different_lengths():
    model, ids = capturing("llama"), varied_prompt("llama")
    short = ids[:, 4:]
    batch = torch.cat([ids, torch.cat([torch.zeros_like(ids[:, :4]), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    model.heads = ScriptedHeads(
        model,
        [
            model.base.generate(x, max_new_tokens=NEW + 8, do_sample=False)[0].tolist()
            for x in (ids, short)
        ],
        0.7,
    )
    output = model.generate(
        batch, attention_mask=mask, max_new_tokens=NEW, do_sample=False, tree=TREE
    )
    for row, prompt in zip(output[:, ids.shape[1] :], (ids, short), strict=True):
        alone = model.base.generate(prompt, max_new_tokens=NEW, do_sample=False)[
            0, prompt.shape[1] :
        ]
        assert row.tolist() == alone.tolist()


def test_a_longer_text_needs_another_capture():
    model = MedusaModel.from_base(tiny(max_position_embeddings=1024), num_heads=3, tree=TREE)
    model.capture = True
    ids = varied_prompt("llama").repeat(1, 20)[:, : BLOCK - 20]
    expected = model.base.generate(ids, max_new_tokens=40, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=40, do_sample=False, tree=TREE), expected)
    (shape, *_) = model.captures._captured
    assert shape == (1, 8, 2 * BLOCK), "the smaller shape is forgotten"


def test_other_weights_drop_the_captures():
    model, ids = capturing("llama"), varied_prompt("llama")
    model.generate(ids, max_new_tokens=5, do_sample=False)
    before = model.captures.state
    with torch.no_grad():
        layer = model.base.model.layers[0].mlp.down_proj
        layer.weight = torch.nn.Parameter(layer.weight * -3)
    expected = model.base.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), expected)
    assert model.captures.state != before


def test_two_simultaneous_requests_do_not_share_columns():
    model, ids = capturing("llama"), varied_prompt("llama")
    other = ids[:, 3:]
    sessions = [model.steps(x, max_new_tokens=10, do_sample=False) for x in (ids, other)]
    for _ in zip(*map(iter, sessions), strict=False):
        pass
    for session in sessions:
        for _ in session if not session.rows[0].finished else ():
            pass
    for session, prompt in zip(sessions, (ids, other), strict=True):
        expected = model.base.generate(prompt, max_new_tokens=10, do_sample=False)[0].tolist()
        assert session.rows[0].ids == expected[: len(session.rows[0].ids)]


def test_inputs_are_copied_and_each_shape_is_captured_once():
    calls = []

    def double(x):
        calls.append(x.data_ptr())
        return 2 * x

    captured = Captured(double, {"x": torch.ones(3)})
    assert torch.equal(captured(double, {"x": torch.full((3,), 5.0)}), torch.full((3,), 10.0))
    captured(double, {"x": torch.zeros(3)})
    assert len(set(calls)) == 1, "always the same buffer"
    captures = Captures()
    for state, key in ((1, "a"), (1, "b"), (1, "a"), (2, "a")):
        captures.run(state, key, double, {"x": torch.ones(2)})
    assert len(captures) == 1, "another state forgets"


@pytest.mark.parametrize(
    ("columns", "power"), [(1, 1), (256, 1), (257, 2), (512, 2), (513, 4), (1025, 8)]
)
def test_powers_of_two(columns, power):
    assert power_of_two(columns, BLOCK) == power * BLOCK


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures graphs on a GPU only")
@pytest.mark.parametrize("name", NAMES)
def test_graphs_give_the_base_models_text(name):
    base = tiny(name, torch.float32).to("cuda")
    model, ids = MedusaModel.from_base(base, num_heads=3, tree=TREE), varied_prompt(name).to("cuda")
    assert model.captures_steps
    expected = base.generate(ids, max_new_tokens=NEW, do_sample=False)
    for _ in range(2):
        assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False), expected)


def test_another_dtype_drops_the_captures():
    model, ids = capturing("llama"), varied_prompt("llama")
    model.generate(ids, max_new_tokens=4, do_sample=False, tree=TREE)
    model.float()
    expected = model.base.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(
        model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE), expected
    )
