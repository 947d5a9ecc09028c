import pytest
import torch
from models import tiny
from transformers import AutoTokenizer
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from medusa import MedusaModel
from medusa.training.answering import LocalAnswerer
from medusa.training.conversations import (
    Ask,
    FinishedConversation,
    GenerationSettings,
    Turn,
    conversation,
)

ROOM = 24
WORD = "cat "


@pytest.fixture
def own(base_folder):
    """A tokenizer of its own for a test, which may change it."""
    return AutoTokenizer.from_pretrained(base_folder)


def engine(base, tokenizer, ends=True, batch_size=3, **options):
    """Return an answerer with a tiny random model, and with a third of all tokens as EOS tokens.

    The model alone would hardly ever generate its EOS token.
    """
    if ends:
        base.generation_config.eos_token_id = list(range(2, 298, 3))
    settings = GenerationSettings("tiny", **{"max_new_tokens": ROOM, "temperature": 0.0, **options})
    made = LocalAnswerer(MedusaModel.from_base(base, num_heads=1), tokenizer, settings, batch_size)
    made.ends = made.ends if ends else set()
    return made


def model(tokenizer, name="llama", **changes):
    changes = {"max_position_embeddings": 128, **changes}
    return tiny(name, dtype=torch.float32, vocab_size=len(tokenizer), **changes)


def seeds(count=5):
    return [
        (f"seed {n}", [{"role": "user", "content": f"where is the cat {'?' * n}"}])
        for n in range(count)
    ]


def outcomes(made, seeds):
    return {
        each.name: each
        for each in made.drive([(n, conversation(n, s, made.settings)) for n, s in seeds])
    }


def answers(made, asks):
    """The turns that the asks get, together."""

    def single(ask):
        return (yield ask)

    outcomes = made.drive([(str(place), single(ask)) for place, ask in enumerate(asks)])
    turns = {int(each.name): each.result for each in outcomes}
    return [turns[place] for place in range(len(asks))]


def asks(*lengths):
    """Return requests for answers to questions with these numbers of words."""
    return [
        Ask([{"role": "user", "content": WORD * length}], "assistant", f"{length}")
        for length in lengths
    ]


def generated(made, ask, room):
    """Return the turn that transformers generates."""
    ids = torch.tensor([made.encoder.prompt(ask.chat)])
    base = made.model.base
    options = {
        "eos_token_id": sorted(made.ends) or None,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    row = base.generate(ids, max_new_tokens=room, do_sample=False, **options)
    new = row[0, ids.shape[1] :].tolist()
    ended = new[-1] in made.ends
    text = made.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True)
    return Turn(
        (text if ended else text.rstrip("\N{REPLACEMENT CHARACTER}")).strip(), len(new), not ended
    )


def test_answers_equal_those_of_generate_and_cut_ones_are_marked(own):
    made = engine(model(own), own, max_new_tokens=3)
    found = outcomes(made, seeds(8))
    expected = {name: generated(made, Ask(seed, "assistant", ""), 3) for name, seed in seeds(8)}
    assert {turn.cut for turn in expected.values()} == {True, False}
    for name, turn in expected.items():
        assert found[name].tokens == turn.tokens
        assert found[name].result.cut == (turn.cut and bool(turn.text))
        assert [each["content"] for each in found[name].result.messages[1:]] == (
            [turn.text] if turn.text else []
        )


@pytest.mark.parametrize("seed", [0, 1, 2**70])
def test_sampled_turns_depend_on_the_seed_and_not_on_the_batch(own, seed):
    def answers(seed, size):
        made = engine(model(own), own, temperature=1.0, seed=seed, batch_size=size)
        return {name: each.result for name, each in outcomes(made, seeds()).items()}

    assert answers(seed, 3) == answers(seed, 1) != answers(seed + 1, 3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_row_has_its_own_limit(own, name):
    """A prompt near the limit of positions does not shorten the answers to other prompts."""
    positions = {"n_positions" if name == "gpt2" else "max_position_embeddings": 128}
    made = engine(model(own, name, **positions), own, ends=False, max_new_tokens=ROOM)
    batch = asks(2, 55, 52, 30)
    lengths = [len(made.encoder.prompt(ask.chat)) for ask in batch]
    turns = answers(made, batch)
    assert turns == [
        generated(made, ask, turn.tokens) for ask, turn in zip(batch, turns, strict=True)
    ]
    assert [turn.cut for turn in turns] == [True] * 4
    for length, turn in zip(lengths, turns, strict=True):
        room = range(128 - length, 130 - length)  # a text's last token needs no position
        assert turn.tokens == ROOM if length + ROOM <= 128 else turn.tokens in room
    assert len({turn.tokens for turn in turns}) == 3


def test_a_prompt_without_room_gets_an_empty_turn(own):
    made = engine(model(own), own, ends=False)
    short, long = asks(2, 100)
    assert answers(made, [long, short]) == [Turn("", 0, cut=True), *answers(made, [short])]


def test_rows_end_at_the_length_where_the_rotary_factors_change(own):
    """Prompts below and above that length are answered as if each were alone."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        **factors,
    }
    base = model(
        own, "phi3", sliding_window=None, original_max_position_embeddings=64, rope_parameters=rope
    )
    made = engine(base, own, ends=False)
    batch = asks(2, 22, 40)
    lengths = [len(made.encoder.prompt(ask.chat)) for ask in batch]
    assert lengths[0] < 64 - ROOM < lengths[1] < 64 < lengths[2]
    turns = answers(made, batch)
    assert turns[0].tokens == turns[2].tokens == ROOM
    assert turns[1].tokens in (
        64 - lengths[1],
        65 - lengths[1],
    )  # a text's last token needs no position
    assert turns == [answers(made, [ask])[0] for ask in batch]
    assert turns == [
        generated(made, ask, turn.tokens) for ask, turn in zip(batch, turns, strict=True)
    ]


def test_stop_strings_of_the_model_end_an_answer_and_are_removed(own):
    made = engine(model(own), own, ends=False)
    whole = answers(made, asks(2))[0].text
    stop = whole[len(whole) // 2 :][:2]
    made.model.base.generation_config.stop_strings = stop
    made = LocalAnswerer(made.model, own, made.settings, 3)
    turn = answers(made, asks(2))[0]
    assert turn == Turn(whole[: whole.index(stop)].strip(), turn.tokens)
    assert turn.tokens < ROOM


def test_a_conversation_that_cannot_be_asked_does_not_stop_the_others(own):
    own.chat_template = (
        "{% for m in messages %}{% if m['content'] == 'bad' %}{{ raise_exception('no such chat') }}{% endif %}"  # noqa: E501
        "{{ m['content'] }}{% endfor %}"
    )
    made = engine(model(own), own)
    odd = [
        (text, [{"role": "user", "content": text}]) for text in ("bad", "", "half a pair: \ud83d")
    ]
    found = outcomes(made, [*odd[:1], *seeds(2), *odd[1:]])
    assert len(found) == 5
    for name, problem in (
        ("bad", "no such chat"),
        ("", "no tokens"),
        (odd[2][0], "cannot be written as a prompt"),
    ):
        assert isinstance(found[name].result, ValueError)
        assert problem in str(found[name].result)
    assert all(isinstance(found[name].result, FinishedConversation) for name, _ in seeds(2))


def test_the_prompt_of_self_talk_ends_where_the_template_lets_the_user_begin(own):
    own.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }};{% endfor %}"
    made = engine(model(own), own, self_talk=1)
    ids = made._prompt(Ask([{"role": "user", "content": "one"}], "user", "k"))
    assert own.decode(ids) == "<user>one;<user>"
    own.chat_template = None
    with pytest.raises(ValueError, match="need a chat template"):
        engine(model(own), own, self_talk=1)


QUESTION = Ask([], "user", "k")


def test_questions_of_the_models_own_are_sampled_from_their_own_distribution(own):
    made = engine(model(own), own, temperature=0.0, max_question_tokens=7)
    request = made._request(QUESTION)
    assert [type(each) for each in request.processors] == [TopPLogitsWarper]
    assert request.max_length == len(request.ids) + 7
    answer = Ask([{"role": "user", "content": "one"}], "assistant", "k")
    assert made._request(answer).generator is None
    warm = engine(model(own), own, question_temperature=0.5)._request(QUESTION)
    assert [type(each) for each in warm.processors] == [TemperatureLogitsWarper, TopPLogitsWarper]


@pytest.mark.parametrize(
    ("template", "ends", "strings"),
    [
        ("<|user|>{{ m }}<|assistant|>", {"<|assistant|>"}, []),
        ("{{ m }} [/INST] ", set(), ["[/INST]"]),
        ("user: {{ m }}\n", set(), []),
    ],
)
def test_a_question_ends_where_the_template_would_go_on(own, template, ends, strings):
    turn = template.replace("m }}", "m['content'] }}")
    own.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    made = engine(model(own), own, ends=False)
    ids = {own.convert_tokens_to_ids(each) for each in ends}
    assert made._ends_of(QUESTION) == (ids, strings)
    assert made._ends_of(Ask([], "assistant", "k")) == (set(), [])


def test_a_model_that_cannot_answer_ends_its_conversations_with_an_error(tokenizer, own):
    broken = model(tokenizer)
    made = engine(broken, own, ends=False, temperature=1.0)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    found = outcomes(made, seeds())
    assert len(found) == 5
    for each in found.values():
        assert str(each.result).startswith("the model could not answer: no token can be sampled")
