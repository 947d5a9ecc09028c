"""Data for self-distillation (section 2.3.2): a model answers prompts itself, so that heads learn
what it would say.
"""

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
from .conversations import Engine, Outcome, conversation


@dataclass
class Progress:
    """What a run has done.

    Attributes:
        total: conversations that were asked for.
        earlier: how many of them earlier runs have finished.
        finished: how many this run has finished, with an answer or without.
        cut: how many of these end in an answer that was cut off.
        left_out: how many of these have no answer.
        tokens: how many the model wrote in this run.
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
        """How many conversations nothing more is done for in this run."""
        return self.earlier + self.finished + len(self.refused)


def read_seeds(
    source: str, limit: int | None = None, split: str = "train"
) -> Iterator[tuple[str, Messages]]:
    """Yield seed conversations by name (place and digest): the user's turns count, answers do not.

    Raises:
        ValueError: the source is empty, a record is malformed, or nobody asks in it.
    """
    for record in itertools.islice(read_records(source, split), limit):
        asked = read_questions(record)
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        yield f"{record.place}, {digest}", asked


def distill(
    engine: Engine,
    seeds: Sequence[tuple[str, Messages]],
    answers: AnswersFile,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Let `engine` answer the seeds that `answers` does not have yet, and append each as soon as it
    has ended.

    Raises:
        OSError: a server cannot be reached, or the disk is full; what is finished is kept.
    """
    waiting = [
        (name, conversation(name, seed, answers.settings))
        for name, seed in seeds
        if name not in answers
    ]
    progress = Progress(len(seeds), earlier=len(seeds) - len(waiting))
    watch(progress)
    with closing(engine.drive(waiting)) as outcomes:
        for outcome in outcomes:
            progress.tokens += outcome.tokens
            try:
                _append(answers, outcome, progress)
            except ValueError as error:
                progress.refused.append(f"{outcome.name}: {error}")
            watch(progress)
    return progress


def _append(answers: AnswersFile, outcome: Outcome, progress: Progress) -> None:
    """Keep what came of a conversation, and count it.

    Raises:
        ValueError: the conversation was refused, or its text cannot be written.
    """
    if isinstance(outcome.result, ValueError):
        raise outcome.result
    answers.append(outcome.name, outcome.result)
    progress.finished += 1
    progress.cut += outcome.result.cut
    progress.left_out += not outcome.result.answered
