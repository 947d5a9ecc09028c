from hypothesis import given
from hypothesis import strategies as st

from medusa.serve.stops import Shown, with_stop_strings


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4)), st.data())
def test_text_is_shown_up_to_the_first_stop_string(text, strings, data):
    shown, pieces, rest = Shown(strings), "", text
    while rest and not any(each in pieces for each in strings):
        size = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:size], rest[size:]
        pieces += shown.push(piece)
        if any(each in text[: len(text) - len(rest)] for each in strings):
            break
    pieces += shown.flush()
    seen = text[: len(text) - len(rest)]
    ends = [seen.find(each) for each in strings if each in seen]
    assert pieces == seen[: min(ends, default=len(seen))]


def test_a_rule_ends_the_text_with_the_token_that_completes_a_stop_string(tokenizer):
    prompt = tokenizer("the cat sat")["input_ids"]
    ids = tokenizer("the cat sat on the mat")["input_ids"]
    rule = with_stop_strings(lambda ids: None, tokenizer, ["cat", "n the"], len(prompt))
    reasons = [rule(ids[:length]) for length in range(len(prompt) + 1, len(ids) + 1)]
    first = reasons.index("stop_string")
    assert "n the" in tokenizer.decode(ids[: len(prompt) + 1 + first])
    assert "n the" not in tokenizer.decode(ids[: len(prompt) + first])


def test_without_stop_strings_the_rule_is_the_model_s(tokenizer):
    def rule(ids):
        return "stop"

    assert with_stop_strings(rule, tokenizer, [], 0) is rule
