"""Texts near and past the end of a model's positions, and of the positions that its rotary
frequencies hold for.
"""

import pytest
import torch
from models import ScriptedHeads, prompt, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.core.positions import Positions

LIMIT = 32
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "rope_theta": 1e4,
}
ROPES = {
    "longrope": {
        "name": "phi3",
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": LIMIT,
        "sliding_window": None,
    },
    "dynamic": {
        "name": "llama",
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        "max_position_embeddings": LIMIT,
    },
    "one layer's dynamic": {
        "name": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "max_position_embeddings": LIMIT,
    },
}
TABLE = {"max_position_embeddings": LIMIT}
TABLES = {
    "gpt2": {**TABLE, "n_positions": LIMIT},
    "opt": TABLE,
    "gptj": {
        **TABLE,
        "n_positions": LIMIT,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
    },
}


def table_model(name):
    return tiny(name, attention="eager", **TABLES[name])


def with_heads(base, text=None, depth=3):
    model = MedusaModel.from_base(
        base, num_heads=depth, tree=CandidateTree.dense([2, 2, 1][:depth])
    )
    if text is not None:
        with torch.inference_mode():
            model.heads = ScriptedHeads(model, [text[:LIMIT]], 1.0)
    return model


@pytest.mark.parametrize("kind", ROPES)
def test_texts_may_not_grow_past_a_change_of_frequencies(kind):
    base = tiny(**ROPES[kind])
    model = with_heads(base)
    length = 20
    longest_answer = LIMIT + 1 - length
    expected = base.generate(prompt(length), max_new_tokens=longest_answer, do_sample=False)
    assert (
        model.generate(prompt(length), max_new_tokens=longest_answer, do_sample=False).tolist()
        == expected.tolist()
    )
    with pytest.raises(
        ValueError, match=f"rotary frequencies change: pass max_new_tokens <= {longest_answer}"
    ):
        model.generate(prompt(length), max_new_tokens=longest_answer + 1)


def test_longrope_changes_once_and_dynamic_ntk_always():
    long = tiny(**ROPES["longrope"])
    ids = prompt(LIMIT + 4)
    expected = long.generate(ids, max_new_tokens=12, do_sample=False)
    assert (
        with_heads(long).generate(ids, max_new_tokens=12, do_sample=False).tolist()
        == expected.tolist()
    )
    with pytest.raises(ValueError, match=r"rotary frequencies change: call model\.base"):
        with_heads(tiny(**ROPES["dynamic"])).generate(ids, max_new_tokens=12)


def test_prompts_on_both_sides_of_a_change_decode_in_one_call():
    model = with_heads(tiny(**ROPES["longrope"]))
    ids = prompt(LIMIT + 4).expand(3, -1)
    mask = torch.ones(3, LIMIT + 4, dtype=torch.long)
    mask[1, : LIMIT - 6] = 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=5)[:, LIMIT + 4 :]
    for row, expected in enumerate((ids[:1], ids[:1, LIMIT - 6 :], ids[:1])):
        alone = model.base.generate(expected, max_new_tokens=5, do_sample=False)
        assert together[row].tolist() == alone[0, expected.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_constant_frequencies_do_not_limit_texts(kind):
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind != "linear":
        rope["original_max_position_embeddings"] = LIMIT
    base = tiny("llama", rope_parameters=rope, max_position_embeddings=4 * LIMIT)
    ids = prompt(LIMIT - 4)
    expected = base.generate(ids, max_new_tokens=20, do_sample=False)
    assert (
        with_heads(base).generate(ids, max_new_tokens=20, do_sample=False).tolist()
        == expected.tolist()
    )
    assert Positions.of(base).change is None


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("length", [20, LIMIT - 1, LIMIT])
@pytest.mark.parametrize("right", [False, True])
def test_a_text_may_use_all_positions_of_a_table(name, length, right):
    """A text may have one token more, because its last token is never run."""
    base = table_model(name)
    longest_answer = LIMIT + 1 - length
    expected = base.generate(prompt(length), max_new_tokens=longest_answer, do_sample=False)
    model = with_heads(base, expected[0].tolist() if right else None)
    assert (
        model.generate(prompt(length), max_new_tokens=longest_answer, do_sample=False).tolist()
        == expected.tolist()
    )
    beyond = {"max_new_tokens": longest_answer + 5, "do_sample": False}
    with pytest.raises((IndexError, RuntimeError)):
        base.generate(prompt(length), **beyond)
    with pytest.raises(ValueError, match=f"only {LIMIT} positions"):
        model.generate(prompt(length), **beyond)
    assert (
        model.generate(prompt(length), within_positions=True, **beyond).tolist()
        == expected.tolist()
    )


def test_max_new_tokens_may_exceed_the_table_if_the_text_ends_before():
    base = table_model("gpt2")
    ids = prompt(20)
    end = base.generate(ids, max_new_tokens=10, do_sample=False)[0, -1].item()
    options = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    expected = base.generate(ids, **options)
    assert (
        with_heads(base, expected[0].tolist()).generate(ids, **options).tolist()
        == expected.tolist()
    )


def test_a_prompt_longer_than_the_table_is_refused():
    with pytest.raises(
        ValueError, match=f"a prompt has {LIMIT + 1} tokens and the model has {LIMIT} positions"
    ):
        with_heads(table_model("gpt2")).generate(prompt(LIMIT + 1), max_new_tokens=1)


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "gpt2", "llama"])
def test_each_row_of_a_batch_ends_where_its_positions_end(kind):
    base = {
        "gpt2": lambda: table_model("gpt2"),
        "llama": lambda: tiny("llama", max_position_embeddings=LIMIT),
    }.get(kind, lambda: tiny(**ROPES[kind]))()
    ids, mask = prompt(28), torch.ones(2, 28, dtype=torch.long)
    mask[1, :10] = 0
    output = with_heads(base).generate(
        ids.expand(2, -1),
        attention_mask=mask,
        max_new_tokens=40,
        do_sample=False,
        within_positions=True,
        pad_token_id=0,
    )
    for row, begin in enumerate((0, 10)):
        longest_answer = LIMIT + 1 - (28 - begin)
        alone = base.generate(ids[:, begin:], max_new_tokens=longest_answer, do_sample=False)[
            0
        ].tolist()
        assert output[row, begin : begin + LIMIT + 1].tolist() == alone
        assert not output[row, begin + LIMIT + 1 :].any()


def test_a_prompt_that_fills_all_positions_is_refused():
    model = with_heads(tiny("llama", max_position_embeddings=LIMIT))
    with pytest.raises(
        ValueError, match=f"the prompt has {LIMIT + 1} tokens and the model holds {LIMIT}"
    ):
        model.generate(prompt(LIMIT + 1), max_new_tokens=5, within_positions=True)
    assert (
        model.generate(varied_prompt("llama"), max_new_tokens=30, do_sample=False).shape[1] == 42
    ), "not capped"
