"""Variations of training tasks, so that the backbone reads what it is given instead of knowing it by heart.

A task's names and goods come from pools of some hundred values, and its texts from some templates. Learnt by heart,
they give a low loss and wrong answers for values and wordings that were held out. The tasks themselves stay as they
are: a variation replaces, in prompt and answer alike, what an answer copies.
"""

from __future__ import annotations

import random
import re

from .tasks import values

_POOLS = (values.FIRST_NAMES, values.LAST_NAMES, values.CITIES, values.PRODUCTS, values.TOPICS, values._COMPANY_NAMES)
KNOWN = {word for pool in _POOLS for word in pool.values["train"]}
"""Every word of the training split that stands for a value."""
_WORDS = sorted(KNOWN)


def invented(rng: random.Random, like: str = "") -> str:
    """A word nobody has seen: the head of one word and the tail of another, or letters; a capital as in `like`."""
    if rng.random() < 0.7:
        head, tail = rng.choice(_WORDS), rng.choice(_WORDS)
        word = head[: rng.randint(2, 4)] + tail[-rng.randint(2, 4) :]
    else:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
    return word.capitalize() if like[:1].isupper() else word.lower()


def renamed(rng: random.Random, prompt: str, answer: str) -> tuple[str, str]:
    """The task with invented words for the values that the answer copies from the prompt."""
    there = set(re.findall(r"[A-Za-z]+", prompt))
    there |= {word.removesuffix("s") for word in there}
    new = {word: invented(rng, word) for word in sorted(KNOWN & there) if re.search(rf"\b{word}s?\b", answer)}
    function = re.match(r"def (\w+)\(", answer)
    if function:
        new[function[1]] = "_".join(invented(rng) for _ in range(rng.randint(1, 3)))
    if not new:
        return prompt, answer
    pattern = re.compile(rf"\b({'|'.join(new)})(?=s?\b)")
    return tuple(pattern.sub(lambda found: new[found[1]], text) for text in (prompt, answer))  # type: ignore[return-value]


def reworded(rng: random.Random, prompt: str, answer: str) -> str:
    """The prompt with its longest line's sentences in another order and some words that the answer lacks left out."""
    lines = prompt.split("\n")
    longest = max(range(len(lines)), key=lambda index: len(lines[index]))
    sentences = re.split(r"(?<=[.!?]) ", lines[longest])
    rng.shuffle(sentences)
    words = " ".join(sentences).split(" ")
    kept = [word for word in words if rng.random() > 0.12 or re.search(r"\d", word) or word.strip(".,:;!?()") in answer]
    lines[longest] = " ".join(kept)
    return "\n".join(lines)


def equations(rng: random.Random, count: int = 16) -> list[tuple[str, str]]:
    """`count` sums, differences and products of the size that math tasks have, and their results."""
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
