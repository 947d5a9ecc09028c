"""`base.generate(custom_generate=model.custom_generate)` gives the texts of `base.generate`."""

import pytest
import torch
from models import VOCAB, ScriptedHeads, prompt, tiny, varied_prompt
from torch.nn.functional import pad
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from medusa import CandidateTree, MedusaGenerateOutput, MedusaModel

NEW = 24
KINDS = ["llama", "mistral", "qwen2"]


def left_padded(*prompts):
    width = max(each.shape[1] for each in prompts)
    ids = torch.cat([pad(each, (width - each.shape[1], 0)) for each in prompts])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def with_heads(base, sequences, accuracy=0.8):
    texts = [[token for token in row if token] for row in sequences.tolist()]
    model = MedusaModel.from_base(base, num_heads=3)
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, texts, accuracy)
    return model


class CountsTokens(LogitsProcessor):
    """A processor with a memory, whose scores depend on padding as well."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores = scores.clone()
        scores[:, (self.calls + input_ids.shape[1]) % scores.shape[-1]] += 4
        return scores


class UntilTokens(StoppingCriteria):
    """A criterion that counts tokens, with padding."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids > 40).sum(1) + (input_ids == 0).sum(1) >= 16


def odd(row, given):
    return [token for token in range(1, VOCAB) if (token + int(given[-1])) % 2 == row % 2]


OPTIONS = {
    "plain": {},
    "max length": {"max_length": 20, "max_new_tokens": None},
    "ends": {"eos_token_id": [7, 9, 11, 36, 27], "pad_token_id": 0},
    "shortest": {"eos_token_id": [7, 9, 11, 36, 27], "min_new_tokens": 6, "pad_token_id": 0},
    "repetition": {"repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2},
    "prompt": {"encoder_repetition_penalty": 1.5},
    "prompt's n-grams": {"encoder_no_repeat_ngram_size": 1},
    "forced": {"forced_eos_token_id": 5, "pad_token_id": 0, "eos_token_id": 5},
    "memory": {"logits_processor": lambda: [CountsTokens()]},
    # without an end token transformers does not pad the rows that have ended
    "criteria": {
        "stopping_criteria": lambda: StoppingCriteriaList([UntilTokens()]),
        "eos_token_id": VOCAB - 1,
        "pad_token_id": 0,
    },
    "function": {"prefix_allowed_tokens_fn": lambda: odd},
    "from one": {"do_sample": True, "top_k": 1, "temperature": 0.7},
    "configuration": {"generation_config": GenerationConfig(repetition_penalty=1.2)},
}


def arguments(options):
    """The options of a call, with new objects where they have a memory."""
    made = {name: value() if callable(value) else value for name, value in options.items()}
    return {"max_new_tokens": NEW, "do_sample": False, **made}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.filterwarnings("ignore:.*max_new_tokens.*max_length")
def test_texts_are_those_of_the_base_model(kind, options, rows):
    base = tiny(kind)
    prompts = [varied_prompt(kind), prompt(5, seed=3), prompt(9, seed=4)]
    inputs = left_padded(*prompts[:rows])
    expected = base.generate(**inputs, **arguments(options))
    model = with_heads(base, expected)
    output = base.generate(
        **inputs,
        custom_generate=model.custom_generate,
        tree=CandidateTree.dense([3, 2, 2]),
        return_dict_in_generate=True,
        **arguments(options),
    )
    assert output.sequences.tolist() == expected.tolist()
    assert isinstance(output, MedusaGenerateOutput)
    if options.keys() & {"repetition_penalty", "no_repeat_ngram_size"} or not options:
        assert output.stats.acceleration_rate > 1.2


def test_scores_are_those_of_the_base_model():
    base = tiny("llama")
    inputs = left_padded(varied_prompt("llama"), prompt(5, seed=3))
    options = {"max_new_tokens": 9, "do_sample": False, "repetition_penalty": 1.3}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    expected = base.generate(**inputs, **options)
    model = with_heads(base, expected.sequences)
    given = base.generate(**inputs, custom_generate=model.custom_generate, **options)
    torch.testing.assert_close(given.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert given.logits is None


def test_sampling_with_several_sequences_and_arguments_of_this_library():
    base, ids = tiny("llama"), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=2)
    options = {
        "custom_generate": model.custom_generate,
        "num_return_sequences": 3,
        "do_sample": True,
        "max_new_tokens": 8,
        "temperature": 2.0,
    }
    runs = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        runs.append(base.generate(ids, generator=generator, acceptance="rejection", **options))
    assert runs[0].shape == (3, ids.shape[1] + 8)
    assert runs[0].tolist() == runs[1].tolist() != runs[2].tolist()
    chain = base.generate(
        ids,
        custom_generate=model.custom_generate,
        tree=CandidateTree(),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert chain.stats.acceleration_rate == 1
    with pytest.raises(ValueError, match="acceptance='greedy' does not sample"):
        base.generate(ids, acceptance="greedy", **options)


def test_what_cannot_be_decoded_is_refused():
    base, ids = tiny("llama"), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=2)
    call = {"custom_generate": model.custom_generate, "max_new_tokens": 4}
    for options, words in (
        ({"num_beams": 2}, "num_beams=2"),
        ({"past_key_values": DynamicCache()}, "(past_key_values|cache) is not supported"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    ):
        with pytest.raises(ValueError, match=words):
            base.generate(ids, **call, **options)
    with pytest.raises(ValueError, match="another model"):
        tiny("llama").generate(ids, **call)
