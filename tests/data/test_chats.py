import copy

import pytest
from tokenizers import Regex

from medusa.data.chats import IGNORED, Encoder, Example, encode_prompt

CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "where is the cat?"},
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": "on the mat"},
    {"role": "assistant", "content": " a cat sat\n"},
]
CHATML = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] | trim }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] | trim }}<|end|>{% endif %}\n{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% elif m['role'] == 'assistant' %}ASSISTANT: "
    "{{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
REASONING = (  # leaves out the reasoning of all turns but the last
    "{% for m in messages %}<|user|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and '</think>' in m['content'] and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] | trim }}{% else %}{{ m['content'] | trim }}{% endif %}<|end|>\n{% endfor %}"  # noqa: E501
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)


def learnt(tokenizer, example):
    """Return the texts of the spans that are trained on."""
    spans, inside = [], False
    for token, label in zip(example.ids, example.labels, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            inside = False
            continue
        if not inside:
            spans.append([])
        inside = True
        spans[-1].append(token)
    return [tokenizer.decode(span, skip_special_tokens=False) for span in spans]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, ["on the mat<|end|>", "a cat sat<|end|>"]),
        (MARKED, ["on the mat<|end|>", "a cat sat<|end|>"]),
        (VICUNA, [" on the mat<|end|>", " a cat sat<|end|>"]),
    ],
)
def test_only_assistant_turns_and_their_end_marks_are_trained_on(tokenizer, template, said):
    assert learnt(tokenizer, Encoder(tokenizer, template)(CHAT)) == said


def test_the_tokenizers_own_template_works_with_eos_as_padding(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.eos_token
    example = Encoder(other)(CHAT[1:3])
    assert learnt(other, example) == ["on the mat<|end|>"]
    assert example.labels[-1] == other.eos_token_id or example.labels[-2] == other.eos_token_id


def test_text_that_a_template_leaves_out_is_not_trained_on(tokenizer):
    thought = [{**turn} for turn in CHAT[1:]]
    thought[1]["content"] = "<think>the mat</think>on the mat"
    thought[3]["content"] = "<think>a cat</think>a cat sat"
    found = learnt(tokenizer, Encoder(tokenizer, REASONING)(thought))
    assert found == ["on the mat<|end|>", "<think>a cat</think>a cat sat<|end|>"]


def test_an_example_begins_with_its_prompt(tokenizer):
    encoder = Encoder(tokenizer)
    prompt = encoder.prompt(CHAT[1:2])
    assert encoder(CHAT[1:3]).ids[: len(prompt)] == prompt


def test_texts_and_models_without_a_template(tokenizer):
    encoder = Encoder(tokenizer)
    text = encoder("a cat sat")
    assert learnt(tokenizer, text) == ["a cat sat<|end|>"]
    encoder.template = None
    assert learnt(tokenizer, encoder(CHAT[1:3])) == ["on the mat<|end|>"]


# The answer's span begins the text, and ends in blanks that the tokenizer drops.
STRIPPED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>   "  # noqa: E501
    "{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)


def test_marked_spans_may_end_in_blanks_without_tokens_or_begin_the_text(tokenizer):
    from tokenizers import normalizers, pre_tokenizers

    blind = copy.deepcopy(tokenizer)
    split = pre_tokenizers.Split(Regex(r"\s"), "removed")
    blind.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, blind.backend_tokenizer.pre_tokenizer]
    )
    blind.backend_tokenizer.normalizer = normalizers.Replace("   ", "")
    encoder = Encoder(blind, STRIPPED)
    assert learnt(blind, encoder(CHAT[1:])) == ["onthemat<|end|>", "acatsat<|end|>"]
    assert learnt(blind, encoder([{"role": "assistant", "content": "a"}, *CHAT[1:2]])) == [
        "a<|end|>"
    ]
    assert learnt(blind, encoder([{"role": "assistant", "content": ""}, *CHAT[1:3]])) == [
        "<|end|>",
        "onthemat<|end|>",
    ]


@pytest.mark.parametrize("template", [None, CHATML, MARKED, VICUNA, REASONING])
def test_nothing_after_a_cut_answer_is_trained_on(tokenizer, template):
    encoder = Encoder(tokenizer, template)
    encoder.template = template
    chat = [*CHAT[1:4], {"role": "assistant", "content": "a cat sa", "cut": True}]
    example = encoder(chat)
    said = learnt(tokenizer, example)
    assert [each.lstrip() for each in said] == ["on the mat<|end|>", "a cat sa"]
    assert example.labels[-1] == example.ids[-1] == tokenizer("a cat sa")["input_ids"][-1]
    assert example.ids == encoder([*chat[:3], {**chat[3], "cut": False}]).ids[: len(example.ids)]


def test_the_mark_of_a_cut_answer_does_not_reach_templates(tokenizer):
    template = "{% for m in messages %}{{ m.items() | list }}{{ m.content }}{% endfor %}"
    chat = [CHAT[1], {"role": "assistant", "content": "a cat", "cut": True}]
    assert "cut" not in tokenizer.decode(Encoder(tokenizer, template)(chat).ids)
    assert "cut" not in tokenizer.decode(encode_prompt(tokenizer, chat, template))


def test_without_a_template_examples_begin_with_their_prompts(tokenizer):
    encoder = Encoder(tokenizer)
    encoder.template = None
    ids = encoder(CHAT).ids
    for asked in (CHAT[:2], CHAT[:4]):
        assert ids[: len(encoder.prompt(asked))] == encoder.prompt(asked)
    assert (
        encoder.prompt(CHAT[1:2]) == tokenizer(CHAT[1]["content"])["input_ids"]
    )  # as `generate` asks
    assert learnt(tokenizer, encoder(CHAT)) == ["on the mat<|end|>", " a cat sat\n<|end|>"]


def test_special_tokens_in_the_text_are_not_added_again(
    tokenizer,
):
    from tokenizers import processors

    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"bos_token": "<s>"})
    marks = [("<s>", other.bos_token_id)]
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=marks
    )
    encoder = Encoder(other)
    assert encoder("<s>a cat<|end|>") == encoder("a cat")
    encoder.template = None
    begun = [{**CHAT[1], "content": "<s>where is the cat?"}, CHAT[2]]
    assert encoder(begun) == encoder(CHAT[1:3])
    assert encoder.prompt(begun[:1]) == encoder.prompt(CHAT[1:2])


LONG = "where is the cat? on the mat " * 2000


@pytest.mark.parametrize("template", [None, CHATML, MARKED, VICUNA, REASONING])
@pytest.mark.parametrize(
    "chat",
    [
        [*CHAT[1:4], {"role": "assistant", "content": LONG}],
        [*CHAT[1:3], {"role": "user", "content": LONG}, CHAT[2], *CHAT[1:3]],
        CHAT[1:3] * 40,
        LONG,
    ],
    ids=["answer", "question", "turns", "text"],
)
def test_truncated_examples_equal_the_beginning_of_the_whole_chat(tokenizer, template, chat):
    whole, bounded = Encoder(tokenizer, template), Encoder(tokenizer, template, max_length=200)
    whole.template = bounded.template = template
    example = bounded(chat)
    assert len(example.ids) == 201
    assert example.cut(200) == whole(chat).cut(200)


def test_little_of_a_huge_chat_is_tokenised_and_rendered(tokenizer, monkeypatch):
    encoder = Encoder(tokenizer, CHATML, max_length=100)
    seen = []
    original = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, text, **o: seen.append(len(text)) or original(self, text, **o),
    )
    renders = []
    rendered = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer),
        "apply_chat_template",
        lambda self, *a, **o: renders.append(rendered(self, *a, **o)) or renders[-1],
    )
    encoder([*CHAT[1:3], CHAT[1], {"role": "assistant", "content": LONG * 20}, *CHAT[1:3] * 500])
    assert sum(seen) < 10_000
    assert sum(len(text) > 10_000 for text in renders) <= 3


def test_labels_must_be_as_many_as_ids():
    with pytest.raises(ValueError, match="as many labels"):
        Example([1, 2], [1])
    assert Example.answered([1, 2], [3]).labels == [IGNORED, IGNORED, 3]
