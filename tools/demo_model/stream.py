"""The endless stream of batches that the embedded backbone trains on, the same for each recipe.

Batches hold single tasks of similar length, with the loss on the answers only. Packing several
tasks into one row hides the copying that extraction and tables tasks need. Copying is learnt first:
attention that finds what followed an earlier occurrence of a token did not form within 8 million
tokens of tasks, but forms within some hundred steps of a drill on repeated random tokens, if one
attention head looks at the previous token from the start.
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

from .recipe import COPYING, BackboneRecipe, Mixture
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
class TrainingRow:
    """A row of a batch.

    Attributes:
        ids: token ids.
        taught: for each token whether the model is taught to produce it.
    """

    ids: list[int]
    taught: list[bool]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]
) -> TrainingRow:
    """Return a conversation as a row; the answers and their end tokens are taught.

    Args:
        turns: pairs of prompt and answer.
    """
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


def encode_equations(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]
) -> TrainingRow:
    """Return equations as a row, one on each line; the results are taught.

    Args:
        pairs: pairs of an equation's left side and its result.
    """
    return _row(
        tokenizer,
        (
            part
            for left_side, result in pairs
            for part in ((left_side, False), (result, True), ("\n", False))
        ),
    )


def _row(tokenizer: PreTrainedTokenizerBase, parts: Iterable[tuple[str, bool]]) -> TrainingRow:
    """Return a row of texts, each with a flag that says whether it is taught.

    Each text is tokenized alone, so that no token belongs to a taught and an untaught text.
    """
    ids: list[int] = []
    taught: list[bool] = []
    for text, teach in parts:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        taught += [teach] * len(piece)
    return TrainingRow(ids, taught)


def drill(
    recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> Iterator[list[TrainingRow]]:
    """Yield the batches of the drill, in which sequences of random tokens are repeated.

    First short sequences occur four times in a row, then longer ones twice with other tokens
    between them.
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
) -> TrainingRow:
    """Return a row of the drill: a random sequence that is repeated; its repetitions are taught.

    Args:
        before: number of random tokens before the sequence.
        length: length of the sequence.
        gap: number of random tokens before each repetition.
        times: number of occurrences of the sequence.
    """
    drawn = rng.sample(range(len(tokenizer)), before + length + gap)
    first, sequence = drawn[:before], drawn[before : before + length]
    other = drawn[before + length :]
    ids = first + sequence + (other + sequence) * (times - 1)
    # the first token of the first repetition cannot be predicted, so it is not taught
    return TrainingRow(
        ids, [False] * (len(ids) - length * (times - 1) + 1) + [True] * (length * (times - 1) - 1)
    )


def stream(
    recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerBase, start: int = 0, pool: int = 1024
) -> Iterator[list[TrainingRow]]:
    """Yield the batches from a step on, without end.

    The drill comes first, then tasks by one mixture after the other. The steps of
    `BackboneRecipe.equation_steps` are equations only.

    Args:
        start: step to begin at; a resumed run gets the batches that it would have had.
        pool: number of rows that are sorted by length into batches.
    """
    sources = _Sources(recipe, tokenizer, pool)
    turns = (recipe.drill_steps, *recipe.equation_steps, *(begin for begin, _ in recipe.mixtures))
    needed = {id(sources.at(step)) for step in (start, *turns) if step >= start}
    for step in range(start):
        # a source that ended before `start` is skipped: no other source depends on its draws
        if id(sources.at(step)) in needed:
            next(sources.at(step))
    for step in itertools.count(start):
        yield next(sources.at(step))


class _Sources:
    """The drill, the equations and the mixtures of a recipe, each as an iterator of batches."""

    def __init__(self, recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerBase, pool: int):
        self._recipe = recipe
        self._drill = drill(recipe, tokenizer, random.Random(recipe.seed))
        numbers = random.Random(recipe.seed)
        self._equations = (
            [encode_equations(tokenizer, equations(numbers)) for _ in range(40)]
            for _ in itertools.count()
        )
        self._mixtures = [
            task_batches(
                recipe,
                mixture,
                tokenizer,
                random.Random(recipe.seed + place),
                pool,
                place * 1_000_000,
            )
            for place, (_, mixture) in enumerate(recipe.mixtures)
        ]

    def at(self, step: int) -> Iterator[list[TrainingRow]]:
        """Return the iterator that gives the batch of a step."""
        if step < self._recipe.drill_steps:
            return self._drill
        if step in range(*self._recipe.equation_steps):
            return self._equations
        return self._mixtures[sum(step >= begin for begin, _ in self._recipe.mixtures) - 1]


def varied_tasks(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, rng: random.Random, first_seed: int
) -> Iterator[Task]:
    """Yield training tasks without end, each from a new seed; the mixture sets the varied share.

    Args:
        first_seed: seed of the first task.
    """
    seeds = itertools.count(first_seed)
    names, weights = list(mixture.shares), list(mixture.shares.values())
    letters = sorted(
        piece for piece in tokenizer.get_vocab() if piece.isascii() and piece.isalpha()
    )
    pieces = letters if mixture.pieces else []
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
            task = _varied(mixture, task, rng, pieces)
        yield task


def _varied(mixture: Mixture, task: Task, rng: random.Random, pieces: list[str]) -> Task:
    """Return a task with invented words, and where it is an extraction task in another wording."""
    repeated = task.category == "tables" and rng.random() < mixture.repeated
    prompt, answer = renamed(rng, task.prompt, task.answer, pieces, repeated)
    if task.category == "extraction":
        variations = composed, reworded, retold, recombined, None
        shares = mixture.anew, mixture.reworded, mixture.retold, mixture.recombined
        variation = rng.choices(variations, (*shares, 1 - sum(shares)))[0]
        prompt = prompt if variation is None else variation(rng, prompt, answer, mixture.strange)
    # a mixture without reasking must not draw a number here: its tasks would change, and with them
    # the weights that were trained on them
    if task.category in COPYING and mixture.reasked and rng.random() < mixture.reasked:
        prompt = reasked(rng, prompt, answer)
    return Task(task.category, prompt, answer, {})


def task_batches(
    recipe: BackboneRecipe,
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    pool: int,
    first_seed: int,
) -> Iterator[list[TrainingRow]]:
    """Yield batches of rows of similar length, without end.

    Args:
        pool: number of rows that are sorted by length into batches.
        first_seed: seed of the first task.
    """
    tasks = varied_tasks(mixture, tokenizer, rng, first_seed)
    kinds = (mixture.equations, mixture.drill, 1 - mixture.equations - mixture.drill)

    def row() -> TrainingRow:
        kind = rng.choices(("equations", "drill", "tasks"), kinds)[0]
        if kind == "equations":
            return encode_equations(tokenizer, equations(rng))
        if kind == "drill":
            return drill_row(
                tokenizer, rng, rng.randint(0, 32), rng.randint(8, 48), rng.randint(0, 32), 2
            )
        turns = rng.choice((2, 3)) if rng.random() < mixture.conversations else 1
        return encode_conversation(
            tokenizer, [(task.prompt, task.answer) for task in itertools.islice(tasks, turns)]
        )

    while True:
        rows = sorted((row() for _ in range(pool)), key=lambda row: len(row.ids))
        batches: list[list[TrainingRow]] = [[]]
        for each in rows:
            if (len(batches[-1]) + 1) * len(each.ids) > recipe.batch_tokens and batches[-1]:
                batches.append([])
            batches[-1].append(each)
        rng.shuffle(batches)
        yield from batches


def collate(rows: list[TrainingRow], pad: int) -> tuple[Tensor, Tensor]:
    """Return a batch of rows: token ids [B, S], and True where a token is taught [B, S].

    Padding is on the right, where causal attention needs no mask.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    taught = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        taught[index, : len(row.ids)] = torch.tensor(row.taught)
    return ids, taught
