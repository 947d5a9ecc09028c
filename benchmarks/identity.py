"""`python -m benchmarks.identity --questions FILE`: are Medusa's greedy answers plain decoding's?

SmolLM2-135M-Instruct answers the first turns of MT-Bench's questions (FastChat,
`llm_judge/data/mt_bench/question.jsonl`) plainly and with a tree, several at a time, which takes
minutes instead of an hour. The certificate says which answers are the same, token for token, and
how close the two best logits were where others differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from medusa.calibration.decoding import decode_batch
from medusa.core.engine import PLAIN
from medusa.core.tree import CandidateTree
from medusa.demo import smollm2
from medusa.evaluation.certificate import certificate
from medusa.evaluation.methods import Run
from medusa.evaluation.records import QuestionRecord, RunRecord, TurnRecord
from medusa.evaluation.suites import Question
from medusa.loading import MedusaModel, NamedModel, load
from medusa.text import encode_chat

from .harness import (
    add_questions,
    argument_parser,
    first_turns,
    new_report,
    parse_arguments,
    publish_for_device,
)

METHODS = ("Medusa", "plain")


def answered(
    model: MedusaModel,
    prompts: Sequence[list[int]],
    questions: Sequence[Question],
    tree: CandidateTree,
    length: int,
) -> tuple[list[QuestionRecord], float]:
    """Answer prompts at the same time by both methods.

    Returns:
        A record of each question, and Medusa's tokens a step.
    """
    runs: list[dict[str, list[RunRecord]]] = [{} for _ in prompts]
    rates = {}
    for method, own in zip(METHODS, (tree, PLAIN), strict=True):
        arguments = {"max_new_tokens": length, "do_sample": False, "tree": own}
        session = decode_batch(model, prompts, **arguments)
        rates[method] = session.stats.acceleration_rate
        for row, prompt, run in zip(session.rows, prompts, runs, strict=True):
            run[method] = [RunRecord.of(Run(row.ids[len(prompt) :], 0, 0.0, 0.0))]
    records = [
        QuestionRecord(
            question=question.id,
            category=question.category,
            turns=[
                TurnRecord(prompt=prompt, temperature=0.0, runs=run, right={}, measured_again=[])
            ],
        )
        for question, prompt, run in zip(questions, prompts, runs, strict=True)
    ]
    return records, rates[METHODS[0]]


def table(found: dict[str, Any]) -> Table:
    """Return a printed table of the answers that differ."""
    same, all_of_them = found["identical"], found["greedy_turns"]
    title = f"{same} of {all_of_them} answers are the same, token for token"
    shown = Table("question", "first difference at token", "margin of its logits", title=title)
    for each in found["divergences"]:
        shown.add_row(each["question"], str(each["position"]), f"{each['margin']:.3g}")
    return shown


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argument_parser(__doc__)
    add_questions(parser)
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument("--prepack", choices=("half", "int4"), help="pack weights in fewer bits")
    parser.add_argument("--nodes", type=int, default=9, help="of the tree (default: 9)")
    parser.add_argument("--rows", type=int, default=16, help="answers at a time (default: 16)")
    return parse_arguments(parser)


def main() -> None:
    """Run the comparison."""
    options = parse_options()
    named = NamedModel.find(smollm2.heads_folder(), smollm2.fetch(say=print), dtype=options.dtype)
    model, tokenizer = load(named, prepack=options.prepack, all_heads=True)
    tree = CandidateTree.from_accuracies(model.calibration.accuracies, options.nodes)
    records, rates = list[QuestionRecord](), list[float]()
    asked = first_turns(options.questions, options.limit)
    for begin in range(0, len(asked), options.rows):
        questions = asked[begin : begin + options.rows]
        prompts = [encode_chat(tokenizer, each.messages)[0].tolist() for each in questions]
        new, rate = answered(model, prompts, questions, tree, options.max_new_tokens)
        records, rates = records + new, [*rates, rate]
        print(f"{len(records)} answers", flush=True)
    found = certificate(model, records, *METHODS)
    settings = {name: getattr(options, name) for name in ("dtype", "prepack", "nodes", "rows")}
    settings["max_new_tokens"] = options.max_new_tokens
    report = new_report(model=smollm2.HUB_ID, **settings, tokens_per_step=rates, certificate=found)
    kind = "-".join(filter(None, ("smollm2-identity", options.dtype, options.prepack)))
    publish_for_device(options, report, kind, table(found))


if __name__ == "__main__":
    main()
