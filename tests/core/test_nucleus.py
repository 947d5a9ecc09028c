"""Top-p without sorting keeps what transformers' own warper keeps."""

import pytest
import torch
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from medusa.core.nucleus import BEST, Nucleus
from medusa.core.processing import TreeProcessors

VOCAB = 4 * BEST


def scores_of(spread, rows=6):
    generator = torch.Generator().manual_seed(0)
    return spread * torch.randn(rows, VOCAB, generator=generator)


def check(top_p, scores, **options):
    reference = TopPLogitsWarper(top_p, **options)
    ids = torch.zeros(len(scores), 1, dtype=torch.long)
    before = scores.clone()
    result = Nucleus.of(reference)(ids, scores)
    torch.testing.assert_close(result, reference(ids, scores), rtol=0, atol=0)
    assert torch.equal(scores, before), "the scores were changed in place"
    return result


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_it_keeps_the_same_tokens_as_sorting(top_p, spread):
    check(top_p, scores_of(spread))


def test_rows_with_few_and_with_many_kept_tokens():
    scores = torch.cat([scores_of(0.01, 2), scores_of(8.0, 2), scores_of(0.01, 1)])
    counts = (check(0.9, scores) > -torch.inf).sum(-1)
    assert counts[[0, 1, 4]].min() > BEST
    assert counts[2:4].max() < BEST


@pytest.mark.parametrize("kept", [3, BEST + 5])
def test_the_fewest_tokens_to_keep(kept):
    result = check(0.01, scores_of(8.0), min_tokens_to_keep=kept)
    assert (result > -torch.inf).sum(-1).tolist() == [kept] * len(result)


def test_another_filter_value_and_scores_that_top_k_filtered():
    check(0.9, scores_of(4.0), filter_value=-50.0)
    filtered = TopKLogitsWarper(20)(None, scores_of(1.0))
    assert (check(0.9, filtered) > -torch.inf).sum(-1).max() <= 20


def test_a_vocabulary_smaller_than_the_best_tokens():
    check(0.9, scores_of(1.0)[:, :50].contiguous())


def test_decoding_uses_it_in_place_of_transformers_own():
    processors = TreeProcessors([TopKLogitsWarper(5), TopPLogitsWarper(0.9)])
    assert [type(each) for each in processors.processors] == [TopKLogitsWarper, Nucleus]
    assert processors.prefix_free
    assert processors.processors[1].top_p == 0.9
