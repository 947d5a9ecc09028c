"""transformers' pipelines, chat templates and streamers with a `MedusaModel`."""

import copy
import logging
from threading import Thread

import pytest
import torch
from models import ScriptedHeads, tiny
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

from medusa import CandidateTree, MedusaModel

KINDS = ["llama", "mistral", "qwen2"]
NEW = 24
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = [{"role": "user", "content": "where is the cat?"}]


@pytest.fixture
def chat_tokenizer(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template, own.padding_side = TEMPLATE, "left"
    own.pad_token = own.pad_token or own.eos_token
    return own


@pytest.fixture(params=KINDS)
def base(request, tokenizer):
    return tiny(request.param, vocab_size=len(tokenizer))


@pytest.fixture
def chat(chat_tokenizer):
    return chat_tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


@pytest.fixture
def model(base, chat):
    """The base with heads that know its answer to the chat."""
    text = base.generate(**chat, max_new_tokens=NEW + 8, do_sample=False).tolist()
    model = MedusaModel.from_base(base, num_heads=3)
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, text, 0.8)
    return model


def both(model, tokenizer, **options):
    """A pipeline with the base model and one with Medusa."""
    return [
        pipeline("text-generation", model=each, tokenizer=tokenizer, **options)
        for each in (model.base, model)
    ]


def test_a_pipeline_answers_as_with_the_base_model(model, chat_tokenizer, monkeypatch):
    calls = []
    generate = type(model).generate

    def counted(self, *args, **kwargs):
        kwargs["tree"] = CandidateTree.dense([3, 2, 2])
        output = generate(self, *args, return_dict_in_generate=True, **kwargs)
        calls.append(output.stats.acceleration_rate)
        return output.sequences

    monkeypatch.setattr(type(model), "generate", counted)
    of_base, of_medusa = both(model, chat_tokenizer, max_new_tokens=NEW, do_sample=False)
    answer = of_medusa(CHAT)[0]["generated_text"]
    assert answer == of_base(CHAT)[0]["generated_text"]
    assert [each["role"] for each in answer] == ["user", "assistant"]
    assert calls[0] > 1.2
    assert of_medusa("a cat sat") == of_base("a cat sat")
    texts = ["one two", "a cat sat on the mat", "where"]
    assert of_medusa(texts, batch_size=3) == of_base(texts, batch_size=3)
    assert of_medusa([CHAT, CHAT[:1]]) == of_base([CHAT, CHAT[:1]])


@pytest.mark.parametrize(
    "options",
    [
        {"return_full_text": False},
        {"return_tensors": True},
        {"num_return_sequences": 3, "do_sample": True, "top_k": 1},
        {
            "generation_config": GenerationConfig(
                repetition_penalty=1.3, max_new_tokens=NEW, do_sample=True, top_k=1
            )
        },
        {"stop_sequence": "t"},
        {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_pipelines(model, chat_tokenizer, options):
    call = {} if "generation_config" in options else {"max_new_tokens": NEW, "do_sample": False}
    call |= options
    theirs, mine = (each("one two three", **call) for each in both(model, chat_tokenizer))
    scores = [[record.pop("scores", [0.0]) for record in records] for records in (theirs, mine)]
    assert mine == theirs
    torch.testing.assert_close(*map(torch.tensor, scores), rtol=1e-4, atol=1e-4)


def test_a_pipeline_takes_the_model_without_complaints(model, chat_tokenizer, caplog):
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("transformers"):
            logging.getLogger(name).propagate = True
    with caplog.at_level(logging.WARNING):
        made = pipeline("text-generation", model=model, tokenizer=chat_tokenizer, device="cpu")
        made(CHAT, max_new_tokens=2, do_sample=False)
    assert [each.getMessage() for each in caplog.records] == []
    assert "MedusaModel" in repr(made)
    assert made.model is model


def test_the_configuration_is_the_base_models(model):
    assert model.config is model.base.config
    model.generation_config = GenerationConfig(max_new_tokens=3, do_sample=False)
    assert model.base.generation_config.max_new_tokens == 3
    assert model.generate(torch.tensor([[5, 6]])).shape == (1, 5)


def test_a_text_iterator_streamer_gets_what_the_base_model_gives_it(model, chat_tokenizer, chat):
    pieces = []
    for each in (model.base, model):
        streamer = TextIteratorStreamer(chat_tokenizer, skip_prompt=True, timeout=60)
        options = {**chat, "max_new_tokens": NEW, "do_sample": False, "streamer": streamer}
        thread = Thread(target=each.generate, kwargs=options)
        thread.start()
        pieces.append(list(streamer))
        thread.join()
    assert pieces[0] == pieces[1]
    assert "".join(pieces[1])
