"""The batches the embedded backbone learns from, without end and each time the same for the same
recipe.

Batches hold single tasks of similar length with the loss on the answers only: packing several tasks
    into one row hides
the copying that extraction and tables live on. And copying is learnt first: attention that looks
    for what followed the
same token earlier did not form within 8 million tokens of tasks, but does within some hundred steps
of a drill on repeated random tokens, if one head looks at the previous token from the start.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medusa.demo.tasks import Task, make_task

from .recipe import COPYING, Mixture, Recipe
from .variation import (
    asks_for_columns,
    composed,
    equations,
    reasked,
    recombined,
    renamed,
    retold,
    reworded,
)


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation, and for each whether the model is taught to produce it."""

    ids: list[int]
    taught: list[bool]


def encode(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> Row:
    """A conversation of (prompt, answer) turns; the answers and their end tokens are taught."""
    return _row(
        tokenizer,
        (
            part
            for prompt, answer in turns
            for part in (
                (f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n", False),
                (f"{answer}<|end|>", True),
                ("\n", False),
            )
        ),
    )


def encode_equations(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> Row:
    """Equations, one a line, of which the results are taught."""
    return _row(
        tokenizer,
        (
            part
            for asked, result in pairs
            for part in ((asked, False), (result, True), ("\n", False))
        ),
    )


def _row(tokenizer: PreTrainedTokenizerBase, parts: Iterable[tuple[str, bool]]) -> Row:
    """Texts behind one another, each with whether it is taught; none shares a token with the
    next.
    """
    ids: list[int] = []
    taught: list[bool] = []
    for text, teach in parts:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        taught += [teach] * len(piece)
    return Row(ids, taught)


def drill(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> Iterator[list[Row]]:
    """Batches of random tokens said again: first a few of them four times, then longer runs twice,
    apart.
    """
    for step in range(recipe.drill_steps):
        if step < 0.74 * recipe.drill_steps:
            before, length, gap, times = 0, rng.randint(5, 12), 0, 4
        else:
            length, times, before, gap = (
                rng.randint(8, 48),
                2,
                rng.randint(0, 32),
                rng.randint(0, 32),
            )
        yield [drill_row(tokenizer, rng, before, length, gap, times) for _ in range(32)]


def drill_row(
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    before: int,
    length: int,
    gap: int,
    times: int,
) -> Row:
    """`before` random tokens, then `length` said `times` times with `gap` others between;
    repetitions are taught.
    """
    drawn = rng.sample(range(len(tokenizer)), before + length + gap)
    first, said, other = drawn[:before], drawn[before : before + length], drawn[before + length :]
    ids = first + said + (other + said) * (times - 1)
    return Row(
        ids, [False] * (len(ids) - length * (times - 1) + 1) + [True] * (length * (times - 1) - 1)
    )


def stream(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, start: int = 0, pool: int = 1024
) -> Iterator[list[Row]]:
    """Batches from step `start` on, without end: the drill, then tasks by one mixture after the
    other.

    Between `Recipe.equation_steps` there are equations alone.
    """
    numbers, random_drill = (
        random.Random(recipe.seed),
        drill(recipe, tokenizer, random.Random(recipe.seed)),
    )
    parts = [
        task_batches(
            recipe, mixture, tokenizer, random.Random(recipe.seed + place), pool, place * 1_000_000
        )
        for place, (_, mixture) in enumerate(recipe.mixtures)
    ]
    equation_batches = (
        [encode_equations(tokenizer, equations(numbers)) for _ in range(40)]
        for _ in itertools.count()
    )

    def source(step: int) -> Iterator[list[Row]]:
        if step < recipe.drill_steps:
            return random_drill
        if step in range(*recipe.equation_steps):
            return equation_batches
        return parts[sum(step >= begin for begin, _ in recipe.mixtures) - 1]

    turns = (recipe.drill_steps, *recipe.equation_steps, *(begin for begin, _ in recipe.mixtures))
    going = {id(source(step)) for step in (start, *turns) if step >= start}
    for step in range(start):
        if id(source(step)) in going:  # nothing to come depends on what the others drew
            next(source(step))
    for step in itertools.count(start):
        yield next(source(step))


def varied_tasks(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, rng: random.Random, first_seed: int
) -> Iterator[Task]:
    """Training tasks without end, every one new; most are varied."""
    seeds = itertools.count(first_seed)
    names, weights = list(mixture.shares), list(mixture.shares.values())
    letters = sorted(
        piece for piece in tokenizer.get_vocab() if piece.isascii() and piece.isalpha()
    )
    pieces = letters if mixture.pieces else []
    ways = composed, reworded, retold, recombined, None
    shares = mixture.anew, mixture.reworded, mixture.retold, mixture.recombined
    while True:
        category = rng.choices(names, weights)[0]
        task = make_task(category, next(seeds), "train")
        while (
            category == "tables"
            and not asks_for_columns(task.prompt)
            and rng.random() < mixture.selected
        ):
            task = make_task(category, next(seeds), "train")
        if rng.random() <= mixture.varied:
            repeated = category == "tables" and rng.random() < mixture.repeated
            prompt, answer = renamed(rng, task.prompt, task.answer, pieces, repeated)
            way = (
                rng.choices(ways, (*shares, 1 - sum(shares)))[0]
                if category == "extraction"
                else None
            )
            prompt = prompt if way is None else way(rng, prompt, answer, mixture.strange)
            # a mixture that reasks nothing draws nothing, so that its tasks stay those it was run
            # with
            if category in COPYING and mixture.reasked and rng.random() < mixture.reasked:
                prompt = reasked(rng, prompt, answer)
            task = Task(category, prompt, answer, {})
        yield task


def task_batches(
    recipe: Recipe,
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    pool: int,
    first_seed: int,
) -> Iterator[list[Row]]:
    """Batches of rows of similar length."""
    tasks = varied_tasks(mixture, tokenizer, rng, first_seed)
    kinds = (mixture.equations, mixture.drill, 1 - mixture.equations - mixture.drill)

    def row() -> Row:
        kind = rng.choices(("equations", "drill", "tasks"), kinds)[0]
        if kind == "equations":
            return encode_equations(tokenizer, equations(rng))
        if kind == "drill":
            return drill_row(
                tokenizer, rng, rng.randint(0, 32), rng.randint(8, 48), rng.randint(0, 32), 2
            )
        turns = rng.choice((2, 3)) if rng.random() < mixture.conversations else 1
        return encode(
            tokenizer, [(task.prompt, task.answer) for task in itertools.islice(tasks, turns)]
        )

    while True:
        rows = sorted((row() for _ in range(pool)), key=lambda row: len(row.ids))
        batches: list[list[Row]] = [[]]
        for each in rows:
            if (len(batches[-1]) + 1) * len(each.ids) > recipe.batch_tokens and batches[-1]:
                batches.append([])
            batches[-1].append(each)
        rng.shuffle(batches)
        yield from batches


def collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Ids [B, S] padded on the right, where causal attention needs no mask, and what is taught [B,
    S].
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    taught = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        taught[index, : len(row.ids)] = torch.tensor(row.taught)
    return ids, taught
