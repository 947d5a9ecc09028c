import pytest
import torch
from models import ARCHITECTURES, prompt, tiny

from medusa import CandidateTree, MedusaModel
from medusa.core.cache import TreeCache
from medusa.core.masks import TreeBatch, additive_mask
from medusa.core.slots import BLOCK

TREE = CandidateTree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)])
NAMES = ["llama", "mistral", "gemma3_text", "gpt2", "opt", "falcon", "mixtral"]


def model_of(name):
    return MedusaModel.from_base(
        tiny(name, attention="eager" if name == "gemma2" else "sdpa"), num_heads=3
    )


def prefilled(model, texts, expected=40):
    """Return a cache for steps with these texts, each of them prefilled alone."""
    cache = model.new_cache(expected)
    for text in texts:
        ids = torch.tensor([text])
        alone = model.new_cache(expected)
        model.prefill(ids, torch.ones_like(ids), alone)
        cache.admit(alone, [0])
    return cache


def states(cache, row):
    """Return keys and values of a row's kept columns in all layers."""
    return [part[row, :, : cache.length[row]] for part in cache.states]


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
    cache = prefilled(model, texts)
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
        fresh = prefilled(model, [text])
        for kept, expected in zip(states(cache, row), states(fresh, 0), strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)
        expected_logits, expected_hidden = model.verify(probe[row : row + 1], TREE, fresh)
        torch.testing.assert_close(logits[row], expected_logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden[row], expected_hidden[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_logits_of_every_node_equal_those_of_its_path_alone(name):
    """Beyond the sliding window too."""
    model = model_of(name)
    context, tokens = prompt(13), prompt(len(TREE), seed=8)
    cache = prefilled(model, context.tolist())
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
def test_a_growing_cache_keeps_its_states():
    model = model_of("llama")
    text = prompt(200, seed=1)
    short, ample = (prefilled(model, text.tolist(), expected) for expected in (1, 500))
    for cache in (short, ample):
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
def test_memory_is_bounded_by_the_columns_that_the_request_needs(expected, columns):
    model = MedusaModel.from_base(tiny(max_position_embeddings=100_000), num_heads=2)
    cache = prefilled(model, prompt(10).tolist(), expected)
    assert {layer.keys.shape[2] for layer in cache.layers} == {columns}


@torch.inference_mode()
def test_a_cache_grows_by_at_most_half():
    model = model_of("llama")
    cache = prefilled(model, prompt(240).tolist(), 1)
    for _ in range(2 * BLOCK):
        model.verify(torch.ones(1, 1, dtype=torch.long), CandidateTree(), cache)
        cache.keep([[0]])
    assert cache.layers[0].keys.shape[2] <= 1.5 * cache.slots.end + BLOCK


def mask_rows(lengths, trees, columns, window=None):
    """Return the mask of each row of the batch as strings of 1 (sees) and 0."""
    mask = additive_mask(
        lengths, TreeBatch.of(trees), columns, torch.float32, torch.device("cpu"), window
    )
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
    return [
        "".join("1" if seen == 0 else "0" for seen in line)
        for row in mask[:, 0]
        for line in row.tolist()
    ]


SMALL = CandidateTree([(0,), (1,), (0, 0)])


def test_the_mask_of_one_row():
    assert mask_rows([3], SMALL, 7) == ["1111000", "1111100", "1111110", "1111001"]


def test_the_mask_of_rows_of_different_lengths():
    assert mask_rows([4, 3], SMALL, 8) == [
        "11111000",
        "11111100",
        "11111110",
        "11111001",
        "11110000",
        "11111000",
        "11111100",
        "11110010",
    ]


def test_the_mask_of_rows_with_different_trees():
    """Padding sees the context and itself."""
    assert mask_rows([2, 3], [SMALL, CandidateTree([(0,)])], 7) == [
        "1110000",
        "1111000",
        "1111100",
        "1110010",
        "1111000",
        "1111100",
        "1110010",
        "1110001",
    ]


def test_the_mask_within_a_window_counts_positions_not_columns():
    assert mask_rows([3], SMALL, 7, window=3) == ["0111000", "0011100", "0001110", "0011001"]


def test_the_mask_of_different_lengths_and_trees_within_a_window():
    assert mask_rows([4, 3], [SMALL, CandidateTree.chain(2)], 8, window=3) == [
        "00111000",
        "00011100",
        "00001110",
        "00011001",
        "01110000",
        "00111000",
        "00011100",
        "01100010",
    ]


def cache_with_lengths(lengths, longest=()):
    cache = TreeCache(1)
    cache.length, cache.longest = list(lengths), list(longest) or [None] * len(lengths)
    return cache


def test_positions_are_the_length_of_the_row_plus_the_depth():
    cache, trees = cache_with_lengths([2, 3]), TreeBatch.of(SMALL)
    assert cache.positions(trees, torch.device("cpu")).tolist() == [[2, 3, 4, 3], [3, 4, 5, 4]]


def test_positions_stop_at_the_end_of_a_row():
    cache, trees = (
        cache_with_lengths([2, 3], [5, None]),
        TreeBatch.of([SMALL, CandidateTree.chain(2)]),
    )
    assert cache.positions(trees, torch.device("cpu")).tolist() == [[2, 3, 3, 3], [3, 4, 5, 3]]


@torch.inference_mode()
def test_keeping_no_nodes_does_not_change_a_row():
    model = model_of("llama")
    cache = prefilled(model, prompt(6).expand(2, -1).tolist())
    before = [each.clone() for each in states(cache, 0)]
    model.verify(prompt(len(TREE)).expand(2, -1), TREE, cache)
    cache.keep([[], [0, 1, 2]])
    assert cache.length == [6, 9]
    assert all(torch.equal(a, b) for a, b in zip(before, states(cache, 0), strict=True))


@pytest.mark.parametrize("static", [False, True])
@torch.inference_mode()
def test_rows_are_admitted_and_evicted(static):
    """Rows of a padded prefill are admitted to a cache with other rows; then any row leaves."""
    model = model_of("llama")
    texts = {length: prompt(length, seed=length)[0].tolist() for length in (5, 12, 9, 300, 3)}
    together = model.new_cache()
    ids = torch.tensor([[0] * (12 - len(texts[x])) + texts[x] for x in (5, 12, 9)])
    mask = torch.tensor([[0] * (12 - x) + [1] * x for x in (5, 12, 9)])
    model.prefill(ids, mask, together)
    cache, cache_with_lengths = model.new_cache(static=static), []
    for row, length in enumerate((5, 12, 9)):
        cache.admit(together, [row])
        cache_with_lengths.append(length)
    for leaves, joins in ((0, 300), (1, 3), (2, None)):
        cache.evict(leaves)
        cache_with_lengths[leaves] = cache_with_lengths[-1]
        cache_with_lengths.pop()
        if joins:
            cache.admit(prefilled(model, [texts[joins]]), [0])
            cache_with_lengths.append(joins)
        assert cache.length == cache_with_lengths
        for row, length in enumerate(cache_with_lengths):
            for kept, expected in zip(
                states(cache, row), states(prefilled(model, [texts[length]]), 0), strict=True
            ):
                torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2"])
@torch.inference_mode()
def test_a_prefill_in_chunks_gives_the_states_of_one_prefill(name):
    model, ids = model_of(name), prompt(40)
    whole, chunks = model.new_cache(), model.new_cache()
    expected = model.prefill(ids, torch.ones_like(ids), whole)
    for begin, end in ((0, 13), (13, 14), (14, 40)):
        found = model.prefill(ids[:, begin:end], torch.ones_like(ids[:, :end]), chunks)
    for ours, theirs in zip(
        (*found, *states(chunks, 0)), (*expected, *states(whole, 0)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
