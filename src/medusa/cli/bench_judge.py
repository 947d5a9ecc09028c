"""`medusa bench judge`: let a language model grade answers of MT-Bench."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .. import files
from ..evaluation.judging import Grading, requests, scores
from ..evaluation.records import read_records_file
from ..evaluation.suites import read_suite
from ..training.answers_file import AnswerLine, answers_file
from ..training.conversations import GenerationSettings
from ..training.distill import distill
from ..training.server import ServerAnswerer
from .bench import JudgeOptions
from .distill import ServerOptions
from .progress import watching
from .streams import console, note

TOKENS = 2048
"""Maximum number of tokens of a judgment, as in FastChat."""


def judge(options: JudgeOptions, server: ServerOptions) -> None:
    """Grade the answers that have no grade yet, and print the mean ratings.

    Raises:
        ValueError: a file is not as it should be, or a reference answer is missing.
        ConnectionError: the judge cannot be reached; finished grades are kept.
    """
    if server.server is None:
        raise ValueError("a judge is behind a server: pass --server URL")
    _, records = read_records_file(options.records)
    questions = {each.id: each for each in read_suite("mt-bench", options.data)}
    grading = Grading.read(options.prompts, options.references)
    methods = options.method or list(records[0].turns[0].runs)
    asked = requests(records, questions, methods, grading)
    how = GenerationSettings(options.judge, 0.0, 0, TOKENS)
    with answers_file(options.output, how) as answers:
        client = ServerAnswerer(
            server.server, how, in_flight=server.in_flight, timeout=server.timeout
        )
        with watching(Console(stderr=True), len(asked)) as watch:
            progress = distill(client, asked, answers, watch)
    found = scores(records, methods, read_grades(options.output))
    table = Table(
        *("method", "rating", "turn 1", "turn 2", "rated", "failures"),
        title=f"Ratings from 1 to 10 by {options.judge}",
    )
    for name, own in found.items():
        turns = (own["by_turn"].get(turn) for turn in ("1", "2"))
        cells = ("" if each is None else f"{each:.2f}" for each in (own["rating"], *turns))
        table.add_row(name, *cells, str(own["rated"]), str(own["failures"]))
    console().print(table)
    if progress.refused:
        note(f"{len(progress.refused)} gradings failed; the same command asks for them again")
    if options.json is not None:
        files.write_json(options.json, {"judge": options.judge, "scores": found}, indent=1)
        note(f"written to {options.json}")


def read_grades(file: Path) -> dict[str, str]:
    """Return the judge's answers in a file, by the name of the grading."""
    if not file.is_file():
        return {}
    lines = (
        AnswerLine(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()
    )
    return {each.id: str(each.messages[-1]["content"]) for each in lines}
