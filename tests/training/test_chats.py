import pytest

from medusa.training.chats import IGNORED, Encoder, Example
from medusa.training.fields import read_chat
from medusa.training.records import Record

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
    "{% elif m['role'] == 'assistant' %}ASSISTANT: {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
REASONING = (  # leaves out the reasoning of all turns but the last
    "{% for m in messages %}<|user|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and '</think>' in m['content'] and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] | trim }}{% else %}{{ m['content'] | trim }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)


def learnt(tokenizer, example):
    """The texts of the learnt stretches."""
    stretches, inside = [], False
    for token, label in zip(example.ids, example.labels, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            inside = False
            continue
        if not inside:
            stretches.append([])
        inside = True
        stretches[-1].append(token)
    return [tokenizer.decode(stretch, skip_special_tokens=False) for stretch in stretches]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, ["on the mat<|end|>", "a cat sat<|end|>"]),
        (MARKED, ["on the mat<|end|>", "a cat sat<|end|>"]),
        (VICUNA, [" on the mat<|end|>", " a cat sat<|end|>"]),
    ],
)
def test_assistant_turns_and_their_ends_are_learnt_and_nothing_else(tokenizer, template, said):
    assert learnt(tokenizer, Encoder(tokenizer, template)(CHAT)) == said


def test_the_tokenizers_own_template_and_a_pad_that_is_the_end(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.pad_token = other.eos_token
    example = Encoder(other)(CHAT[1:3])
    assert learnt(other, example) == ["on the mat<|end|>"]
    assert example.labels[-1] == other.eos_token_id or example.labels[-2] == other.eos_token_id


def test_what_a_template_leaves_out_is_not_learnt(tokenizer):
    thought = [{**turn} for turn in CHAT[1:]]
    thought[1]["content"] = "<think>the mat</think>on the mat"
    thought[3]["content"] = "<think>a cat</think>a cat sat"
    found = learnt(tokenizer, Encoder(tokenizer, REASONING)(thought))
    assert found == ["on the mat<|end|>", "<think>a cat</think>a cat sat<|end|>"]


def test_a_prompt_of_the_encoder_is_how_its_examples_begin(tokenizer):
    encoder = Encoder(tokenizer)
    prompt = encoder.prompt(CHAT[1:2])
    assert encoder(CHAT[1:3]).ids[: len(prompt)] == prompt


def test_texts_and_models_without_a_template(tokenizer):
    encoder = Encoder(tokenizer)
    text = encoder("a cat sat")
    assert learnt(tokenizer, text) == ["a cat sat<|end|>"]
    encoder.template = None
    assert learnt(tokenizer, encoder(CHAT[1:3])) == ["on the mat<|end|>"]


def test_records_of_every_kind():
    pair = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    kinds = [
        {"messages": pair},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "response": "a"},
        {"instruction": "q", "output": "a", "input": ""},
    ]
    assert [read_chat(Record(kind, "x")) for kind in kinds] == [pair] * 4
    assert read_chat(Record({"text": "t"}, "x")) == "t"
    assert read_chat(Record("t", "x")) == "t"
    asked = read_chat(Record({"instruction": "q", "input": "more", "output": "a", "system": "s"}, "x"))
    assert [turn["content"] for turn in asked] == ["s", "q\n\nmore", "a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"foo": 1}, "it has foo"),
        ({"messages": []}, "list of turns"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] needs role and content"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, r"conversations\[0\] must hold texts, got int"),
        ({"prompt": "q", "response": None}, "response"),
        (7, "got int"),
    ],
)
def test_malformed_records_are_named_with_place_and_field(content, said):
    with pytest.raises(ValueError, match=f"data.jsonl, line 7.*{said}"):
        read_chat(Record(content, "data.jsonl, line 7"))


def test_labels_are_as_many_as_ids():
    with pytest.raises(ValueError, match="as many labels"):
        Example([1, 2], [1])
    assert Example.answered([1, 2], [3]).labels == [IGNORED, IGNORED, 3]
