import pytest
import torch
from models import ARCHITECTURES, prompt, tiny

from medusa import CandidateTree, MedusaModel
from medusa.core.cache import BLOCK, TreeCache

TREE = CandidateTree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)])
NAMES = ["llama", "mistral", "gemma3_text", "gpt2", "opt", "falcon", "mixtral"]


def model_of(name):
    return MedusaModel.from_base(
        tiny(name, attention="eager" if name == "gemma2" else "sdpa"), num_heads=3
    )


def left_padded(texts):
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    return ids, torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])


def states(cache, row):
    """Keys and values of a row's kept columns, all layers."""
    columns = slice(cache.start[row], cache.length[row])
    return [part[row, :, columns] for layer in cache.layers for part in (layer.keys, layer.values)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("lengths", "paths"),
    [
        ((11,), [[0, 1, 3, 4]]),
        ((11,), [[0, 5]]),
        ((11,), [[0, 1, 2]]),
        ((5, 12, 9), [[0, 1, 3, 4], [0], [0, 5, 6]]),
        ((4, 7), [[], [0, 1]]),
    ],
)
@torch.inference_mode()
def test_keeping_nodes_equals_a_fresh_cache_of_the_accepted_tokens(name, lengths, paths):
    model = model_of(name)
    texts = [prompt(length, seed=length)[0].tolist() for length in lengths]
    cache = model.new_cache(40)
    model.prefill(*left_padded(texts), cache)
    for step in range(3):
        tokens = torch.cat([prompt(len(TREE), seed=50 + step + row) for row in range(len(texts))])
        model.verify(tokens, TREE, cache)
        cache.keep(paths)
        texts = [
            text + tokens[row, path].tolist()
            for row, (text, path) in enumerate(zip(texts, paths, strict=True))
        ]

    probe = torch.cat([prompt(len(TREE), seed=90 + row) for row in range(len(texts))])
    logits, hidden = model.verify(probe, TREE, cache)
    for row, text in enumerate(texts):
        fresh = model.new_cache(40)
        model.prefill(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.long), fresh)
        for kept, expected in zip(states(cache, row), states(fresh, 0), strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)
        expected_logits, expected_hidden = model.verify(probe[row : row + 1], TREE, fresh)
        torch.testing.assert_close(logits[row], expected_logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden[row], expected_hidden[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_every_node_is_scored_as_its_own_path_would_be(name):
    """Beyond the sliding window too."""
    model = model_of(name)
    context, tokens = prompt(13), prompt(len(TREE), seed=8)
    cache = model.new_cache(40)
    model.prefill(context, torch.ones_like(context), cache)
    logits, hidden = model.verify(tokens, TREE, cache)
    for node in range(len(TREE)):
        path = torch.nonzero(TREE.mask[node]).flatten()
        text = torch.cat([context, tokens[:, path]], 1)
        torch.testing.assert_close(
            logits[0, node], model.base(text).logits[0, -1], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            hidden[0, node], model.hidden_states(text)[0, -1], rtol=1e-4, atol=1e-4
        )


@torch.inference_mode()
def test_a_cache_that_grows_keeps_what_it_held():
    model = model_of("llama")
    text = prompt(200, seed=1)
    short, ample = model.new_cache(1), model.new_cache(500)
    for cache in (short, ample):
        model.prefill(text, torch.ones_like(text), cache)
        for step in range(12):
            model.verify(prompt(len(TREE), seed=step), TREE, cache)
            cache.keep([[0, 1, 3, 4]])
    assert short.length == ample.length == [248]
    for grown, expected in zip(states(short, 0), states(ample, 0), strict=True):
        assert torch.equal(grown, expected)


@pytest.mark.parametrize(
    ("expected", "columns"),
    [(30, BLOCK), (BLOCK, BLOCK), (BLOCK + 1, 2 * BLOCK), (50_000, 2 * BLOCK)],
)
@torch.inference_mode()
def test_memory_is_bounded_by_what_the_request_needs(expected, columns):
    model = MedusaModel.from_base(tiny(max_position_embeddings=100_000), num_heads=2)
    cache = model.new_cache(expected)
    model.prefill(prompt(10), torch.ones(1, 10, dtype=torch.long), cache)
    assert {layer.keys.shape[2] for layer in cache.layers} == {columns}


@torch.inference_mode()
def test_a_cache_grows_by_at_most_half():
    model = model_of("llama")
    cache = model.new_cache(1)
    model.prefill(prompt(240), torch.ones(1, 240, dtype=torch.long), cache)
    for _ in range(2 * BLOCK):
        model.verify(torch.ones(1, 1, dtype=torch.long), CandidateTree(), cache)
        cache.keep([[0]])
    assert cache.layers[0].keys.shape[2] <= 1.5 * cache.slots.end + BLOCK


def drawn(cache, tree, window=None):
    """The mask as a matrix of 1 (sees) and 0, a row of the batch each."""
    mask = cache.tree_mask(tree, torch.float32, torch.device("cpu"), window)
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
    return [
        "".join("1" if seen == 0 else "0" for seen in line)
        for row in mask[:, 0]
        for line in row.tolist()
    ]


SMALL = CandidateTree([(0,), (1,), (0, 0)])


def standing(starts, lengths):
    cache = TreeCache(1)
    cache.start, cache.length = list(starts), list(lengths)
    cache.begin_tree(len(SMALL), torch.device("cpu"))
    return cache


def test_the_mask_of_one_row():
    assert drawn(standing([0], [3]), SMALL) == ["1111000", "1111100", "1111110", "1111001"]


def test_the_mask_with_padding_and_rows_of_different_lengths():
    assert drawn(standing([2, 0], [4, 3]), SMALL) == [
        "00111000",
        "00111100",
        "00111110",
        "00111001",
        "11110000",
        "11111000",
        "11111100",
        "11110010",
    ]


def test_the_mask_within_a_window_counts_positions_not_columns():
    assert drawn(standing([0], [3]), SMALL, window=3) == [
        "0111000",
        "0011100",
        "0001110",
        "0011001",
    ]


def test_the_mask_with_padding_and_a_window():
    assert drawn(standing([2, 0], [4, 3]), SMALL, window=3) == [
        "00111000",
        "00011100",
        "00001110",
        "00011001",
        "01110000",
        "00111000",
        "00011100",
        "00110010",
    ]


def test_positions_are_a_rows_own_length_plus_the_depth():
    cache = standing([2, 0], [4, 3])
    assert cache.positions(SMALL, torch.device("cpu")).tolist() == [[2, 3, 4, 3], [3, 4, 5, 4]]


@torch.inference_mode()
def test_keeping_nothing_leaves_a_row_as_it_was():
    model = model_of("llama")
    cache = model.new_cache(40)
    text = prompt(6)
    model.prefill(text.expand(2, -1), torch.ones(2, 6, dtype=torch.long), cache)
    before = [each.clone() for each in states(cache, 0)]
    model.verify(prompt(len(TREE)).expand(2, -1), TREE, cache)
    cache.keep([[], [0, 1, 2]])
    assert cache.length == [6, 9]
    assert all(torch.equal(a, b) for a, b in zip(before, states(cache, 0), strict=True))
