import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from medusa.data.tokens import PrefixTokenizer

WORDS = [
    "a cat sat on the mat",
    "where is the cat?",
    "one  two   three\n\n\nfour",
    "naïve 東京 🌳 <s>",
]


def pieces_of_words(**options):
    """A byte-level BPE tokenizer, as of GPT-2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        WORDS * 9, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet)
    )
    return bpe


def pieces_of_texts():
    """A BPE tokenizer whose merges may cross words, as of Llama 2."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    bpe.train_from_iterator(
        WORDS * 9, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"])
    )
    return bpe


def likeliest_pieces():
    """A unigram tokenizer, as of T5 and Gemma."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        WORDS * 9,
        trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>"),
    )
    return unigram


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, text, **options):
        self.characters += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("made", [pieces_of_words, pieces_of_texts, likeliest_pieces])
def test_the_first_tokens_equal_those_of_the_whole_text(made):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made())
    chance = random.Random(0)
    alphabet = [*WORDS, " ", "   ", "\n", "a", "the cat", "ZZ", "🌳"]
    texts = [
        "".join(chance.choices(alphabet, k=400)),
        "a" * 5000,
        " " * 5000,
        "🌳" * 900,
        "the" * 2000,
        "short",
        "",
    ]
    for text in texts:
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for most in (1, 7, 50, 100_000):
            tokenised = PrefixTokenizer(tokenizer, most).tokenise(text)
            assert tokenised.ids == whole["input_ids"][:most]
            assert tokenised.offsets == whole["offset_mapping"][:most]
            assert tokenised.complete == (len(whole["input_ids"]) <= most)


def test_the_amount_of_tokenised_text_grows_with_the_tokens_wanted():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces_of_words())
    counting = Counting(tokenizer)
    assert len(PrefixTokenizer(counting, 100).tokenise("where is the cat? " * 100_000).ids) == 100
    assert counting.characters < 10_000


def test_special_tokens_around_a_text_are_added_once():
    bpe = pieces_of_words(add_prefix_space=False)
    bpe.add_special_tokens(["<s>", "</s>"])
    begin, end = bpe.token_to_id("<s>"), bpe.token_to_id("</s>")
    bpe.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    tokens = PrefixTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    )
    for text in ("a cat", "<s>a cat", "a cat</s>", "<s>a cat</s>"):
        ids = tokens.add_eos(tokens.add_suffix(tokens.add_prefix(tokens.tokenise(text).ids)))
        assert (ids[0], ids.count(begin), ids[-1], ids.count(end)) == (begin, 1, end, 1)
