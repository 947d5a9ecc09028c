"""Judge of trained models: it measures the quality of their answers and their speed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from medusa.calibration.decoding import decode_batch
from medusa.calibration.recording import record
from medusa.calibration.search import joint_tree
from medusa.calibration.settings import PromptIds
from medusa.calibration.trial import measure_tree
from medusa.core.engine import PLAIN
from medusa.core.tree import CandidateTree
from medusa.evaluation.prompts import question_ids
from medusa.evaluation.suites import Question
from medusa.loading import MedusaModel
from medusa.training import Example, evaluate_heads

ARGUMENTS: dict[str, Any] = {"max_new_tokens": 320, "do_sample": False}
ROWS = 8
"""Requests answered in one batch where nothing is timed."""


@dataclass(frozen=True)
class Judge:
    """Held-out requests that all trained models are judged by.

    Attributes:
        checked: requests whose answers can be checked.
        timed: token ids of requests to time, interleaved with plain decoding.
        truth: requests with their right answers, for the perplexity.
        recorded: token ids of other requests, on which trees are chosen.
    """

    tokenizer: PreTrainedTokenizerBase
    checked: Sequence[Question]
    timed: PromptIds
    truth: Sequence[Example]
    recorded: PromptIds

    def best_tree(self, model: MedusaModel, nodes: int) -> CandidateTree:
        """Return the best tree of so many nodes for the model's heads (section 2.3.3)."""
        return joint_tree(record(model, self.recorded, ARGUMENTS), nodes)

    def speed(self, model: MedusaModel, tree: CandidateTree) -> dict[str, Any]:
        """Return the figures of a tree against the same model's plain decoding."""
        if tree is PLAIN:
            return {"nodes": 1, "acceleration_rate": 1.0, "overhead": 1.0, "speedup": 1.0}
        measured = measure_tree(model, self.timed, tree, ARGUMENTS)
        return {
            "nodes": len(tree),
            "acceleration_rate": measured.acceleration_rate,
            "overhead": measured.overhead,
            "speedup": measured.speedup,
        }

    def answers(
        self, model: MedusaModel, tree: CandidateTree, title: str, console: Console
    ) -> list[list[int]]:
        """Return the token ids of greedy answers to the checked requests.

        Args:
            title: title of the progress bar on `console`.
        """
        model.refresh()  # the weights may have been trained since they were packed
        prompts = [question_ids(self.tokenizer, question) for question in self.checked]
        # batches of similar lengths need little padding
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        answers: dict[int, list[int]] = {}
        for begin in track(range(0, len(order), ROWS), title, console=console):
            places = order[begin : begin + ROWS]
            batch = [prompts[place] for place in places]
            session = decode_batch(model, batch, tree=tree, **ARGUMENTS)
            for place, row in zip(places, session.rows, strict=True):
                answers[place] = row.ids[len(prompts[place]) :]
        return [answers[place] for place in range(len(order))]

    def quality(self, model: MedusaModel, answers: Sequence[list[int]]) -> dict[str, Any]:
        """Return the percentage of right answers, and the backbone's perplexity of the truth."""
        right: dict[str, list[bool]] = {}
        for question, answer in zip(self.checked, answers, strict=True):
            text = self.tokenizer.decode(answer, skip_special_tokens=True)
            verdict = question.check is not None and question.check(text)
            right.setdefault(question.category, []).append(verdict)
        return {
            "quality": 100 * statistics.mean(itertools.chain.from_iterable(right.values())),
            "categories": {name: 100 * statistics.mean(each) for name, each in right.items()},
            "prompts": len(self.checked),
            "perplexity": evaluate_heads(model, self.truth).perplexity,
        }
