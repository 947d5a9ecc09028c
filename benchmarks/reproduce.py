"""`make reproduce`: the paper's tables and figures on the embedded model and on SmolLM2.

Each study is a command of this library or of this folder, which is printed before it runs. Studies
whose results exist are skipped, and a study that was stopped resumes. At the end the results are
written to `docs/paper.md`, beside the paper's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .harness import RESULTS, ROOT
from .paper import FIGURES, keep_command, page

FOLDER = RESULTS / "paper"
"""Folder of the results."""
MT_BENCH = "question.jsonl"
PAGE = ROOT / "docs" / "paper.md"
WORK = ROOT / "build" / "reproduce"
"""Folder of what a stopped run resumes from, and of the draft models."""
EPSILONS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.12, 0.15, 0.2, 0.25)
"""Thresholds of typical acceptance, from the paper's 0.01 to 0.25."""
GAMMAS = (2, 3, 4)
"""Numbers of tokens that a draft model proposes."""
SMOLLM2 = "smollm2"
METHODS = ("plain", "medusa", "generate", "prompt_lookup")
PERPLEXITY = "--perplexity"
LADDER = ("plain", "medusa,dense=1x1x1", "medusa,dense=3x2x1", "medusa,nodes=16", "medusa")
"""Steps of table 3: a chain of the heads' best tokens, a dense tree and an optimised one of 16
nodes, and the calibrated tree with which decoding adapts."""
THRESHOLDS = (
    "plain",
    "medusa,nodes=16,acceptance=greedy",
    "medusa,nodes=16,acceptance=rejection",
    *(f"medusa,nodes=16,acceptance=typical,epsilon={each}" for each in EPSILONS),
)
"""Ways of decoding at T = 0.7 in figure 5; plain decoding is random sampling."""


@dataclass(frozen=True)
class Inputs:
    """Files and limits that the studies of SmolLM2 read.

    Attributes:
        mt_bench: MT-Bench's `question.jsonl`; None leaves SmolLM2's answers out.
        answers: the model's own answers, on which a draft model is trained; None leaves the draft
            model out.
        limit: questions of each category.
        max_new_tokens: maximum length of an answer.
    """

    mt_bench: str | None
    answers: str | None
    limit: int
    max_new_tokens: int


@dataclass(frozen=True)
class Study:
    """A command that makes results.

    Attributes:
        name: of the study, which ends with the name of the model.
        command: words of the command.
        outputs: further words, which name the files that it writes.
        result: one of these files; its name may hold `*` for the device.
    """

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    result: Path

    def is_done(self) -> bool:
        """Return True if the results exist."""
        return any(self.result.parent.glob(self.result.name))

    def run(self) -> None:
        """Run the command.

        Raises:
            SystemExit: it failed.
        """
        program, *words = (*self.command, *self.outputs)
        print(f"$ {shlex.join([program, *words])}".replace(f"{ROOT}/", ""), flush=True)
        arguments = ["-m", "medusa.cli", *words] if program == "medusa" else words
        if code := subprocess.run([sys.executable, *arguments], check=False, cwd=ROOT).returncode:
            sys.exit(code)


def studies(inputs: Inputs) -> Iterator[Study]:
    """Yield all studies."""
    yield from hardware_studies()
    yield from embedded_studies()
    yield from smollm2_studies(inputs)


def hardware_studies() -> Iterator[Study]:
    """Yield the studies of appendix G."""
    for number in (6, 7, 8):
        yield command(f"table-{number}", "roofline", "--table", str(number))
    yield command("speedups-7b", "roofline", "--model", "7b", png="speedups-7b")
    yield command("roofline-smollm2", "roofline", "--measure", "--model", SMOLLM2, png="roofline")
    where = ("--device", "here", "--context", "200", "--max-nodes", "64")
    heads = ("--trace", SMOLLM2, "--layers", "2", "--no-own-lm-head")
    yield command("plan-smollm2", "plan", SMOLLM2, *where, *heads)


def embedded_studies() -> Iterator[Study]:
    """Yield the studies of the embedded model."""
    draft = draft_study("draft-embedded", "tools.demo_model.draft")
    yield draft
    methods = (*METHODS, *drafts(draft))
    yield bench("methods-embedded", "demo", methods, "--limit", "4")
    yield bench("ladder-embedded", "demo", LADDER, "--limit", "10")
    sampled = ("--temperature", "0.7", "--limit", "20")
    yield bench("thresholds-embedded", "demo", THRESHOLDS, *sampled)
    yield script("trees-embedded", "--models", "embedded")


def smollm2_studies(inputs: Inputs) -> Iterator[Study]:
    """Yield the studies of SmolLM2."""
    methods: tuple[str, ...] = METHODS
    if inputs.answers is not None:
        draft = draft_study("draft-smollm2", "tools.smollm2.draft", "--data", inputs.answers)
        yield draft
        methods += drafts(draft)
    if inputs.mt_bench is None:
        return
    short = ("--max-new-tokens", str(inputs.max_new_tokens))
    asked = ("--suite", "mt-bench", "--data", inputs.mt_bench, *short)
    few = ("--limit", str(inputs.limit))
    yield bench("methods-smollm2", SMOLLM2, methods, *asked, *few)
    yield bench("ladder-smollm2", SMOLLM2, LADDER, *asked, "--limit", "1")
    categories = ("--category", "writing", "--category", "roleplay")
    yield bench("thresholds-smollm2", SMOLLM2, THRESHOLDS, *asked, *few, *categories, PERPLEXITY)
    some = ("--decoded", "6", "--dense", "4", *short)
    yield script("trees-smollm2", "--models", SMOLLM2, "--questions", inputs.mt_bench, *some)


def bench(name: str, model: str, methods: tuple[str, ...], *arguments: str) -> Study:
    """Return a run of `medusa bench` with its files of results, records and figures."""
    kept: tuple[str, ...]
    chosen = [word for method in methods for word in ("--method", method)]
    result, records = FOLDER / f"{name}.json", WORK / f"{name}.jsonl"
    kept = ("--records", str(records))
    if not name.startswith("ladder"):  # a table in the paper, too
        kept += ("--figures", str(FIGURES / name))
    words = ("medusa", "bench", model, *arguments, *chosen)
    return Study(name, words, ("--json", str(result), *kept), result)


def command(name: str, *words: str, png: str | None = None) -> Study:
    """Return a run of a `medusa` command that writes figures as JSON, and maybe draws them."""
    result = FOLDER / f"{name}.json"
    drawn = () if png is None else ("--png", str(FIGURES / f"{png}.png"))
    return Study(name, ("medusa", *words), ("--json", str(result), *drawn), result)


def script(name: str, *arguments: str) -> Study:
    """Return a run of `benchmarks.trees`."""
    outputs = ("--output", str(FOLDER), "--figures", str(FIGURES))
    words = ("python", "-m", "benchmarks.trees", *arguments)
    return Study(name, words, outputs, FOLDER / f"{name}-*.json")


def draft_study(name: str, module: str, *arguments: str) -> Study:
    """Return the training of a draft model."""
    folder = WORK / name
    words = ("python", "-m", module, *arguments)
    return Study(name, words, ("--output", str(folder)), folder / "config.json")


def drafts(study: Study) -> tuple[str, ...]:
    """Return the methods of speculative decoding with a draft model."""
    folder = study.result.parent.relative_to(ROOT)
    return tuple(f"draft={folder},gamma={gamma}" for gamma in GAMMAS)


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mt-bench", help="MT-Bench's question.jsonl; without it SmolLM2's studies are left out"
    )
    parser.add_argument(
        "--answers",
        help="SmolLM2's own answers (tools.smollm2.train), on which a draft model is trained; "
        "without them SmolLM2 is compared without a draft model",
    )
    parser.add_argument(
        "--limit", type=int, default=2, help="questions of each category of MT-Bench (default: 2)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="length of SmolLM2's answers (default: 128)"
    )
    parser.add_argument(
        "--only", nargs="*", metavar="STUDY", help="run these studies only (default: all)"
    )
    return parser.parse_args()


def main() -> None:
    """Run the studies that have no results yet, and write the page."""
    options = parse_options()
    given = Inputs(options.mt_bench, options.answers, options.limit, options.max_new_tokens)
    for folder in (FOLDER, FIGURES, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    # paths of this machine mean nothing to readers
    answers = None if given.answers is None else "answers.jsonl"
    named = dataclasses.replace(given, answers=answers)
    named = named if given.mt_bench is None else dataclasses.replace(named, mt_bench=MT_BENCH)
    for study, shown in zip(studies(given), studies(named), strict=True):
        if (options.only is None or study.name in options.only) and not study.is_done():
            study.run()
            keep_command(FOLDER, study.name, shlex.join(shown.command))
    PAGE.write_text(page(FOLDER), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
