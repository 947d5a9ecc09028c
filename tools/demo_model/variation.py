"""Variations of training tasks, so that the backbone reads what it is given instead of knowing it
by heart.

A task's names and goods come from pools of some hundred values, and its texts from some templates.
Learnt by heart, they give a low loss and wrong answers for values and wordings that were held out.
The tasks themselves stay as they are: a variation replaces, in prompt and answer alike, what an
    answer copies.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from medusa.demo.tasks import extraction, make_task, tables, values

from .wordings import ANYTHING, PHRASES, TELLINGS

_POOLS = (
    values.FIRST_NAMES,
    values.LAST_NAMES,
    values.CITIES,
    values.PRODUCTS,
    values.TOPICS,
    values._COMPANY_NAMES,
)
KNOWN = {word for pool in _POOLS for word in pool.values["train"]}
"""Every word of the training split that stands for a value."""
_WORDS = sorted(KNOWN)


_TEXTS = (extraction._PERSON, extraction._INVOICE, extraction._EVENT, extraction._PARCEL)
TEMPLATES = [template for pool in _TEXTS for template in pool.values["train"]]
"""The training templates of all kinds of extraction tasks."""


def invented(rng: random.Random, like: str = "", pieces: Sequence[str] = ()) -> str:
    """A word that says nothing: the head of one and the tail of another, letters, or one that means
    something else.

    Args:
        like: the word has a capital where this has one.
        pieces: of a vocabulary; half of the words are then put together from them.
    """
    if pieces and rng.random() < 0.5:
        word = "".join(rng.choices(pieces, k=rng.randint(1, 3)))
        return word.capitalize() if like[:1].isupper() else word.lower()
    kind = rng.random()
    if kind < 0.6:
        head, tail = rng.choice(_WORDS), rng.choice(_WORDS)
        word = head[: rng.randint(2, 4)] + tail[-rng.randint(2, 4) :]
    elif kind < 0.8:
        word = rng.choice(_WORDS)
    else:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
    return word.capitalize() if like[:1].isupper() else word.lower()


def renamed(
    rng: random.Random, prompt: str, answer: str, pieces: Sequence[str] = (), repeated: bool = False
) -> tuple[str, str]:
    """The task with invented words for the values that the answer copies from the prompt.

    Args:
        pieces: of a vocabulary, that words are made of.
        repeated: let many values be the same few words, so that what comes next is not told by the
            word before.
    """
    there = set(re.findall(r"[A-Za-z]+", prompt))
    there |= {word.removesuffix("s") for word in there}
    new = {
        word: invented(rng, word, pieces)
        for word in sorted(KNOWN & there)
        if re.search(rf"\b{word}s?\b", answer)
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
    return tuple(pattern.sub(lambda found: new[found[1]], text) for text in (prompt, answer))  # type: ignore[return-value]


def reworded(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """The prompt with its longest line's sentences in another order and some words that the answer
    lacks left out.

    Args:
        strange: share of the words left out that others stand for, which have nothing to do with
            it.
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
            kept.append(rng.choice(STRANGE))
    lines[longest] = " ".join(kept)
    return "\n".join(lines)


def _decided(rng: random.Random, telling: str) -> str:
    """A telling with its alternatives decided."""
    return re.sub(r"\[([^][]*)\]", lambda found: rng.choice(found[1].split("|")), telling)


def _clauses() -> dict[str, list[str]]:
    """For every field the words before it in training texts; where it comes first, the words behind
    it.
    """
    rng, found = random.Random(0), dict[str, set[str]]()
    told = [
        _decided(rng, telling)
        for tellings in TELLINGS.values()
        for telling in tellings
        for _ in range(4)
    ]
    for text in (*TEMPLATES, *told):
        for before, name, behind in re.findall(r"([^{}.!?;:]*)\{(\w+)\}(?=([^{}.,!?;:()]*))", text):
            words = before.lstrip(" ,)").removeprefix("and ")
            found.setdefault(name, set()).add(f"{words}{{}}" if words else f"{{}}{behind.rstrip()}")
    return {name: sorted(clauses) for name, clauses in found.items()}


CLAUSES = _clauses()
"""For every field of the extraction tasks, the ways training texts say it."""


def _sentences() -> dict[frozenset[str], list[tuple[frozenset[str], str]]]:
    """For every kind of extraction task the sentences of its tellings and templates, with the
    fields of each.
    """
    found: dict[frozenset[str], list[tuple[frozenset[str], str]]] = {}
    for text in (*TEMPLATES, *(telling for tellings in TELLINGS.values() for telling in tellings)):
        kind = next(fields for fields in TELLINGS if fields == set(re.findall(r"\{(\w+)\}", text)))
        for sentence in re.split(r"(?<=[.!?]) (?![^[]*\])", text):
            fields = re.findall(r"\{(\w+)\}", sentence)
            if fields and len(fields) == len(set(fields)):
                found.setdefault(kind, []).append((frozenset(fields), sentence))
    return found


SENTENCES = _sentences()
"""Sentences to put texts together from."""


def recombined(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """An extraction task's prompt with its facts in sentences of many tellings and templates, in
    any order.

    Args:
        strange: share of the facts left over that are in words which do not tell which they are.
    """
    said = _said(answer)
    left, parts = set(said), []
    for fields, sentence in rng.sample(SENTENCES[frozenset(said)], len(SENTENCES[frozenset(said)])):
        if fields <= left:
            left -= fields
            parts.append(_decided(rng, sentence))
    for name in sorted(left):
        phrase = (
            _strange(rng)
            if rng.random() < strange
            else rng.choice((*PHRASES[name], *CLAUSES[name]))
        )
        said_so = phrase.replace("{}", f"{{{name}}}")
        parts.append(said_so[0].upper() + said_so[1:] + ("" if said_so[-1] in "!?" else "."))
    rng.shuffle(parts)
    return _with_text(prompt, " ".join(parts).format(**said))


def retold(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """An extraction task's prompt with its facts in one of `TELLINGS`; a share `strange` of them
    with odd words too.
    """
    said = _said(answer)
    told = _with_text(prompt, _decided(rng, rng.choice(TELLINGS[frozenset(said)])).format(**said))
    return reworded(rng, told, answer, 0.5) if rng.random() < strange else told


def _strange_words() -> tuple[str, ...]:
    """Words of the training stories that are no values."""
    taken = KNOWN.union(extraction._ROLES.values["train"], extraction._EVENTS.values["train"])
    stories = (make_task("writing", -1 - seed, "train").answer for seed in range(400))
    return tuple(
        sorted({word for story in stories for word in re.findall(r"\b[a-z]{3,}\b", story)} - taken)
    )


STRANGE = _strange_words()
"""Words that say nothing about the facts of an extraction task."""


def _strange(rng: random.Random) -> str:
    """A phrase for a fact whose words do not tell which it is: that is told by what it looks like
    and by the others.
    """
    if rng.random() < 0.5:
        return rng.choice(ANYTHING)
    before, behind = (
        [rng.choice(STRANGE) for _ in range(rng.randint(*among))] for among in ((1, 4), (0, 2))
    )
    return " ".join([*before, "{}", *behind])


def composed(rng: random.Random, prompt: str, answer: str, strange: float = 0.0) -> str:
    """An extraction task's prompt with its text made anew: every fact in words of its own, in any
    order.

    From whole templates a small model learns where a fact stands, from these what the words beside
    it say.

    Args:
        strange: share of facts in words that have nothing to do with them.
    """
    said = _said(answer)
    order = list(said)
    rng.shuffle(order)
    text = ""
    for name in order:
        ways = PHRASES[name] if rng.random() < 0.5 else CLAUSES[name]
        phrase = _strange(rng) if rng.random() < strange else rng.choice(ways)
        joint = rng.choice((". ", "; ", "! ", ", ", ", ", ", ", " ", " and "))
        starts = not text or joint in (". ", "; ", "! ")
        joint = " " if text[-1:] in ("!", "?") else joint
        text += (joint if text else "") + (
            phrase[0].upper() + phrase[1:] if starts else phrase
        ).format(said[name])
    return _with_text(prompt, text + ".")


def _said(answer: str) -> dict[str, str]:
    """An extraction task's facts as its texts say them."""
    facts = json.loads(answer)
    return {
        name: _listed(value) if isinstance(value, list) else str(value)
        for name, value in facts.items()
    }


def _listed(items: list[dict[str, Any]]) -> str:
    words = [f"{item['quantity']} x {item['product']} at {item['price']} dollars" for item in items]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def asks_for_columns(prompt: str) -> bool:
    """Whether a tables task wants only some of its records' fields."""
    return any(said in prompt for said in tables._COLUMNS.values["train"])


def _with_text(prompt: str, text: str) -> str:
    """The prompt with another text in place of its longest line."""
    lines = prompt.split("\n")
    lines[_longest(lines)] = text
    return "\n".join(lines)


def reasked(rng: random.Random, prompt: str, answer: str) -> str:
    """The prompt with some words of the question, which the answer lacks, replaced by others that
    say nothing.

    However unknown its words are, a question is never copied into the answer. It stands on the
    lines without a figure.
    """
    lines = prompt.split("\n")
    for place, line in enumerate(lines):
        if not re.search(r"\d", line):
            lines[place] = re.sub(
                r"[A-Za-z]{2,}", lambda found: _other(rng, found[0], answer), line
            )
    return "\n".join(lines)


def _other(rng: random.Random, word: str, answer: str) -> str:
    """The word, or if the answer lacks it three times in ten another."""
    if word == "JSON" or word in answer or rng.random() >= 0.3:
        return word
    other = rng.choice(STRANGE)
    return other.capitalize() if word[0].isupper() else other


def _longest(lines: list[str]) -> int:
    return max(range(len(lines)), key=lambda index: len(lines[index]))


def equations(rng: random.Random, count: int = 16) -> list[tuple[str, str]]:
    """`count` sums, differences and products of the size that math tasks have, and their
    results.
    """
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
