from functools import cache

import pytest
import torch
from models import ARCHITECTURES, ScriptedHeads, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel

HEADS = 3
NEW = 40
TREES = {
    "chain": CandidateTree.chain(3),
    "default": CandidateTree.default(HEADS, 4),
    "dense": CandidateTree.dense([3, 2, 2]),
}
ACCURACIES = {"random": None, "perfect": 1.0, "sometimes": 0.6}
BACKENDS = [
    (name, attention)
    for name in ARCHITECTURES
    for attention in ("eager", "sdpa")
    if (name, attention) != ("gemma2", "sdpa")  # transformers refuses it
]


@cache
def base_with_greedy_text(name, attention, dtype=torch.float64, length=12):
    """Return a base model, a prompt [1, P] and the base's greedy text, longer than tests need."""
    base = tiny(name, dtype, attention)
    ids = varied_prompt(name, length)
    return base, ids, base.generate(ids, max_new_tokens=NEW + HEADS + 1, do_sample=False)


def with_heads(base, texts, accuracy, seed=0):
    """Return the base with heads of this accuracy; None gives heads with random weights."""
    model = MedusaModel.from_base(base, num_heads=HEADS)
    if accuracy is not None:
        with torch.inference_mode():
            model.heads = ScriptedHeads(model, texts, accuracy, seed)
        return model
    torch.manual_seed(seed)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    return model


def run(model, ids, tree, **kwargs):
    """Return the greedy text of every row and the statistics."""
    output = model.generate(ids, tree=tree, do_sample=False, return_dict_in_generate=True, **kwargs)
    return output.sequences, output.stats


@pytest.mark.parametrize("heads", ACCURACIES)
@pytest.mark.parametrize(("name", "attention"), BACKENDS)
def test_greedy_text_equals_that_of_the_base_model(name, attention, heads):
    base, ids, text = base_with_greedy_text(name, attention)
    model = with_heads(base, text.tolist(), ACCURACIES[heads])
    for tree in TREES.values():
        sequences, stats = run(model, ids, tree, max_new_tokens=NEW)
        assert sequences.tolist() == text[:, : ids.shape[1] + NEW].tolist()
        assert stats.tokens == NEW - 1
        most = tree.max_depth + 1
        if heads == "perfect":
            assert stats.accepted.total() - stats.accepted[most] <= 1, (
                "only the last step may give less"
            )
        if heads == "sometimes":
            assert stats.acceleration_rate > 1
            assert min(stats.accepted) == 1 < most in stats.accepted


@pytest.mark.slow
def test_in_single_precision_only_near_ties_may_differ():
    differing, runs = 0, 0
    for name, attention in BACKENDS:
        base, ids, text = base_with_greedy_text(name, attention, torch.float32)
        expected = text[0, : ids.shape[1] + NEW].tolist()
        for heads in ACCURACIES:
            model = with_heads(base, text.tolist(), ACCURACIES[heads])
            for tree in TREES.values():
                given = run(model, ids, tree, max_new_tokens=NEW)[0][0].tolist()
                runs += 1
                if given == expected:
                    continue
                differing += 1
                same = next(
                    n for n, (a, b) in enumerate(zip(given, expected, strict=True)) if a != b
                )
                with torch.inference_mode():
                    first, second = (
                        base(torch.tensor([expected[:same]])).logits[0, -1].topk(2).values
                    )
                assert first - second <= 1e-4, f"{name} {attention} {heads} differs at {same}"
    assert differing <= 0.02 * runs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")
def test_flex_attention_verifies_trees():
    """Only a few tokens are decoded, because each new length of the cache is compiled."""
    base, ids, text = base_with_greedy_text("llama", "sdpa", torch.float32)
    flex = tiny("llama", torch.float32, "flex_attention")
    model = with_heads(base, text.tolist(), 0.6)
    model = MedusaModel(flex, model.heads, TREES["default"])
    sequences, stats = run(model, ids, TREES["default"], max_new_tokens=10)
    assert sequences.tolist() == text[:, : ids.shape[1] + 10].tolist()
    assert stats.acceleration_rate > 1


BATCHED = ["llama", "mistral", "gpt2", "opt"]
LENGTHS = (5, 12, 9)


def padded(prompts):
    """Return left-padded ids [B, P] and their mask."""
    width = max(each.shape[1] for each in prompts)
    ids = torch.cat([torch.nn.functional.pad(each, (width - each.shape[1], 0)) for each in prompts])
    mask = torch.cat(
        [
            torch.nn.functional.pad(torch.ones_like(each), (width - each.shape[1], 0))
            for each in prompts
        ]
    )
    return ids, mask


def last_new_word(text):
    """Return the token that first occurs last, so that a text that ends at it is long."""
    return max(set(text[: NEW - 4]), key=text.index)


@pytest.mark.parametrize("heads", ACCURACIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BATCHED)
def test_rows_of_a_batch_equal_rows_decoded_alone(name, attention, heads):
    """Prompts of different lengths, different runs of accepted tokens, and ends at different steps."""  # noqa: E501
    # in float64 transformers' own mask of padding overflows in eager's softmax
    dtype = torch.float32 if attention == "eager" else torch.float64
    stories = [base_with_greedy_text(name, attention, dtype, length) for length in LENGTHS]
    base = stories[0][0]
    texts = [text[0].tolist() for _, _, text in stories]
    model = with_heads(base, texts, ACCURACIES[heads])
    ends = [last_new_word(texts[1][LENGTHS[1] :]), last_new_word(texts[2][LENGTHS[2] :])]
    options = {"max_new_tokens": NEW, "eos_token_id": ends, "pad_token_id": 0}
    alone = [
        base.generate(story[1], do_sample=False, **options)[0, length:]
        for story, length in zip(stories, LENGTHS, strict=True)
    ]
    assert len({len(row) for row in alone}) > 1
    ids, mask = padded([ids for _, ids, _ in stories])
    for tree in TREES.values():
        together, stats = run(model, ids, tree, attention_mask=mask, **options)
        assert together[:, : ids.shape[1]].tolist() == ids.tolist()
        for row, expected in zip(together[:, ids.shape[1] :].tolist(), alone, strict=True):
            assert row[: len(expected)] == expected.tolist()
            assert set(row[len(expected) :]) <= {0}
        assert stats.tokens == sum(map(len, alone)) - len(alone)
        if heads == "sometimes":
            assert min(stats.accepted) == 1 < stats.acceleration_rate


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_whose_rows_accept_different_numbers_of_tokens(name):
    """Rows drift apart by more than a tree's width."""
    stories = [base_with_greedy_text(name, "sdpa", length=length) for length in LENGTHS]
    model = with_heads(stories[0][0], [stories[0][2][0].tolist()], 1.0)
    ids, mask = padded([ids for _, ids, _ in stories])
    together, _ = run(model, ids, TREES["dense"], attention_mask=mask, max_new_tokens=NEW)
    for row, (_, alone, text) in zip(together, stories, strict=True):
        assert row[ids.shape[1] :].tolist() == text[0, alone.shape[1] :][:NEW].tolist()


def test_acceleration_rate_is_tokens_per_step_and_row():
    base, ids, text = base_with_greedy_text("llama", "sdpa")
    model = with_heads(base, text.tolist(), 1.0)
    _, stats = run(model, ids, TREES["chain"], max_new_tokens=9)
    assert (stats.steps, stats.tokens, dict(stats.accepted)) == (2, 8, {4: 2})
    assert stats.acceleration_rate == 4
    assert len(stats.step_seconds) == 2
    assert stats.decoding_seconds == sum(stats.step_seconds) > 0 < stats.prefill_seconds


def test_a_tree_of_only_the_root_decodes_plainly():
    base, ids, text = base_with_greedy_text("llama", "sdpa")
    model = with_heads(base, text.tolist(), 1.0)
    sequences, stats = run(model, ids, CandidateTree(), max_new_tokens=NEW)
    assert sequences.tolist() == text[:, : ids.shape[1] + NEW].tolist()
    assert stats.acceleration_rate == 1


def test_decoding_does_not_change_the_base_model():
    base, ids, text = base_with_greedy_text("mistral", "sdpa")
    hooks, modes = len(base.get_output_embeddings()._forward_pre_hooks), base.training
    run(with_heads(base, text.tolist(), 0.6), ids, TREES["default"], max_new_tokens=NEW)
    assert (len(base.get_output_embeddings()._forward_pre_hooks), base.training) == (hooks, modes)
    assert torch.equal(
        base.generate(ids, max_new_tokens=NEW, do_sample=False), text[:, : ids.shape[1] + NEW]
    )
