"""Chat prompts, text that streams, and the ends of answers."""

import pytest
from models import ScriptedHeads

from medusa import MedusaModel
from medusa.text import (
    INCOMPLETE,
    Detokenizer,
    answer_text,
    encode_chat,
    encode_text,
    stream_text,
)

TEXT = "naïve café & ½ 東京 🌳 <|end|>one"


@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_are_the_decoded_text_whatever_is_cut(tokenizer, size):
    ids = tokenizer(TEXT)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert INCOMPLETE not in "".join(pieces)
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_incomplete_character_comes_with_the_flush(tokenizer):
    cut = Detokenizer(tokenizer)
    assert cut.push(tokenizer("🌳")["input_ids"][:1]) == ""
    assert cut.flush() == INCOMPLETE


def test_accepted_candidates_are_told_apart(base_folder, tokenizer):
    model = MedusaModel.from_base(base_folder, 2)
    ids = encode_text(tokenizer, "one two three", raw=True)
    answer = model.base.generate(ids, max_new_tokens=30, do_sample=False)
    model.heads = ScriptedHeads(model, answer.tolist(), 1.0)
    pieces = list(stream_text(model.steps(ids, max_new_tokens=24).events(), tokenizer))
    new = answer[0, ids.shape[1] :][:24]
    assert "".join(text for text, _ in pieces) == tokenizer.decode(new, skip_special_tokens=True)
    assert any(accepted for _, accepted in pieces)


def test_a_prompt_is_a_users_message_unless_it_is_raw(tokenizer):
    message = [{"role": "user", "content": "one two"}]
    assert encode_text(tokenizer, "one two").equal(encode_chat(tokenizer, message))
    assert tokenizer.decode(encode_chat(tokenizer, message)[0]).endswith("<|assistant|>\n")
    assert tokenizer.decode(encode_text(tokenizer, "one two", raw=True)[0]) == "one two"


def test_a_template_that_refuses_a_conversation_is_a_value_error(base_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.chat_template = "{{ raise_exception('no such chat') }}"
    with pytest.raises(ValueError, match="refuses the conversation: no such chat"):
        encode_chat(tokenizer, [{"role": "user", "content": "one"}])


@pytest.mark.parametrize(
    ("text", "reason", "stop_strings", "answer"),
    [
        ("one two<|end|>", "stop", [], "one two"),
        ("one two", "length", [], "one two"),
        ("one two; three", "stop_string", [";"], "one two"),
        ("one two; three", "length", ["!"], "one two; three"),
        ("one two<|end|>", "stop_string", ["<|end|>"], "one two"),
    ],
)
def test_what_ends_an_answer_is_no_part_of_it(tokenizer, text, reason, stop_strings, answer):
    assert answer_text(tokenizer, tokenizer(text)["input_ids"], reason, stop_strings) == answer


def test_an_answer_cut_inside_a_character_loses_it(tokenizer):
    ids = tokenizer("one 🌳")["input_ids"][:-1]
    assert answer_text(tokenizer, ids, "length") == "one"
