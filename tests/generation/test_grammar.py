"""Texts under a grammar are valid, and those of the base model's own `generate`."""

import json
import re

import pytest
import torch
from models import ScriptedHeads, tiny

from medusa import CandidateTree, MedusaModel
from medusa.core.processing import TreeProcessors

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,6}$"},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["cat", "mat", "seven"]}, "maxItems": 3},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}
NEW = 80
KINDS = ["llama", "mistral", "qwen2"]


@pytest.fixture(params=KINDS)
def base(request, tokenizer):
    return tiny(request.param, vocab_size=len(tokenizer))


@pytest.fixture
def prompts(tokenizer):
    return tokenizer(["where is the cat?"], return_tensors="pt").input_ids


def with_heads(base, texts, accuracy=0.8):
    model = MedusaModel.from_base(base, num_heads=3)
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, texts, accuracy)
    return model


def compared(base, tokenizer, prompts, new_processor, **options):
    """The texts of the base under a processor, which Medusa's equal; several tokens a step."""
    options = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "attention_mask": torch.ones_like(prompts),
        "return_dict_in_generate": True,
        **options,
    }
    expected = base.generate(prompts, logits_processor=[new_processor()], **options).sequences
    model = with_heads(base, expected.tolist())
    tree = CandidateTree.dense([3, 2, 2])
    given = model.generate(prompts, logits_processor=[new_processor()], tree=tree, **options)
    assert given.sequences.tolist() == expected.tolist()
    assert given.stats.acceleration_rate > 1.3
    new = expected[:, prompts.shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in new]


def assert_fits_the_schema(text):
    value = json.loads(text)
    assert list(value) == ["name", "count", "tags"]
    assert re.fullmatch("[a-z]{1,6}", value["name"])
    assert 0 <= value["count"] <= 999
    assert set(value["tags"]) <= {"cat", "mat", "seven"}


class TestLlguidance:
    """The grammars of this library."""

    @pytest.fixture(autouse=True)
    def grammar(self):
        pytest.importorskip("llguidance", reason="the extra 'structured' is not installed")
        from medusa import Grammar

        return Grammar

    def test_a_json_schema(self, base, tokenizer, prompts, grammar):
        (text,) = compared(base, tokenizer, prompts, lambda: grammar.json_schema(tokenizer, SCHEMA))
        assert_fits_the_schema(text)
        assert text == json.dumps(json.loads(text), ensure_ascii=False)

    def test_rows_of_a_batch_that_end_at_different_places(self, base, tokenizer, grammar):
        batch = tokenizer(["a cat sat", "one two three"], return_tensors="pt").input_ids[:, :3]
        texts = compared(base, tokenizer, batch, lambda: grammar.json_schema(tokenizer, SCHEMA))
        for text in texts:
            assert_fits_the_schema(text)

    def test_a_pattern(self, base, tokenizer, prompts, grammar):
        pattern = r"[0-9]{3}-[a-c]{5}( cat| mat){4}"
        (text,) = compared(base, tokenizer, prompts, lambda: grammar.regex(tokenizer, pattern))
        assert re.fullmatch(pattern, text)

    def test_a_context_free_grammar(self, base, tokenizer, prompts, grammar):
        rules = (
            'start: "(" pair ")"\npair: NUMBER "+" NUMBER | start "*" NUMBER\nNUMBER: /[0-9]{3}/'
        )
        (text,) = compared(base, tokenizer, prompts, lambda: grammar.lark(tokenizer, rules))
        assert text.startswith("(")
        assert text.count("(") == text.count(")")
        assert isinstance(eval(re.sub(r"\b0+(?=\d)", "", text)), int)

    def test_sampled_texts_fit_the_schema(self, base, tokenizer, prompts, grammar):
        model = MedusaModel.from_base(base, num_heads=3)
        torch.manual_seed(0)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
        for acceptance in ("rejection", "typical"):
            given = model.generate(
                prompts,
                logits_processor=[grammar.json_schema(tokenizer, SCHEMA)],
                do_sample=True,
                acceptance=acceptance,
                num_return_sequences=4,
                max_new_tokens=NEW,
                **ends,
            )[:, prompts.shape[1] :]
            for text in tokenizer.batch_decode(given, skip_special_tokens=True):
                assert_fits_the_schema(text)

    def test_an_object_serves_several_calls(self, tokenizer, prompts, grammar):
        base = tiny("llama", vocab_size=len(tokenizer) + 7)  # more tokens than the tokenizer has
        own = grammar.regex(tokenizer, "[a-z]{4}")
        options = {"max_new_tokens": 9, "eos_token_id": tokenizer.eos_token_id, "do_sample": False}
        model = MedusaModel.from_base(base, num_heads=3)
        runs = [
            each.generate(prompts, logits_processor=[own], **options).tolist()
            for each in (base, base, model, model)
        ]
        assert runs[0] == runs[1] == runs[2] == runs[3]

    def test_forks_go_on_by_themselves(self, tokenizer, grammar):
        own, scores = grammar.regex(tokenizer, "ab"), torch.zeros(1, len(tokenizer))
        (a,), (b,) = tokenizer(["a", "b"], add_special_tokens=False).input_ids
        first = own(torch.tensor([[5]]), scores)
        assert first[0, a] == 0
        assert first[0, b] == -torch.inf
        fork = own.fork()
        second = own(torch.tensor([[5, a]]), scores)
        assert second[0, b] == 0
        assert torch.equal(fork(torch.tensor([[5, a]]), scores), second)
        assert own(torch.tensor([[5, a, b]]), scores).argmax() == tokenizer.eos_token_id
        with pytest.raises(ValueError, match="left the grammar"):
            fork(torch.tensor([[5, a, a]]), scores)

    def test_the_grammar_is_asked_only_about_nodes_that_can_be_accepted(self, tokenizer, grammar):
        calls = []

        class Counting(grammar):
            def __call__(self, input_ids, scores):
                calls.append(input_ids[0].tolist())
                return super().__call__(input_ids, scores)

            def fork(self):
                other = super().fork()
                other.__class__ = Counting
                return other

        (a, b) = (each[0] for each in tokenizer(["a", "b"], add_special_tokens=False).input_ids)
        tree = CandidateTree([(0,), (1,), (0, 0), (0, 1), (1, 0)])
        processors = TreeProcessors([Counting.regex(tokenizer, "[ab]b.*")])
        logits = torch.zeros(6, len(tokenizer))
        tokens = torch.tensor([5, a, a, b, b, b])  # in the order of the tree's nodes
        processors([5], tree, tokens, logits)
        assert calls == [[5], [5, a], [5, a, b], [5, b], [5, b, b]]

    def test_whitespace_and_end_tokens(self, tokenizer, grammar):
        scores, start = torch.zeros(1, len(tokenizer)), torch.tensor([[5]])
        begin, space = (ids[0] for ids in tokenizer(["[", " "], add_special_tokens=False).input_ids)
        schema = {"type": "array", "items": {"enum": [7]}, "minItems": 1}
        for any_whitespace in (False, True):
            own = grammar.json_schema(tokenizer, schema, any_whitespace=any_whitespace)
            assert own(start, scores)[0, begin] == 0
            second = own(torch.tensor([[5, begin]]), scores)
            assert bool(second[0, space] == 0) == any_whitespace
        for ends in (3, [3], [3, 4]):
            done = grammar.regex(tokenizer, "", ends)(start, scores)[0] == 0
            assert done.nonzero().flatten().tolist() == ([ends] if ends == 3 else ends)

    def test_invalid_grammars_are_refused(self, tokenizer, grammar):
        with pytest.raises(ValueError, match="grammar"):
            grammar.regex(tokenizer, "(a")
        with pytest.raises(ValueError, match="nosuch"):
            grammar.json_schema(tokenizer, {"type": "nosuch"})


def test_without_llguidance_the_extra_is_named(tokenizer, monkeypatch):
    import sys

    from medusa import Grammar

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"medusa-decoding\[structured\]"):
        Grammar.regex(tokenizer, "a")


def test_xgrammar(base, tokenizer, prompts):
    xgrammar = pytest.importorskip("xgrammar", reason="xgrammar is not installed")
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(
        json.dumps(SCHEMA), any_whitespace=False
    )
    (text,) = compared(
        base, tokenizer, prompts, lambda: xgrammar.contrib.hf.LogitsProcessor(compiled)
    )
    assert_fits_the_schema(text)


@pytest.mark.parametrize("backend", ["outlines_core", "llguidance", "xgrammar"])
def test_outlines(base, tokenizer, prompts, backend):
    outlines = pytest.importorskip("outlines", reason="outlines is not installed")
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    from outlines.backends import get_regex_logits_processor

    steerable = outlines.from_transformers(base, tokenizer)
    pattern = r"[0-9]{3}-[a-c]{5}( cat| mat){4}"
    (text,) = compared(
        base, tokenizer, prompts, lambda: get_regex_logits_processor(backend, steerable, pattern)
    )
    assert re.fullmatch(pattern, text)
