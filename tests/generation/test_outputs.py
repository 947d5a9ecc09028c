"""Scores and logits that `generate` returns are those of the base model's own `generate`."""

import pytest
import torch
from models import ScriptedHeads, prompt, tiny, varied_prompt
from torch.nn.functional import pad
from transformers import LogitsProcessor, LogitsProcessorList

from medusa import CandidateTree, Engine, MedusaModel, Request

NEW = 24
PAD = 0
OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
TREE = CandidateTree.dense([3, 2, 2])
KINDS = ["llama", "mistral", "qwen2", "gemma2"]


def with_heads(base, texts, accuracy=0.7):
    """A model with heads that know these texts, each without padding."""
    model = MedusaModel.from_base(base, num_heads=3)
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, texts, accuracy)
    return model


def batch_of(*prompts):
    """Left-padded prompts, as arguments of `generate`."""
    width = max(each.shape[1] for each in prompts)
    ids = torch.cat([pad(each, (width - each.shape[1], 0), value=PAD) for each in prompts])
    mask = torch.cat([pad(torch.ones_like(each), (width - each.shape[1], 0)) for each in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def compared(base, inputs, accuracy=0.7, **options):
    """Outputs of the base and of Medusa for the same call, whose texts are checked to be equal."""
    options = {"max_new_tokens": NEW, "do_sample": False, **OUTPUTS, **options}
    expected = base.generate(**inputs, **options)
    masked = inputs["attention_mask"].bool()
    width = masked.shape[1]
    texts = [
        [*row[:width][mask].tolist(), *row[width:].tolist()]
        for row, mask in zip(expected.sequences, masked, strict=True)
    ]
    given = with_heads(base, texts, accuracy).generate(**inputs, tree=TREE, **options)
    assert given.sequences.tolist() == expected.sequences.tolist()
    assert given.stats.acceleration_rate > 1.2, "runs of several tokens are accepted"
    return expected, given


def assert_equal_where_text_is(expected, given, ends=()):
    """Scores of both are equal up to the end of each row, and say 'padding' behind it."""
    width = expected.sequences.shape[1] - len(expected.scores)
    new = expected.sequences[:, width:]
    ended = torch.zeros(len(new), dtype=torch.bool)
    for name in ("scores", "logits"):
        assert len(given[name]) == len(expected[name]) == new.shape[1]
        ended[:] = False
        for place, (mine, theirs) in enumerate(zip(given[name], expected[name], strict=True)):
            assert mine.dtype == theirs.dtype == torch.float32
            torch.testing.assert_close(mine[~ended], theirs[~ended], **CLOSE)
            assert mine[ended].argmax(-1).tolist() == [PAD] * int(ended.sum())
            assert mine[ended].logsumexp(-1).tolist() == [0.0] * int(ended.sum())
            ended |= torch.isin(new[:, place], torch.tensor(ends))
    return ended


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_scores_and_logits_are_the_base_models(kind):
    base = tiny(kind, attention="eager" if kind == "gemma2" else "sdpa")
    expected, given = compared(base, batch_of(varied_prompt(kind)))
    assert_equal_where_text_is(expected, given)
    torch.testing.assert_close(given.scores, given.logits)


def test_processors_are_in_the_scores_and_not_in_the_logits():
    base = tiny("llama")
    options = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "suppress_tokens": [36]}
    expected, given = compared(base, batch_of(varied_prompt("llama")), **options)
    assert_equal_where_text_is(expected, given)
    assert all(each[0, 36] == -torch.inf for each in given.scores)
    assert not any(each.isinf().any() for each in given.logits)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_rows_of_several_lengths_that_end_inside_an_accepted_run(kind):
    base = tiny(kind)
    inputs = batch_of(varied_prompt(kind), prompt(5, seed=3), prompt(9, seed=4))
    plain = base.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    ends = plain[:2, inputs["input_ids"].shape[1] + 6].tolist()
    expected, given = compared(base, inputs, 1.0, eos_token_id=ends, pad_token_id=PAD)
    ended = assert_equal_where_text_is(expected, given, ends)
    assert ended[:2].all(), "two rows end early"
    mine = with_heads(base, [[1, 2]]).compute_transition_scores(
        given.sequences, given.scores, normalize_logits=True
    )
    theirs = base.compute_transition_scores(
        expected.sequences, expected.scores, normalize_logits=True
    )
    assert mine.shape == theirs.shape == (3, len(given.scores))
    new = given.sequences[:, -len(given.scores) :]
    end = torch.isin(new, torch.tensor(ends)).int()
    text = end.cumsum(1) - end == 0
    torch.testing.assert_close(mine[text], theirs[text], **CLOSE)
    assert not mine[~text].any(), "the padding of a row that has ended counts nothing"


@pytest.mark.parametrize("kind", KINDS[:3])
def test_sampled_scores_are_what_the_tokens_were_drawn_from(kind):
    base = tiny(kind)
    sampling = {"temperature": 1.7, "top_k": 12, "top_p": 0.9, "repetition_penalty": 1.2}
    inputs = batch_of(varied_prompt(kind), prompt(5, seed=3))
    model = MedusaModel.from_base(base, num_heads=3)
    torch.manual_seed(0)
    options = {"do_sample": True, "max_new_tokens": NEW, "num_return_sequences": 2, "tree": TREE}
    given = model.generate(**inputs, **options, **sampling, **OUTPUTS)
    width = inputs["input_ids"].shape[1]
    masks = inputs["attention_mask"].bool().repeat_interleave(2, 0)
    for row, (sequence, mask) in enumerate(zip(given.sequences, masks, strict=True)):
        text = torch.cat([sequence[:width][mask], sequence[width:]])[None]
        logits = base(text).logits[0, -NEW - 1 : -1].float()
        processors = base.generate(
            text[:, :-NEW],
            do_sample=True,
            max_new_tokens=NEW,
            custom_generate=lambda model, inputs, **prepared: prepared["logits_processor"],
            **sampling,
        )
        for place in range(NEW):
            scores = processors(text[:, : place - NEW], logits[place : place + 1])[0]
            torch.testing.assert_close(given.logits[place][row], logits[place], **CLOSE)
            torch.testing.assert_close(given.scores[place][row], scores, **CLOSE)
            assert scores[text[0, place - NEW]] > -torch.inf


def test_sampling_from_one_token_gives_the_base_models_scores():
    options = {"do_sample": True, "top_k": 1, "temperature": 0.6}
    expected, given = compared(tiny("llama"), batch_of(varied_prompt("llama")), **options)
    assert_equal_where_text_is(expected, given)


def test_only_what_is_asked_for_is_kept():
    base, ids = tiny("llama"), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=2)
    options = {"max_new_tokens": 5, "do_sample": False}
    dictionary = {**options, "return_dict_in_generate": True}
    assert "scores" not in model.generate(ids, **dictionary)
    assert "logits" not in model.generate(ids, **dictionary)
    scores = model.generate(ids, output_scores=True, **dictionary)
    assert "logits" not in scores
    assert len(scores.scores) == 5
    assert "scores" not in model.generate(ids, output_logits=True, **dictionary)
    for events in model.steps(ids, output_scores=True, **options):
        assert events[0].scores is None, "as in transformers, only with return_dict_in_generate"


def test_logits_are_copies_that_hold_no_other_memory():
    """A view of a step's logits would keep those of all nodes."""
    model = MedusaModel.from_base(tiny("llama", torch.float32), num_heads=2)
    output = model.generate(varied_prompt("llama"), max_new_tokens=7, do_sample=False, **OUTPUTS)
    for each in (*output.scores, *output.logits):
        assert each.untyped_storage().nbytes() == each.numel() * each.element_size()
        assert not each.is_inference()


def test_steps_report_scores_with_their_tokens():
    base, ids = tiny("llama"), varied_prompt("llama")
    text = base.generate(ids, max_new_tokens=NEW + 4, do_sample=False)
    model = with_heads(base, text.tolist(), 1.0)
    session = model.steps(ids, max_new_tokens=NEW, do_sample=False, tree=TREE, **OUTPUTS)
    for (event,) in session:
        assert event.scores.shape == event.logits.shape == (len(event.tokens), 61)
        assert event.scores.argmax(-1).tolist() == event.tokens


class Fails(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise ValueError("no scores")


def test_requests_of_one_step_may_ask_for_different_things():
    base, ids = tiny("llama"), prompt(6)[0].tolist()
    engine = Engine(MedusaModel.from_base(base, num_heads=2))
    wishes = [{"scores": True}, {"logits": True}, {}, {"scores": True, "logprobs": 1}]
    for wish in wishes:
        engine.submit(Request(ids, len(ids) + 6, **wish))
    failing = LogitsProcessorList([Fails()])
    failed = engine.submit(Request(ids, len(ids) + 6, processors=failing, logprobs=1, scores=True))
    while not engine.idle:
        for event in engine.step():
            if event.row is failed:
                assert (event.finish_reason, event.tokens, event.logprobs) == ("error", [], [])
                continue
            wish = wishes[event.request]
            assert (event.scores is not None) == wish.get("scores", False)
            assert (event.logits is not None) == wish.get("logits", False)
            assert (event.logprobs is not None) == ("logprobs" in wish)
    assert failed.finished
