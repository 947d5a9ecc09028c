"""Self-distillation data (section 2.3.2): a model's own answers, on which its heads are trained."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from ..data.fields import read_questions
from ..data.records import read_records
from ..data.turns import Messages
from .answers_file import AnswersFile
from .conversations import Answerer, Outcome, conversation, first_question


@dataclass
class DistillProgress:
    """Counts of conversations in a run of `distill`.

    Attributes:
        total: number of conversations requested.
        earlier: number that earlier runs have finished.
        finished: number that this run has finished, with or without an answer.
        cut: number of finished ones whose last answer was cut off.
        left_out: number of finished ones without an answer.
        tokens: number of tokens that the model generated in this run.
        refused: name and error of each conversation that could not be held.
    """

    total: int
    earlier: int = 0
    finished: int = 0
    cut: int = 0
    left_out: int = 0
    tokens: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Number of conversations that need no more work in this run."""
        return self.earlier + self.finished + len(self.refused)


def read_seeds(
    source: str, limit: int | None = None, split: str = "train"
) -> Iterator[tuple[str, Messages]]:
    """Yield the name and the chat of each seed conversation, whose user turns will be answered.

    The name is the record's place and a hash of the chat, so that a changed record has a new name.

    Args:
        source: path of a file or a folder, or id of a dataset on the hub.
        limit: maximum number of records read.
        split: split of a hub dataset.

    Raises:
        ValueError: the source is empty, or a record is malformed or has no turn of the user.
    """
    for record in itertools.islice(read_records(source, split), limit):
        chat = read_questions(record)
        digest = hashlib.sha256(json.dumps(chat, sort_keys=True).encode()).hexdigest()[:8]
        yield f"{record.place}, {digest}", chat


def self_prompts(count: int) -> list[tuple[str, Messages]]:
    """Return the names of conversations that the model begins itself, each with an empty chat.

    Its questions are sampled from the chat template's text before a user's turn (the idea of
    Magpie: Xu et al., 2024), so no data set is needed.
    """
    return [(f"self-prompt {number}", []) for number in range(count)]


def distill(
    answerer: Answerer,
    seeds: Sequence[tuple[str, Messages]],
    answers: AnswersFile,
    watch: Callable[[DistillProgress], None] = lambda _: None,
) -> DistillProgress:
    """Generate the answers that `answers` does not have yet; append each when it is finished.

    Args:
        answerer: model or server that generates the answers.
        seeds: name and chat of each conversation; see `read_seeds` and `self_prompts`.
        answers: file of finished conversations.
        watch: called with the progress at the start and after each conversation.

    Raises:
        OSError: a server cannot be reached, or the disk is full; finished conversations are kept.
        ValueError: the model is to ask itself questions, and cannot.
    """
    if not all(any(turn["role"] == "user" for turn in seed) for _, seed in seeds):
        answerer.check_own_questions()
    answers.questions.update(first_question(seed) for _, seed in seeds)
    waiting = [
        (name, conversation(name, seed, answers.settings, answers.questions))
        for name, seed in seeds
        if name not in answers
    ]
    progress = DistillProgress(len(seeds), earlier=len(seeds) - len(waiting))
    watch(progress)
    with closing(answerer.drive(waiting)) as outcomes:
        for outcome in outcomes:
            progress.tokens += outcome.tokens
            try:
                _append(answers, outcome, progress)
            except ValueError as error:
                progress.refused.append(f"{outcome.name}: {error}")
            watch(progress)
    return progress


def _append(answers: AnswersFile, outcome: Outcome, progress: DistillProgress) -> None:
    """Append the outcome of a conversation and count it.

    Raises:
        ValueError: the conversation was refused, or its text cannot be encoded as UTF-8.
    """
    if isinstance(outcome.result, ValueError):
        raise outcome.result
    answers.append(outcome.name, outcome.result)
    progress.finished += 1
    progress.cut += outcome.result.cut
    progress.left_out += not outcome.result.answered
