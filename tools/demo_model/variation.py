"""Variations of training tasks, so that the backbone learns to read instead of memorising.

The names and goods of a task come from pools of some hundred values, and its texts from a few
templates. A model that memorises them has a low loss and gives wrong answers for held-out values
and wordings. A variation replaces, in prompt and answer alike, what the answer copies.

Every function draws from the random generator it is given, in a fixed order: another order would
change the training data, and with it the embedded model.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from medusa.demo.tasks import extraction, make_task, tables, values

from .wordings import ANYTHING, PHRASES, fields_of, tellings

_POOLS = (
    values.FIRST_NAMES,
    values.LAST_NAMES,
    values.CITIES,
    values.PRODUCTS,
    values.TOPICS,
    values._COMPANY_NAMES,
)
_TEXTS = (extraction._PERSON, extraction._INVOICE, extraction._EVENT, extraction._PARCEL)


@cache
def known_words() -> tuple[str, ...]:
    """Return every word of the training split that stands for a value, sorted."""
    return tuple(sorted({word for pool in _POOLS for word in pool.values["train"]}))


def task_templates() -> list[str]:
    """Return the extraction tasks' own training templates of all kinds."""
    return [template for pool in _TEXTS for template in pool.values["train"]]


def invented(rng: random.Random, like: str = "", pieces: Sequence[str] = ()) -> str:
    """Return a word without meaning in its place.

    It is joined from the parts of two known words, is another known word, or is random letters.

    Args:
        like: the word begins with a capital if this one does.
        pieces: entries of a vocabulary; if there are any, half of the words are joined from them.
    """
    if pieces and rng.random() < 0.5:
        word = "".join(rng.choices(pieces, k=rng.randint(1, 3)))
        return word.capitalize() if like[:1].isupper() else word.lower()
    kind = rng.random()
    if kind < 0.6:
        head, tail = rng.choice(known_words()), rng.choice(known_words())
        word = head[: rng.randint(2, 4)] + tail[-rng.randint(2, 4) :]
    elif kind < 0.8:
        word = rng.choice(known_words())
    else:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
    return word.capitalize() if like[:1].isupper() else word.lower()


def renamed(
    rng: random.Random, prompt: str, answer: str, pieces: Sequence[str] = (), repeated: bool = False
) -> tuple[str, str]:
    """Return prompt and answer with invented words for the values that the answer copies.

    Args:
        pieces: entries of a vocabulary, from which words are joined.
        repeated: use the same few words for many values, so that the next word cannot be predicted
            from the one before.
    """
    present = set(re.findall(r"[A-Za-z]+", prompt))
    present |= {word.removesuffix("s") for word in present}
    new = {
        word: invented(rng, word, pieces)
        for word in known_words()
        if word in present and re.search(rf"\b{word}s?\b", answer)
    }
    if repeated:
        few = [invented(rng, "", pieces) for _ in range(max(2, len(new) // 2))]
        new = {
            word: rng.choice(few).capitalize() if word[0].isupper() else rng.choice(few)
            for word in new
        }
    function = re.match(r"def (\w+)\(", answer)
    if function:
        new[function[1]] = "_".join(invented(rng, "", pieces) for _ in range(rng.randint(1, 3)))
    if not new:
        return prompt, answer
    pattern = re.compile(rf"\b({'|'.join(new)})(?=s?\b)")
    return tuple(pattern.sub(lambda match: new[match[1]], text) for text in (prompt, answer))  # type: ignore[return-value]


def reworded(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """Return the prompt with the sentences of its longest line shuffled and thinned.

    Words that the answer does not contain are left out at random.

    Args:
        strange: share of the words left out that are replaced by unrelated words.
    """
    lines = prompt.split("\n")
    longest = _longest(lines)
    sentences = re.split(r"(?<=[.!?]) ", lines[longest])
    rng.shuffle(sentences)
    words = " ".join(sentences).split(" ")
    kept = []
    for word in words:
        if rng.random() > 0.12 or re.search(r"\d", word) or word.strip(".,:;!?()") in answer:
            kept.append(word)
        elif rng.random() < strange:
            kept.append(rng.choice(strange_words()))
    lines[longest] = " ".join(kept)
    return "\n".join(lines)


def _resolved(rng: random.Random, telling: str) -> str:
    """Return a telling with one of each of its alternatives [a|b]."""
    return re.sub(r"\[([^][]*)\]", lambda match: rng.choice(match[1].split("|")), telling)


@cache
def clauses() -> dict[str, list[str]]:
    """Return for each field of the extraction tasks how training texts say it.

    A clause is the words before a field, or where the field comes first the words after it.
    """
    rng = random.Random(0)
    resolved = [
        _resolved(rng, telling)
        for same_fields in tellings().values()
        for telling in same_fields
        for _ in range(4)
    ]
    by_field: dict[str, set[str]] = {}
    for text in (*task_templates(), *resolved):
        for before, name, behind in re.findall(r"([^{}.!?;:]*)\{(\w+)\}(?=([^{}.,!?;:()]*))", text):
            words = before.lstrip(" ,)").removeprefix("and ")
            clause = f"{words}{{}}" if words else f"{{}}{behind.rstrip()}"
            by_field.setdefault(name, set()).add(clause)
    return {name: sorted(field_clauses) for name, field_clauses in by_field.items()}


@cache
def _sentences() -> dict[frozenset[str], list[tuple[frozenset[str], str]]]:
    """Return the sentences of tellings and templates, by the fields of the whole text.

    Each sentence comes with its own fields.
    """
    by_fields: dict[frozenset[str], list[tuple[frozenset[str], str]]] = {}
    texts = [telling for same_fields in tellings().values() for telling in same_fields]
    for text in (*task_templates(), *texts):
        kind = next(fields for fields in tellings() if fields == fields_of(text))
        for sentence in re.split(r"(?<=[.!?]) (?![^[]*\])", text):
            fields = re.findall(r"\{(\w+)\}", sentence)
            if fields and len(fields) == len(set(fields)):
                by_fields.setdefault(kind, []).append((frozenset(fields), sentence))
    return by_fields


def recombined(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """Return an extraction prompt with its facts in sentences of several tellings, in any order.

    Args:
        strange: share of the facts without a sentence whose wording does not name the field.
    """
    facts = _spoken_facts(answer)
    left, parts = set(facts), []
    sentences = _sentences()[frozenset(facts)]
    for fields, sentence in rng.sample(sentences, len(sentences)):
        if fields <= left:
            left -= fields
            parts.append(_resolved(rng, sentence))
    for name in sorted(left):
        phrase = (
            _strange_phrase(rng)
            if rng.random() < strange
            else rng.choice((*PHRASES[name], *clauses()[name]))
        )
        part = phrase.replace("{}", f"{{{name}}}")
        parts.append(part[0].upper() + part[1:] + ("" if part[-1] in "!?" else "."))
    rng.shuffle(parts)
    return _with_text(prompt, " ".join(parts).format(**facts))


def retold(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """Return an extraction prompt with its facts in one of the tellings.

    Args:
        strange: share of the texts that are shuffled and get unrelated words, too.
    """
    facts = _spoken_facts(answer)
    telling = _resolved(rng, rng.choice(tellings()[frozenset(facts)]))
    retold_prompt = _with_text(prompt, telling.format(**facts))
    if rng.random() < strange:
        return reworded(rng, retold_prompt, answer, 0.5)
    return retold_prompt


@cache
def strange_words() -> tuple[str, ...]:
    """Return words that say nothing about the facts of extraction tasks.

    They come from training stories and are no values of any task.
    """
    taken = set(known_words()).union(
        extraction._ROLES.values["train"], extraction._EVENTS.values["train"]
    )
    stories = (make_task("writing", -1 - seed, "train").answer for seed in range(400))
    return tuple(
        sorted({word for story in stories for word in re.findall(r"\b[a-z]{3,}\b", story)} - taken)
    )


def _strange_phrase(rng: random.Random) -> str:
    """Return a phrase for any fact, whose words do not name the field.

    The field then follows from the form of the value and from the other facts.
    """
    if rng.random() < 0.5:
        return rng.choice(ANYTHING)
    before, behind = (
        [rng.choice(strange_words()) for _ in range(rng.randint(*among))]
        for among in ((1, 4), (0, 2))
    )
    return " ".join([*before, "{}", *behind])


def composed(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """Return an extraction prompt with its text composed fact by fact, in any order.

    From whole templates a small model learns the position of a fact; from composed texts it learns
    the words beside it.

    Args:
        strange: share of the facts whose wording does not name the field.
    """
    facts = _spoken_facts(answer)
    order = list(facts)
    rng.shuffle(order)
    text = ""
    for name in order:
        phrases = PHRASES[name] if rng.random() < 0.5 else clauses()[name]
        phrase = _strange_phrase(rng) if rng.random() < strange else rng.choice(phrases)
        joint = rng.choice((". ", "; ", "! ", ", ", ", ", ", ", " ", " and "))
        starts = not text or joint in (". ", "; ", "! ")
        joint = " " if text[-1:] in ("!", "?") else joint
        text += (joint if text else "") + (
            phrase[0].upper() + phrase[1:] if starts else phrase
        ).format(facts[name])
    return _with_text(prompt, text + ".")


def _spoken_facts(answer: str) -> dict[str, str]:
    """Return the facts of an extraction task's answer as texts say them, by field."""
    facts = json.loads(answer)
    return {
        name: _spoken_list(value) if isinstance(value, list) else str(value)
        for name, value in facts.items()
    }


def _spoken_list(items: list[dict[str, Any]]) -> str:
    """Return the items of an invoice as a text lists them."""
    words = [f"{item['quantity']} x {item['product']} at {item['price']} dollars" for item in items]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def asks_for_columns(prompt: str) -> bool:
    """Return True if a tables task asks for only some of its records' fields."""
    return any(request in prompt for request in tables._COLUMNS.values["train"])


def _with_text(prompt: str, text: str) -> str:
    """Return the prompt with another text in place of its longest line."""
    lines = prompt.split("\n")
    lines[_longest(lines)] = text
    return "\n".join(lines)


def reasked(rng: random.Random, prompt: str, answer: str) -> str:
    """Return the prompt with some words of its question replaced by unrelated words.

    Words that the answer contains stay. The model learns from this that a question's words, however
    unknown, are never copied. The question stands on the lines without a digit.
    """
    lines = prompt.split("\n")
    for place, line in enumerate(lines):
        if not re.search(r"\d", line):
            lines[place] = re.sub(
                r"[A-Za-z]{2,}", lambda match: _maybe_replaced(rng, match[0], answer), line
            )
    return "\n".join(lines)


def _maybe_replaced(rng: random.Random, word: str, answer: str) -> str:
    """Return the word, or with probability 0.3 another if the answer does not contain it."""
    if word == "JSON" or word in answer or rng.random() >= 0.3:
        return word
    other = rng.choice(strange_words())
    return other.capitalize() if word[0].isupper() else other


def _longest(lines: list[str]) -> int:
    """Return the index of the longest line."""
    return max(range(len(lines)), key=lambda index: len(lines[index]))


def equations(rng: random.Random, count: int = 16) -> list[tuple[str, str]]:
    """Return `count` sums, differences and products as in math tasks, with their results."""
    pairs = []
    for _ in range(count):
        sign = rng.choice("+-*")
        if sign == "*":
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            result = a * b
        else:
            a = rng.randint(1, 98)
            b = rng.randint(1, 99 - a if sign == "+" else a)
            result = a + b if sign == "+" else a - b
        pairs.append((f"{a} {sign} {b} =", f" {result}"))
    return pairs
