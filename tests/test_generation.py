import itertools
import string
from types import FunctionType

import pytest
import torch
from fit import chi_square
from models import VOCAB, ScriptedHeads, prompt, tiny, varied_prompt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from medusa import CandidateTree, Greedy, MedusaGenerateOutput, MedusaModel, Rejection, Typical
from medusa.core.model import TreeModel

NEW = 30
TREE = CandidateTree.dense([3, 2, 2])


@pytest.fixture(scope="module")
def base():
    return tiny("llama")


@pytest.fixture(scope="module")
def ids():
    return varied_prompt("llama")


@pytest.fixture(scope="module")
def text(base, ids):
    """The base model's greedy continuation, longer than any test needs."""
    return base.generate(ids, max_new_tokens=NEW + 10, do_sample=False)[0, ids.shape[1] :].tolist()


def heads_on(base, texts, accuracy=1.0):
    model = MedusaModel.from_base(base, num_heads=3, tree=TREE)
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, texts, accuracy)
    return model


@pytest.fixture
def model(base, ids, text):
    """The base with heads that always predict its greedy text."""
    return heads_on(base, [ids[0].tolist() + text])


class Ban(LogitsProcessor):
    """A user's processor that transformers does not know."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


class Until(StoppingCriteria):
    """A criterion that stops after the n-th use of a token."""

    def __init__(self, token, times):
        self.token, self.times = token, times

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids == self.token).sum(1) >= self.times


CHARACTERS = (string.ascii_letters + string.digits)[:VOCAB]


def characters():
    """A tokenizer whose tokens are single characters."""
    tokenizer = Tokenizer(
        models.WordLevel({each: n for n, each in enumerate(CHARACTERS)}, unk_token="a")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a")


def text_equal_to_base(base, ids, accuracy=1.0, **options):
    """Text of heads that know what the base says under these options: equal to it. Returns the
    output.
    """
    fresh = {
        name: value() if isinstance(value, FunctionType) else value
        for name, value in options.items()
    }
    expected = base.generate(ids, do_sample=False, **fresh)
    known = expected[0].tolist() + [1] * 8
    model = heads_on(base, [known], accuracy)
    fresh = {
        name: value() if isinstance(value, FunctionType) else value
        for name, value in options.items()
    }
    output = model.generate(ids, do_sample=False, return_dict_in_generate=True, **fresh)
    assert output.sequences.tolist() == expected.tolist()
    return output


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 11])
def test_max_new_tokens_is_exact_inside_an_accepted_run(base, ids, new):
    assert (
        text_equal_to_base(base, ids, max_new_tokens=new).sequences.shape[1] == ids.shape[1] + new
    )


def test_max_length_counts_the_prompt(base, ids):
    assert (
        text_equal_to_base(base, ids, max_length=ids.shape[1] + 9).sequences.shape[1]
        == ids.shape[1] + 9
    )


@pytest.mark.parametrize("nth", range(1, 9))
def test_an_end_token_cuts_an_accepted_run(base, ids, text, nth):
    firsts = sorted(map(text.index, set(text)))
    place = firsts[nth]
    ends = [text[place], VOCAB - 1]
    output = text_equal_to_base(base, ids, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=0)
    assert output.sequences[0, -1] in ends
    assert output.sequences.shape[1] - ids.shape[1] == place + 1


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 15, "pad_token_id": 0},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[2], [36, 27]]},
        {"suppress_tokens": [36]},
        {"forced_eos_token_id": 5, "pad_token_id": 0},
        {"exponential_decay_length_penalty": (5, 1.5), "pad_token_id": 0},
        {"sequence_bias": [[[36], -4.0], [[27, 11], 3.0]]},
        {"logits_processor": lambda: LogitsProcessorList([Ban(36)])},
        {"stopping_criteria": lambda: StoppingCriteriaList([Until(11, 6)])},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("accuracy", [1.0, 0.5])
def test_options_give_the_base_models_text(base, ids, text, options, accuracy):
    end = (
        {"eos_token_id": text[4]}
        if {"min_new_tokens", "exponential_decay_length_penalty"} & options.keys()
        else {}
    )
    output = text_equal_to_base(base, ids, accuracy, max_new_tokens=NEW, **end, **options)
    assert output.stats.acceleration_rate > 1
    plain = ids[0].tolist() + text[:NEW]
    assert output.sequences[0].tolist() != plain, "the option changes the text"


def test_several_options_at_once(base, ids):
    options = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 5,
        "eos_token_id": [9, 11],
    }
    text_equal_to_base(base, ids, 0.6, max_new_tokens=NEW, pad_token_id=0, **options)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_stop_strings(base, ids, text, length):
    """Stop strings end anywhere within accepted tokens, and span several tokens."""
    for place in (5, 6, 7, 8):
        stop = "".join(CHARACTERS[token] for token in text[place + 1 - length : place + 1])
        said = "".join(CHARACTERS[token] for token in text)
        output = text_equal_to_base(
            base, ids, max_new_tokens=NEW, tokenizer=characters(), stop_strings=[stop, "no such"]
        )
        assert output.sequences.shape[1] - ids.shape[1] == said.index(stop) + length


def test_stop_strings_of_a_configuration_need_the_tokenizer(base, ids, text):
    stop = CHARACTERS[text[5]]
    own = tiny("llama")
    own.generation_config.stop_strings = [stop]
    options = {"max_new_tokens": NEW, "do_sample": False}
    for model, config in (
        (MedusaModel.from_base(own, num_heads=2), None),
        (MedusaModel.from_base(base, num_heads=2), GenerationConfig(stop_strings=[stop])),
    ):
        with pytest.raises(ValueError, match="tokenizer="):
            model.generate(ids, config, **options)
        given = model.generate(ids, config, tokenizer=characters(), **options)
        assert given[0, ids.shape[1] :].tolist() == text[: text.index(text[5]) + 1]
    assert own.generation_config.stop_strings == [stop]


@pytest.mark.parametrize("where", ["argument", "keyword", "model"])
def test_a_generation_config_sets_the_options(base, ids, text, where):
    config = GenerationConfig(max_new_tokens=7, do_sample=False, repetition_penalty=1.2)
    expected = base.generate(ids, config)
    model = heads_on(tiny("llama"), [expected[0].tolist() + text])
    if where == "argument":
        given = model.generate(ids, config)
    elif where == "keyword":
        given = model.generate(ids, generation_config=config)
    else:
        model.base.generation_config = config
        given = model.generate(ids)
    assert given.tolist() == expected.tolist()
    assert (config.max_new_tokens, config.repetition_penalty) == (7, 1.2)


def test_keywords_override_the_configuration(base, ids):
    config = GenerationConfig(max_new_tokens=7, do_sample=False)
    model = MedusaModel.from_base(base, num_heads=3)
    expected = base.generate(ids, config, max_new_tokens=3)
    assert model.generate(ids, config, max_new_tokens=3).tolist() == expected.tolist()


class RecordingStreamer(BaseStreamer):
    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append((value.shape, value.flatten().tolist()))

    def end(self):
        self.calls.append("end")


def test_a_streamer_receives_the_same_calls_as_from_the_base(base, model, ids):
    of_base, of_medusa = RecordingStreamer(), RecordingStreamer()
    base.generate(ids, max_new_tokens=11, do_sample=False, streamer=of_base)
    model.generate(ids, max_new_tokens=11, do_sample=False, streamer=of_medusa)
    assert of_medusa.calls == of_base.calls
    of_steps = RecordingStreamer()
    for _ in model.steps(ids, max_new_tokens=11, do_sample=False, streamer=of_steps):
        pass
    assert of_steps.calls == of_base.calls


def test_a_streamer_with_several_sequences_is_refused(model, ids):
    with pytest.raises(ValueError, match="one sequence"):
        model.generate(
            ids.expand(2, -1), max_new_tokens=4, do_sample=False, streamer=RecordingStreamer()
        )
    with pytest.raises(ValueError, match="one sequence"):
        model.steps(
            ids,
            max_new_tokens=4,
            do_sample=True,
            num_return_sequences=2,
            streamer=RecordingStreamer(),
        )


def test_a_dictionary_output_has_the_statistics(model, ids, text):
    output = model.generate(ids, max_new_tokens=13, do_sample=False, return_dict_in_generate=True)
    assert isinstance(output, MedusaGenerateOutput)
    assert output.sequences.tolist() == [ids[0].tolist() + text[:13]]
    assert (output.stats.tokens, output.stats.steps) == (12, 3)
    assert isinstance(model.generate(ids, max_new_tokens=3, do_sample=False), torch.Tensor)


def test_input_ids_may_be_a_keyword(model, ids, text):
    given = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
    )
    assert given.tolist() == [ids[0].tolist() + text[:5]]


def test_left_padding_is_inferred_from_the_padding_token(base, model, ids):
    short = prompt(4)
    batch = torch.cat([torch.nn.functional.pad(short, (ids.shape[1] - 4, 0)), ids])
    options = {"max_new_tokens": 9, "do_sample": False}
    expected = [base.generate(row, **options)[0, -9:].tolist() for row in (short, ids)]
    assert model.generate(batch, pad_token_id=0, **options)[:, -9:].tolist() == expected
    mask = (batch != 0).long()
    assert model.generate(batch, attention_mask=mask, **options)[:, -9:].tolist() == expected


def test_a_padding_token_that_also_ends_texts_is_not_taken_for_padding(base, ids):
    """As in transformers, only an attention mask can mark padding then."""
    start = torch.cat([torch.tensor([[0]]), ids], 1)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": 0}
    expected = base.generate(start, **options)
    assert (
        MedusaModel.from_base(base, num_heads=3).generate(start, **options).tolist()
        == expected.tolist()
    )


def test_a_padding_token_within_the_prompt_is_text(base, ids):
    within = torch.cat([ids, torch.tensor([[0]]), ids], 1)
    options = {"max_new_tokens": 9, "do_sample": False}
    expected = base.generate(within, attention_mask=torch.ones_like(within), **options)
    assert (
        MedusaModel.from_base(base, num_heads=3).generate(within, **options).tolist()
        == expected.tolist()
    )


def test_rows_that_end_early_are_padded_on_the_right(base, ids, text):
    other = prompt(ids.shape[1], seed=3)
    options = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "eos_token_id": text[5],
        "pad_token_id": 7,
    }
    batch = torch.cat([ids, other])
    expected = base.generate(batch, attention_mask=torch.ones_like(batch), **options)
    assert (
        MedusaModel.from_base(base, num_heads=3).generate(batch, **options).tolist()
        == expected.tolist()
    )


def test_rows_that_end_early_are_padded_with_an_end_token_where_there_is_no_padding_token(
    ids, text
):
    own = tiny("llama", pad_token_id=None)
    own.generation_config.pad_token_id = None
    batch = torch.cat([ids, prompt(ids.shape[1], seed=3)])
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": [text[5], 50]}
    mask = torch.ones_like(batch)
    expected = own.generate(batch, attention_mask=mask, **options)
    given = MedusaModel.from_base(own, num_heads=3).generate(batch, attention_mask=mask, **options)
    assert given.tolist() == expected.tolist()


def test_returned_tensors_are_no_inference_tensors(base, model, ids):
    given = model.generate(ids, max_new_tokens=5, do_sample=False)
    base(given, labels=given).loss.backward()
    base.zero_grad()
    given[given == 1] = 2


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_all_learnt_positions_can_be_used(name):
    """The last steps' trees reach past the last position."""
    own, limit = tiny(name), 256
    text = prompt(limit - 20)
    expected = own.generate(text, max_length=limit, do_sample=False)
    model = MedusaModel.from_base(own, num_heads=3, tree=TREE)
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, expected.tolist(), 0.8)
    assert model.generate(text, max_length=limit, do_sample=False).tolist() == expected.tolist()
    assert model.generate(text, max_new_tokens=20, do_sample=False).tolist() == expected.tolist()


def test_prefix_allowed_tokens_fn_gets_the_number_of_the_prompt(base, ids):
    batch = torch.cat([ids, ids.flip(1)])
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(batch)}
    seen = set()

    def allowed(row, given):
        seen.add(row)
        return [number for number in range(1, VOCAB) if (number + given[-1].item()) % 2 == row]

    expected = base.generate(batch, prefix_allowed_tokens_fn=allowed, **options)
    model = heads_on(base, expected.tolist(), 0.8)
    assert (
        model.generate(batch, prefix_allowed_tokens_fn=allowed, **options).tolist()
        == expected.tolist()
    )
    assert seen == {0, 1}


SAMPLING = {"do_sample": True, "max_new_tokens": 12, "temperature": 2.0}


def test_sampling_repeats_with_the_seed(base, ids):
    model = MedusaModel.from_base(base, num_heads=3)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(model.generate(ids, **SAMPLING).tolist())
    assert runs[0] == runs[1] != runs[2]
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(9 + len(runs))
        runs.append(
            model.generate(ids, generator=torch.Generator().manual_seed(seed), **SAMPLING).tolist()
        )
    assert runs[0] == runs[1] != runs[2]


def test_a_generator_a_row_makes_a_row_independent_of_its_neighbours(base, ids):
    model = MedusaModel.from_base(base, num_heads=3)
    prompts = [ids, prompt(5), prompt(9, seed=4)]

    def run(rows):
        width = max(prompts[row].shape[1] for row in rows)
        batch = torch.cat(
            [
                torch.nn.functional.pad(prompts[row], (width - prompts[row].shape[1], 0))
                for row in rows
            ]
        )
        generators = [torch.Generator().manual_seed(row) for row in rows]
        options = {**SAMPLING, "eos_token_id": [9, 20], "pad_token_id": 0}
        return model.generate(batch, attention_mask=batch != 0, generator=generators, **options)[
            :, width:
        ].tolist()

    together = run([0, 1, 2])
    for row in range(3):
        alone = run([row])[0]
        assert together[row][: len(alone)] == alone
        assert not any(together[row][len(alone) :])
    with pytest.raises(ValueError, match="one generator a sequence is needed: 1, got 2"):
        model.generate(ids, generator=[torch.Generator(), torch.Generator()], **SAMPLING)


def test_several_sequences_a_prompt(base, ids):
    model = MedusaModel.from_base(base, num_heads=3)
    torch.manual_seed(0)
    batch = torch.cat([ids, ids.flip(1)])
    sequences = model.generate(
        batch, attention_mask=torch.ones_like(batch), num_return_sequences=3, **SAMPLING
    )
    assert sequences.shape == (6, ids.shape[1] + 12)
    assert sequences[:, : ids.shape[1]].tolist() == batch.repeat_interleave(3, 0).tolist()
    assert len(set(map(tuple, sequences.tolist()))) == 6


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
@pytest.mark.parametrize(
    "options", [{"temperature": 2.5}, {"temperature": 3.0, "top_k": 4}, {"top_p": 0.8}]
)
def test_sampled_tokens_follow_the_base_models_distribution(options):
    """Compare two tokens of a model with a vocabulary of 6, from the prefill and from a step."""
    size, rows = 6, 1500
    base = tiny("llama", torch.float32, vocab_size=size)
    model = MedusaModel.from_base(base, num_heads=2, tree=CandidateTree([(0,), (1,), (0, 0)]))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.heads.w2, std=0.4)
    ids = torch.tensor([[1, 4, 2]])
    options = {"top_k": 0, **options}
    batch = ids.expand(rows, -1)
    sampled = model.generate(
        batch, attention_mask=torch.ones_like(batch), do_sample=True, max_new_tokens=3, **options
    )[:, 3:5]
    processors = base.generate(
        ids,
        do_sample=True,
        custom_generate=lambda model, inputs, **kwargs: kwargs["logits_processor"],
        **options,
    )
    stories = torch.tensor([[1, 4, 2, x] for x in range(size)])
    with torch.inference_mode():
        logits = base(stories).logits
    first, second = (processors(stories, logits[:, place]).double().softmax(-1) for place in (2, 3))
    counts = torch.zeros(size, size).index_put_(tuple(sampled.T), torch.ones(rows), accumulate=True)
    assert chi_square(counts.flatten(), (first[0][:, None] * second).flatten()) > 1e-3


def test_acceptance_by_name_and_by_policy(model, ids, text):
    plain = ids[0].tolist() + text[:NEW]
    for acceptance in ("auto", "greedy", Greedy()):
        options = {"max_new_tokens": NEW, "do_sample": False, "acceptance": acceptance}
        assert model.generate(ids, **options)[0].tolist() == plain
    for acceptance in ("auto", "rejection", "typical", Rejection(), Typical(root="sample")):
        assert model.generate(ids, acceptance=acceptance, **SAMPLING).shape[1] == ids.shape[1] + 12
    cold = model.generate(
        ids, acceptance="typical", do_sample=True, temperature=1e-4, max_new_tokens=NEW
    )
    assert cold[0].tolist() == plain


@pytest.mark.parametrize(
    ("acceptance", "sampling", "words"),
    [
        ("rejection", False, "do_sample=True"),
        (Rejection(), False, "do_sample=True"),
        ("greedy", True, "does not sample"),
        (Greedy(), True, "does not sample"),
        ("best", False, "'typical'"),
    ],
)
def test_policies_that_do_not_fit_are_refused(model, ids, acceptance, sampling, words):
    with pytest.raises(ValueError, match=words):
        model.generate(ids, max_new_tokens=3, do_sample=sampling, acceptance=acceptance)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams=3"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "inputs_embeds"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"cache": object()}, "cache"),
        ({"negative_prompt_ids": torch.ones(1, 3)}, "negative_prompt_ids"),
        ({"custom_generate": print}, "custom_generate"),
        ({"position_ids": torch.ones(1, 12)}, "position_ids"),
        ({"cache_implementation": "quantized"}, "cache_implementation"),
        ({"use_cache": False}, "use_cache=False"),
        ({"token_healing": True}, "heal_tokens"),
        ({"generation_config": GenerationConfig(guidance_scale=2.0)}, "guidance_scale=2.0"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else each,
)
def test_unsupported_options_are_refused(model, ids, options, words):
    with pytest.raises(ValueError, match=words):
        model.generate(ids, **{"max_new_tokens": 3, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"penalty_alpha": 0.0},
        {"penalty_alpha": 0.6, "top_k": 1},
        {"logits_to_keep": 1},
        {"num_beams": 1},
        {"token_healing": False},
        {"output_scores": True},
        {"use_cache": True},
        {"cache_implementation": "dynamic"},
        {"trust_remote_code": False},
        {"position_ids": torch.arange(12)[None]},
        {"assistant_model": None},
        {"temperature": 0.7},
    ],
    ids=lambda each: next(iter(each)),
)
@pytest.mark.filterwarnings("ignore")
def test_options_that_do_not_change_the_text_are_accepted(base, model, ids, text, options):
    expected = base.generate(ids, max_new_tokens=5, do_sample=False, **options)
    assert (
        model.generate(ids, max_new_tokens=5, do_sample=False, **options).tolist()
        == expected.tolist()
    )


@pytest.mark.parametrize("new", [2.5, 3.0, torch.tensor(3)], ids=str)
def test_lengths_that_are_no_integers_are_rounded_up_as_in_transformers(base, model, ids, new):
    expected = base.generate(ids, max_new_tokens=new, do_sample=False)
    assert model.generate(ids, max_new_tokens=new, do_sample=False).tolist() == expected.tolist()


def test_a_text_without_a_prompt_begins_as_in_transformers(base, model):
    options = {"bos_token_id": 1, "max_new_tokens": 5, "do_sample": False}
    assert model.generate(**options).tolist() == base.generate(**options).tolist()
    with pytest.raises(ValueError, match="bos_token_id"):
        model.generate(max_new_tokens=5)


def image_model():
    """A tiny vision-language model."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    text = tiny("llama").config
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=VOCAB - 1)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        (lambda: tiny("gpt2"), "token_type_ids", torch.ones(1, 7, dtype=torch.long)),
        (image_model, "pixel_values", torch.ones(1, 3, 16, 16)),
        (image_model, "image_sizes", torch.ones(1, 2)),
    ],
    ids=["types", "image", "sizes"],
)
def test_inputs_other_than_tokens_are_refused(base, name, value):
    """The message has the user's name of the input, although transformers encodes images."""
    model = MedusaModel.from_base(base(), num_heads=2)
    ids = torch.tensor([[1, 2, *[VOCAB - 1] * 4, 3]])
    with pytest.raises(ValueError, match=f"{name}: only token ids"):
        model.generate(ids, max_new_tokens=3, **{name: value})


def test_a_vision_language_model_decodes_text_alone():
    base = image_model()
    expected = base.generate(prompt(), max_new_tokens=9, do_sample=False)
    given = MedusaModel.from_base(base, num_heads=2).generate(
        prompt(), max_new_tokens=9, do_sample=False
    )
    assert given.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "policy",
    [Rejection(), Typical(), Typical(root="sample")],
    ids=["rejection", "typical", "sampled"],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("after", [0, 4])
def test_sampling_from_no_distribution_is_an_error(base, model, ids, policy, value, after):
    class Spoil(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return (
                torch.full_like(scores, value)
                if input_ids.shape[1] >= ids.shape[1] + after
                else scores
            )

    options = {"max_new_tokens": 9, "do_sample": True, "logits_processor": [Spoil()]}
    with pytest.raises(RuntimeError, match="probability tensor"):
        base.generate(ids, **options)
    with pytest.raises(RuntimeError, match="no token can be sampled"):
        model.generate(ids, acceptance=policy, **options)
    model.generate(
        ids, acceptance=policy, **{**options, "max_new_tokens": after or 1, "logits_processor": []}
    )


@pytest.mark.parametrize(
    "acceptance", ["typical", Typical(epsilon=0.01), Typical(root="sample")], ids=str
)
@pytest.mark.parametrize("temperature", [None, 0.0])
@pytest.mark.filterwarnings("ignore")
def test_typical_acceptance_without_sampling_is_greedy(
    base, model, ids, text, acceptance, temperature
):
    given = model.generate(
        ids, acceptance=acceptance, temperature=temperature, do_sample=False, max_new_tokens=NEW
    )
    assert given[0, ids.shape[1] :].tolist() == text[:NEW]
    session = model.steps(ids, acceptance=acceptance, max_new_tokens=3)
    assert isinstance(session.requests[0].policy, Greedy)


def test_a_temperature_for_typical_acceptance_needs_sampling(model, ids):
    for options in ({"temperature": 0.7}, {"generation_config": GenerationConfig(temperature=0.7)}):
        with pytest.raises(ValueError, match="do_sample=True"):
            model.generate(ids, acceptance="typical", max_new_tokens=3, **options)


def test_heads_that_do_not_fit_a_resized_base_are_refused(tmp_path):
    own = tiny("llama")
    model = MedusaModel.from_base(own, num_heads=2)
    for size in (VOCAB + 3, VOCAB - 3):
        own.resize_token_embeddings(size)
        for use in (
            lambda: model.generate(prompt(), max_new_tokens=3),
            lambda: model.generate(prompt(), max_new_tokens=3, do_sample=True),
            lambda: model.save_pretrained(tmp_path / "heads"),
        ):
            with pytest.raises(ValueError, match=f"vocab_size is {VOCAB} .*resized since"):
                use()
    assert not (tmp_path / "heads").exists()


@pytest.mark.parametrize(
    ("switch", "value"),
    [("prepack", "nonsense"), ("prepack", 0.5), ("capture", "yes"), ("compiled", "no")],
)
def test_invalid_values_of_switches_are_refused(ids, switch, value):
    with pytest.raises(ValueError, match=f"{switch} must be one of"):
        TreeModel(tiny("llama"), MedusaModel.from_base(tiny("llama"), 2).heads, **{switch: value})
    model = MedusaModel.from_base(tiny("llama"), num_heads=2)
    setattr(model, switch, value)
    with pytest.raises(ValueError, match=f"{switch} must be one of"):
        model.generate(ids, max_new_tokens=3)


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"guidance_scale": 1.5}])
def test_unsupported_options_of_the_base_model_are_refused(ids, setting):
    own = tiny("llama")
    for name, value in setting.items():
        setattr(own.generation_config, name, value)
    with pytest.raises(ValueError, match=next(iter(setting))):
        MedusaModel.from_base(own, num_heads=2).generate(ids, max_new_tokens=3)


def test_a_base_saved_with_use_cache_false_can_decode(ids, text):
    """Training code often leaves use_cache=False behind in the configuration."""
    own = tiny("llama")
    own.config.use_cache = own.generation_config.use_cache = False
    given = MedusaModel.from_base(own, num_heads=2).generate(ids, max_new_tokens=9, do_sample=False)
    assert given[0].tolist() == ids[0].tolist() + text[:9]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "at least one row and one token"),
        (torch.zeros(0, 3, dtype=torch.long), "at least one row and one token"),
        (torch.ones(3, dtype=torch.long), r"\[3\]"),
        (torch.ones(1, 3), "float32"),
        (torch.ones(1, 3, dtype=torch.bool), "bool"),
        ([[1, 2]], "list"),
        (torch.tensor([[1, VOCAB]]), "0 to 60"),
        (torch.tensor([[1, -2]]), "0 to 60"),
    ],
    ids=["empty", "no rows", "flat", "floats", "truths", "list", "beyond", "negative"],
)
def test_inputs_that_are_not_token_ids_are_refused(model, inputs, words):
    with pytest.raises(ValueError, match=words):
        model.generate(inputs, max_new_tokens=3)


def test_masked_tokens_inside_a_prompt_are_left_out(base, model, ids):
    holes = torch.ones_like(ids)
    holes[0, [0, 4]] = 0
    expected = base.generate(ids, attention_mask=holes, max_new_tokens=9, do_sample=False)
    given = model.generate(ids, attention_mask=holes, max_new_tokens=9, do_sample=False)
    assert given.tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"hole in row 0 at column 4.*sliding windows"):
        MedusaModel.from_base(tiny("mistral"), num_heads=2).generate(
            ids, attention_mask=holes, max_new_tokens=3
        )


def test_right_padding_is_refused(model, ids):
    right = torch.cat([ids, torch.zeros(1, 2, dtype=torch.long)], 1)
    with pytest.raises(ValueError, match="row 1 of attention_mask ends in 0: pad on the left"):
        model.generate(
            right.repeat(2, 1),
            attention_mask=torch.stack([right[0] >= 0, right[0] != 0]),
            max_new_tokens=3,
        )
    holes = torch.ones_like(ids)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model.generate(ids, attention_mask=holes[:, 1:], max_new_tokens=3)


def test_a_row_of_padding_alone_is_refused(model, ids):
    batch = torch.cat([ids, ids])
    mask = torch.ones_like(batch)
    mask[1] = 0
    with pytest.raises(ValueError, match="left"):
        model.generate(batch, attention_mask=mask, max_new_tokens=3)


def test_a_tree_deeper_than_the_heads_is_refused(model, ids):
    with pytest.raises(ValueError, match="4 deep but there are 3 heads"):
        model.generate(ids, tree=CandidateTree.chain(4), max_new_tokens=3)


def test_a_tree_may_be_given_for_one_call(model, ids, text):
    output = model.generate(
        ids,
        tree=CandidateTree.chain(2),
        max_new_tokens=10,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert output.stats.steps == 3
    assert model.tree is TREE


def test_steps_yield_the_same_tokens_in_order(model, ids, text):
    session = model.steps(ids, max_new_tokens=10, do_sample=False)
    steps = [event.tokens for (event,) in session]
    assert list(map(len, steps)) == [1, 4, 4, 1]
    assert list(itertools.chain(*steps)) == text[:10]
    assert (session.stats.tokens, session.stats.steps) == (9, 3)


def test_steps_of_a_prompt_that_is_prefilled_in_chunks():
    model = MedusaModel.from_base(tiny(max_position_embeddings=4096), num_heads=3)
    session = model.steps(prompt(2100), max_new_tokens=3, do_sample=False)
    tokens = [token for event in session.events() for token in event.tokens]
    assert tokens == session.rows[0].ids[2100:]
    assert len(tokens) == 3


def test_steps_of_a_batch_end_row_by_row(base, ids, text):
    end = text[3]
    batch = torch.cat([ids, ids.flip(1)])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    model = heads_on(base, [ids[0].tolist() + text], 0.5)
    sequences = model.generate(batch, attention_mask=torch.ones_like(batch), **options)[
        :, ids.shape[1] :
    ].tolist()
    rows = [[], []]
    for events in model.steps(batch, attention_mask=torch.ones_like(batch), **options):
        for event in events:
            assert end not in rows[event.request]
            rows[event.request] += event.tokens
    for row, expected in zip(rows, sequences, strict=True):
        assert row == expected[: len(row)]
        assert not any(expected[len(row) :])


def test_a_session_can_be_abandoned(model, ids, text):
    steps = iter(model.steps(ids, max_new_tokens=20, do_sample=False))
    assert [event.tokens for event in next(steps)] == [text[:1]]
    assert [event.tokens for event in next(steps)] == [text[1:5]]
    steps.close()
    assert (
        model.generate(ids, max_new_tokens=5, do_sample=False)[0].tolist()
        == ids[0].tolist() + text[:5]
    )
