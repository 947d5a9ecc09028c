"""The run of `medusa bench`, and the report that it prints and writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import typer
from rich.table import Table
from transformers import PreTrainedModel

from .. import files
from ..calibration.drawing import check_library, save
from ..evaluation.bench import Bench, BenchSettings, run_bench
from ..evaluation.bench_figures import Figures, draw_all
from ..evaluation.bench_report import ALL, PLAIN, is_noisy, report, turns_of
from ..evaluation.certificate import certificate
from ..evaluation.diagnosis import diagnosis, unaccepted
from ..evaluation.perplexity import with_losses
from ..evaluation.prompts import task_questions
from ..evaluation.specs import method_of
from ..evaluation.suites import Question, read_suite
from ..hardware.memory import peak_bytes
from ..hardware.provenance import device_name, provenance
from ..loading import MedusaModel
from ..training.progress import progress
from .bench import DEFAULT_METHODS, BenchOptions, BenchOutputs
from .models import find, load
from .options import ModelOptions
from .streams import console, note

FOLDED = 14
"""A column with a longer word is folded on narrow screens, but not below `LEAST`."""
LEAST = 8
"""Least width of a folded column."""
TASKS = 10
"""Default number of the embedded model's tasks of each category."""


def run(options: BenchOptions, outputs: BenchOutputs, chosen: ModelOptions) -> None:
    """Answer the questions, and print and write the report.

    Raises:
        ValueError: the questions, a method or the file of records is not as it should be.
    """
    questions = read_questions(options)
    check_outputs(outputs)
    names = tuple(dict.fromkeys(options.method or DEFAULT_METHODS))
    model, tokenizer = load(chosen, all_heads=True)
    backbone = cache(lambda: load_backbone(chosen, model.device))
    methods = {name: method_of(name, model, backbone) for name in names}
    settings = BenchSettings(
        options.max_new_tokens, options.temperature, options.rounds, options.seed
    )
    described = describe(options, chosen, names)
    bench = Bench(model, tokenizer, methods, settings)
    records = run_bench(bench, questions, outputs.records, described, note)
    peak = peak_bytes()
    if options.perplexity:
        with progress("perplexities", len(records), "questions", note) as advance:
            records = with_losses(model, records, advance)
    found = report(records)
    sentences = diagnoses(found, model)
    title = f"{chosen.model}, {options.suite}"
    show(found, sentences, title)
    if peak is not None:
        console().print(memory_sentence(peak), highlight=False)
    content: dict[str, Any] = {"provenance": provenance(), "settings": described}
    content |= {"process_peak_bytes": peak, "figures": found, "turns": turns_of(records)}
    content["certificates"] = {
        name: certificate(model, records, name, PLAIN) for name in medusa_methods(found)
    }
    content["diagnosis"] = [*sentences, *certificate_sentences(content["certificates"])]
    write(outputs, content, title)


def load_backbone(chosen: ModelOptions, device: torch.device) -> PreTrainedModel:
    """Load the backbone as transformers loads it, onto the device of the model."""
    backbone = find(chosen).load_backbone().eval()
    # a device map has placed it already
    return backbone if chosen.device_map is not None else backbone.to(device)


def medusa_methods(found: Figures) -> list[str]:
    """Return the Medusa methods of a report that has plain decoding to compare them with."""
    return [name for name in found[ALL] if name.startswith("medusa") and PLAIN in found[ALL]]


def diagnoses(found: Figures, model: MedusaModel) -> list[str]:
    """Return what there is to say about the methods; candidates never accepted come first."""
    device = device_name(model.device)
    useless = [sentence for name in found[ALL] if (sentence := unaccepted(found, name))]
    slow = [
        sentence
        for name in medusa_methods(found)
        for sentence in diagnosis(found, name, PLAIN, model.calibration, device)
    ]
    return list(dict.fromkeys(useless + slow))


def memory_sentence(peak: int) -> str:
    """Return what the whole run needed."""
    return (
        f"The process took up to {peak / 1e9:.2f} GB of main memory, all methods' models included."
    )


def certificate_sentences(certificates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what the certificates say of answers that differ from plain decoding's."""
    return [
        f"{name}: the answers that differ leave plain decoding where the model's logits of the two "
        f"tokens are at most {max(each['margin'] for each in found['divergences']):.3g} apart."
        for name, found in certificates.items()
        if found["divergences"]
    ]


def check_outputs(outputs: BenchOutputs) -> None:
    """Check that all files of the results can be written, before anything is measured."""
    for file in (outputs.records, outputs.json, outputs.markdown):
        if file is not None:
            files.check_writable(file)
    if outputs.figures is not None:
        check_library()
        files.check_writable(outputs.figures, folder=True)


def write(outputs: BenchOutputs, content: Mapping[str, Any], title: str) -> None:
    """Write the report to the files that the options name."""
    if outputs.json is not None:
        files.write_json(outputs.json, content, indent=1)
        note(f"written to {outputs.json}")
    if outputs.markdown is not None:
        with files.replacing(outputs.markdown) as beside:
            beside.write_text(markdown(content, title), encoding="utf-8")
        note(f"written to {outputs.markdown}")
    if outputs.figures is not None:
        outputs.figures.mkdir(parents=True, exist_ok=True)
        for name, figure in draw_all(content["figures"]).items():
            save(figure, outputs.figures / f"{name}.png")
        note(f"drawn in {outputs.figures}")


def read_questions(options: BenchOptions) -> list[Question]:
    """Return the questions that the options choose.

    Raises:
        ValueError: the file does not hold questions of the suite, or none of a category.
    """
    if options.suite == "tasks":
        if options.data is not None:
            raise typer.BadParameter("--data is for other suites than tasks: leave it out")
        return of_categories(task_questions(options.limit or TASKS), options.category)
    if options.data is None:
        raise typer.BadParameter(f"--suite {options.suite} needs --data, the file of the suite")
    questions = read_suite(options.suite, options.data, options.limit)
    return of_categories(questions, options.category)


def of_categories(questions: list[Question], categories: Sequence[str] | None) -> list[Question]:
    """Return the questions of some categories; None takes all.

    Raises:
        ValueError: no question is of a category; lists those that there are.
    """
    if categories is None:
        return questions
    known = dict.fromkeys(each.category for each in questions)
    for name in categories:
        if name not in known:
            raise ValueError(f"--category {name}: the suite has {', '.join(known)}")
    return [each for each in questions if each.category in categories]


def describe(options: BenchOptions, chosen: ModelOptions, names: Sequence[str]) -> dict[str, Any]:
    """Return what all records have in common."""
    return {
        "model": chosen.model,
        "base": chosen.base,
        "dtype": chosen.dtype,
        "prepack": chosen.prepack,
        "compile": chosen.compile,
        "suite": options.suite,
        "categories": options.category,
        "methods": list(names),
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "rounds": options.rounds,
        "seed": options.seed,
    }


COLUMNS = (
    "method",
    "tokens / step",
    "overhead",
    "tokens / s",
    "/ plain",
    "first token ms",
    "total s",
    "ms / token p50",
    "p95",
    "same",
    "right",
    "perplexity",
    "GPU GB",
)
"""Headings of the table of methods."""
CAPTION = (
    "medians over turns, prefill included; overhead: time of a step in plain steps; / plain: with "
    "a 95 % interval; same: greedy answers that are the first method's"
)


def methods_table(
    figures: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and a row of texts for each method, without columns that are empty."""
    rows = [(name, *cells(own)) for name, own in figures.items()]
    filled = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
    kept = [tuple(row[place] for place in filled) for row in (COLUMNS, *rows)]
    return kept[0], kept[1:]


def cells(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return figures as texts, in the order of `COLUMNS` without the first."""
    times, peak = figures["ms_per_token"], figures.get("device_peak_bytes")
    return (
        number_text(figures["tokens_per_step"], ".2f"),
        "" if figures["overhead"] is None else f"{figures['overhead']:.2f}",
        f"{figures['tokens_per_second']:.1f}",
        ratio_text(figures["speedup_over"].get("plain")),
        f"{figures['first_token_ms']:.0f}",
        f"{figures['total_seconds']:.2f}",
        *(("", "") if times is None else (f"{times['p50']:.1f}", f"{times['p95']:.1f}")),
        f"{figures['identical']}/{figures['greedy_turns']}" if figures["greedy_turns"] else "",
        number_text(figures["right"], ".0%"),
        number_text(figures.get("perplexity"), ".3f"),
        "" if peak is None else f"{peak / 1e9:.2f}",
    )


def number_text(value: float | None, form: str) -> str:
    """Return a number in a form such as ".2f"; empty if there is none."""
    return "" if value is None else format(value, form)


def ratio_text(ratio: Mapping[str, float] | None) -> str:
    """Return a ratio with its interval, if there is one."""
    if ratio is None:
        return ""
    interval = f" ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio["low"] < ratio["high"] else ""
    return f"{ratio['median']:.2f}{interval}"


def groups_table(
    found: Figures,
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and rows of the groups: tokens a step and the speedup of each method."""
    names = [name for name in found[ALL] if name != "plain"]
    headings = tuple(part for name in names for part in (name, "/ plain"))
    rows = [
        (
            group,
            str(next(iter(methods.values()))["turns"]),
            *(
                part
                for name in names
                for part in (
                    number_text(methods[name]["tokens_per_step"], ".2f"),
                    f"{methods[name]['speedup_over']['plain']['median']:.2f}"
                    if "plain" in methods[name]["speedup_over"]
                    else "",
                )
            ),
        )
        for group, methods in found.items()
    ]
    return ("", "turns", *headings), rows


def title_of(figures: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Return the title of the table of methods, which says whose speedup cannot be relied on."""
    noisy = [
        name
        for name, own in figures.items()
        if "plain" in own["speedup_over"] and is_noisy(own["speedup_over"]["plain"])
    ]
    return f"{title} (noisy: {', '.join(noisy)}; measure more questions)" if noisy else title


def show(found: Figures, sentences: Sequence[str], title: str) -> None:
    """Print the tables of methods and of groups, and the diagnosis."""
    screen = console()
    turns = next(iter(found[ALL].values()))["turns"]
    screen.print(*tables_of(found, f"{title}, {turns} turns"))
    for sentence in sentences:
        screen.print(sentence, highlight=False, markup=False)


def tables_of(found: Figures, title: str) -> tuple[Table, Table]:
    """Return the tables of methods, and of groups by method."""
    methods = table_of(*methods_table(found[ALL]))
    methods.title, methods.caption = title_of(found[ALL], title), CAPTION
    groups = table_of(*groups_table(found))
    groups.title = "Tokens a step, and speed over plain decoding"
    return methods, groups


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose columns of names are folded, so that a screen has room for the others.

    Headings are broken between words, and intervals stand below their medians.
    """
    table = Table()
    for heading, *texts in zip(headings, *rows, strict=True):
        if max(len(word) for text in (heading, *texts) for word in text.split()) > FOLDED:
            table.add_column(heading, overflow="fold", min_width=LEAST)
        else:
            table.add_column(re.sub(r"(?<!/) ", "\n", heading), no_wrap=True)
    for row in rows:
        table.add_row(*(text.replace(" (", "\n(") for text in row))
    return table


def markdown(content: Mapping[str, Any], title: str) -> str:
    """Return the report as Markdown."""
    made, found, peak = (content[name] for name in ("provenance", "figures", "process_peak_bytes"))
    headings, rows = groups_table(found)
    return "\n".join(
        [
            f"# {title_of(found[ALL], title)}",
            "",
            f"{made['device']}, {made['threads']} threads, torch {made['torch']}, transformers "
            f"{made['transformers']}, {made['date']}, commit {made['commit']}. {CAPTION}.",
            "",
            *markdown_table(*methods_table(found[ALL])),
            "",
            *markdown_table(headings, rows),
            "",
            *content["diagnosis"],
            *([] if peak is None else [memory_sentence(peak)]),
            "",
        ]
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
