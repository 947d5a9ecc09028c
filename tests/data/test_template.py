import copy

import pytest

from medusa.data.chats import IGNORED, Encoder
from medusa.data.template import choose_template

Q, A = (
    {"role": "user", "content": "where is the cat?"},
    {"role": "assistant", "content": "on the mat"},
)
SYSTEM = {"role": "system", "content": "be kind"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "cat", "arguments": "{}"}}],
}
LAST = {"role": "assistant", "content": "a cat sat"}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}<|im_end|>\n{% endfor %}"  # noqa: E501
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"  # noqa: E501
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI = (  # the end mark of a chat differs from that of a turn
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}"
    "ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKS = (
    "{% for m in messages %}\n\n### {{ 'Human' if m.role == 'user' else 'Assistant' }}: "
    "{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}\n\n### Assistant:{% endif %}"
)
UNHEARD = (
    "{% for m in messages %}{{ m.role }}> {{ m.content }} [over]\n{% endfor %}"
    "{% if add_generation_prompt %}assistant> {% endif %}"
)


def learnt(tokenizer, example):
    """Return the texts of the spans that are trained on."""
    spans, inside = [], False
    for token, label in zip(example.ids, example.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            spans += [] if inside else [[]]
            spans[-1].append(token)
        inside = label != IGNORED
    return [tokenizer.decode(span, skip_special_tokens=False) for span in spans]


@pytest.fixture
def with_tokens(tokenizer):
    def make(*special, **named):
        other = copy.deepcopy(tokenizer)
        other.add_special_tokens(
            {"additional_special_tokens": list(special)}, replace_extra_special_tokens=False
        )
        other.add_special_tokens(named)
        return other

    return make


@pytest.mark.parametrize(
    ("template", "special", "end"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
        (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
        (GEMMA.replace("<end_of_turn>", "<turn|>"), ["<start_of_turn>", "<turn|>"], "<turn|>"),
        (
            CHATML.replace("<|im_end|>", "<|endofturn|>"),
            ["<|im_start|>", "<|endofturn|>"],
            "<|endofturn|>",
        ),
        (
            LLAMA3.replace("<|eot_id|>", "<|eot|>"),
            ["<|start_header_id|>", "<|end_header_id|>", "<|eot|>"],
            "<|eot|>",
        ),
        (ZEPHYR, [], "</s>"),
        (PHI, ["<|end|>"], "<|end|>"),
        (VICUNA, [], "</s>"),
        (MISTRAL, ["[INST]", "[/INST]"], "</s>"),
        (GLM, [], "<|user|>"),
        (MARKS, [], "\n### Human:"),
        (UNHEARD, [], " [over]"),
    ],
)
def test_the_end_mark_of_a_turn_is_trained_on_in_templates_of_every_style(
    with_tokens, template, special, end
):
    tokenizer = with_tokens(*special, bos_token="<s>", eos_token="</s>")
    encoder = Encoder(tokenizer, template)
    for chat in ([Q, A], [Q, A, Q, LAST], [SYSTEM, Q, A, Q, LAST]):
        if template in (MARKS, VICUNA, MISTRAL) and chat[0] is SYSTEM:
            continue
        said = [turn["content"] + end for turn in chat if turn["role"] == "assistant"]
        example = encoder(chat)
        assert [each.lstrip() for each in learnt(tokenizer, example)] == said
        assert encoder.prompt(chat[:-1]) == example.ids[: len(encoder.prompt(chat[:-1]))]


def test_stop_tokens_are_trained_on(with_tokens):
    tokenizer = with_tokens("<|observation|>", eos_token="</s>")
    stop = tokenizer.convert_tokens_to_ids("<|observation|>")
    chat = [Q, A, {"role": "observation", "content": "4"}, LAST]
    assert learnt(tokenizer, Encoder(tokenizer, GLM)(chat))[0] == "on the mat"
    assert (
        learnt(tokenizer, Encoder(tokenizer, GLM, stops={stop})(chat))[0]
        == "on the mat<|observation|>"
    )


def test_tool_calls_are_trained_on(with_tokens):
    tokenizer = with_tokens("<|im_start|>", "<|im_end|>")
    chat = [Q, CALL, {"role": "tool", "content": "on the mat"}, LAST]
    said = ["<call>cat</call><|im_end|>", "a cat sat<|im_end|>"]
    assert learnt(tokenizer, Encoder(tokenizer, CHATML)(chat)) == said
    silent = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    silent += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    example = Encoder(tokenizer, silent)([Q, CALL])  # the next turn is the tool's, not the user's
    assert not learnt(tokenizer, example)[0].endswith("<|user|>")
    plain = Encoder(tokenizer)
    plain.template = None
    with pytest.raises(ValueError, match="needs a chat template"):
        plain(chat)


NAMED = {"default": CHATML, "tool_use": "{{ tools[0].name }}: " + CHATML}


def test_one_of_several_templates_is_chosen_as_transformers_does(with_tokens):
    tokenizer = with_tokens("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = NAMED
    tools = [{"name": "lookup"}]
    for given in (None, tools):
        expected = tokenizer.apply_chat_template([Q, A], tools=given, return_dict=True)["input_ids"]
        assert Encoder(tokenizer)([Q, A], given).ids == expected
    assert choose_template(tokenizer, "tool_use") == NAMED["tool_use"]
    with pytest.raises(ValueError, match="no chat template named rag: there are default, tool_use"):
        Encoder(tokenizer, "rag")
    tokenizer.chat_template = {"rag": CHATML}
    with pytest.raises(
        ValueError, match=r"chat templates rag and none named default.*--chat-template"
    ):
        Encoder(tokenizer)
    assert learnt(tokenizer, Encoder(tokenizer, "rag")([Q, A])) == ["on the mat<|im_end|>"]


def test_an_invalid_template_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="template cannot be read"):
        Encoder(tokenizer, "{% if %}")
