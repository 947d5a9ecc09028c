"""`medusa bench`: compare ways of decoding on a suite of questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .distill import ServerOptions
from .options import ModelOptions, length_option, temperature_option
from .parameters import argument, option

DEFAULT_METHODS = ("plain", "medusa", "generate")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options that choose questions and methods."""

    suite: Literal[
        "tasks",
        "mt-bench",
        "spec-bench",
        "speed-bench",
        "alpaca-eval",
        "human-eval",
        "gsm8k",
        "prompts",
    ] = option(
        "Kind of questions: tasks are those of the embedded model, prompts is any file of prompts, "
        "and the others are public benchmarks in their own format",
        default="tasks",
    )
    data: str | None = option(
        "File of the suite, or its dataset on the hub; tasks needs none",
        default=None,
        metavar="FILE|DATASET",
    )
    category: list[str] | None = option(
        "A category of the suite to ask questions of; may be repeated; by default all", default=None
    )
    method: list[str] | None = option(
        "A method to compare; may be repeated: plain, medusa, generate, prompt_lookup, "
        "generate_packed, prompt_lookup_packed, draft=MODEL or server=URL (key: OPENAI_API_KEY). "
        "Options follow after commas: medusa,nodes=64 medusa,acceptance=typical,epsilon=0.1 "
        "draft=MODEL,gamma=4 server=URL,model=NAME",
        default=None,
        show_default=", ".join(DEFAULT_METHODS),
    )
    limit: int | None = option(
        "Number of questions of each category; by default all, or 10 of tasks", default=None, min=1
    )
    max_new_tokens: int = length_option()
    temperature: float = temperature_option()
    rounds: int = option("Times that each method answers each question", default=1, min=1, max=100)
    perplexity: bool = option(
        "Report the perplexity of each method's answers under the base model",
        "--perplexity",
        default=False,
    )
    seed: int = option("Seed of sampled answers", default=0, min=0, max=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class BenchOutputs:
    """Options that name the files of the results."""

    records: Path | None = option(
        "File that keeps every answer and its times, so that the same command resumes a run that "
        "was stopped; by default none",
        default=None,
        metavar="FILE",
    )
    json: Path | None = option(
        "File for the report as JSON; by default none", default=None, metavar="FILE"
    )
    markdown: Path | None = option(
        "File for the report as Markdown; by default none", default=None, metavar="FILE"
    )
    figures: Path | None = option(
        "Folder for figures of speeds and speedups (needs matplotlib); by default none",
        default=None,
        metavar="FOLDER",
    )


def run(options: BenchOptions, outputs: BenchOutputs, model: ModelOptions) -> None:
    """Answer questions by several methods in turn, and compare their speed and their answers.

    MT-Bench sets the temperature of each category; --temperature is for all other suites.
    """
    from .bench_run import run as answer

    answer(options, outputs, model)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options of `medusa bench judge`."""

    records: Path = argument(
        "Records of a run on MT-Bench (--records of `medusa bench`)", "RECORDS"
    )
    data: str = option("MT-Bench's questions: FastChat's question.jsonl", metavar="FILE")
    prompts: str = option("The judge's prompts: FastChat's judge_prompts.jsonl", metavar="FILE")
    references: str | None = option(
        "Reference answers of mathematics, reasoning and code: FastChat's reference_answer/gpt-4"
        ".jsonl; by default none, which these categories do not allow",
        default=None,
        metavar="FILE",
    )
    judge: str = option("Name of the judge on the server", default="gpt-4")
    method: list[str] | None = option(
        "Method whose answers are graded; may be repeated; by default all", default=None
    )
    output: Path = option(
        "File for the judge's answers, as JSON lines; the same command resumes", "--output", "-o"
    )
    json: Path | None = option("File for the ratings as JSON; by default none", default=None)


def judge(options: JudgeOptions, server: ServerOptions) -> None:
    """Let a language model behind a server grade answers of MT-Bench, from 1 to 10."""
    from .bench_judge import judge as grade

    grade(options, server)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `medusa bench compare`."""

    before: Path = argument("Report of a run (--json of `medusa bench`)", "A.json")
    after: Path = argument("Report of another run", "B.json")


def compare(options: CompareOptions) -> None:
    """Show what changed between two reports, with 95 % intervals over the turns of both."""
    from .bench_changes import show

    show(options.before, options.after)
