"""The page `docs/paper.md`: the paper's tables and figures, beside those of this library.

The text of the page is the template `paper.md.jinja`; the numbers of this library come from the
results of `benchmarks.reproduce`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from medusa.cli.bench_run import groups_table, markdown_table, methods_table
from medusa.evaluation.bench_report import ALL, categories
from medusa.files import write_json
from medusa.hardware.devices import Device

from .harness import ROOT

FIGURES = ROOT / "docs" / "figures" / "paper"
COMMANDS = "commands.json"
"""Name of the file with the commands that made the results."""
TEMPLATE = Path(__file__).with_name("paper.md.jinja")
CANDIDATES = (1, 16, 64, 112)
"""Columns that are shown of the paper's tables."""


@dataclass(frozen=True)
class Results:
    """The results of studies, as tables in Markdown.

    Attributes:
        folder: of the results.
    """

    folder: Path

    def has(self, name: str) -> bool:
        """Return True if a study has results."""
        return self._file(name) is not None

    def read(self, name: str) -> dict[str, Any]:
        """Return the results of a study."""
        file = self._file(name)
        if file is None:
            raise FileNotFoundError(f"{self.folder} has no results of {name}")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def source(self, name: str) -> str:
        """Return the command of a study, and what it ran on."""
        lines = ["```console", f"$ {commands(self.folder)[name]}", "```"]
        made = self.read(name).get("provenance")
        if made is not None:
            where = f"{made['device']}, {made['threads']} threads, torch {made['torch']}"
            lines += ["", f"{where}, transformers {made['transformers']}, {made['date']}."]
        return "\n".join(lines)

    def methods(self, name: str) -> str:
        """Return the table of methods of a run of `medusa bench`."""
        return lines_of(*methods_table(self.read(name)["figures"][ALL]))

    def groups(self, name: str, *methods: str) -> str:
        """Return tokens a step and speedups of some methods by category."""
        found = self.read(name)["figures"]
        chosen = {
            group: {method: found[group][method] for method in ("plain", *methods)}
            for group in (ALL, *categories(found))
        }
        return lines_of(*groups_table(chosen))

    def thresholds(self, name: str) -> str:
        """Return tokens a step and quality of each acceptance (figure 5)."""
        rows = []
        for method, own in self.read(name)["figures"][ALL].items():
            right, perplexity = own["right"], own.get("perplexity")
            rows.append(
                (
                    method.removeprefix("medusa,nodes=16,acceptance="),
                    f"{own['tokens_per_step']:.2f}",
                    f"{own['tokens_per_second']:.1f}",
                    "" if right is None else f"{right:.1%}",
                    "" if perplexity is None else f"{perplexity:.2f}",
                )
            )
        return lines_of(("", "tokens / step", "tokens / s", "right", "perplexity"), rows)

    def intensities(self, name: str) -> str:
        """Return some columns of table 6, 7 or 8."""
        found = self.read(name)
        places = [found["columns"].index(count) for count in CANDIDATES]
        rows = [(row, *(f"{own[at]:.2f}" for at in places)) for row, own in found["rows"].items()]
        return lines_of(("", *map(str, CANDIDATES)), rows)

    def speedups(self, name: str) -> str:
        """Return predicted speedups by batch and context (figures 21 to 23)."""
        found = self.read(name)
        rows = [
            (
                *(str(row["batch"]), f"{row['context']:,}"),
                *(f"{each:.2f}" for each in row["speedups"]),
                str(row["best"]),
            )
            for row in found["rows"]
        ]
        return lines_of(("batch", "context", *map(str, found["columns"]), "best"), rows)

    def roofs(self, name: str) -> str:
        """Return the share of the roof that measured products reach, by family and phase."""
        found = self.read(name)
        device = Device("", found["bandwidth"], found["peak"], memory=0)
        shares: dict[tuple[str, str], list[float]] = {}
        for point in found["points"]:
            share = point["rate"] / device.attainable(point["intensity"])
            shares.setdefault((point["family"], point["phase"]), []).append(share)
        rows = [
            (*kind, str(len(own)), f"{min(own):.0%}", f"{statistics.median(own):.0%}")
            for kind, own in shares.items()
        ]
        return lines_of(("products", "phase", "measured", "least", "median"), rows)

    def plan(self, name: str) -> str:
        """Return predicted and measured times of a step by nodes."""
        found = self.read(name)
        measured = found["measured_ms"]
        rows = [
            (
                str(size["nodes"]),
                *(f"{size['step_ms']:.1f}", f"{measured[str(size['nodes'])]:.1f}"),
                f"{size['overhead']:.2f}",
                f"{measured[str(size['nodes'])] / measured['1']:.2f}",
            )
            for size in found["sizes"]
            if str(size["nodes"]) in measured
        ]
        headings = ("predicted ms", "measured ms", "predicted overhead", "measured overhead")
        return lines_of(("nodes", *headings), rows)

    def trees(self, name: str) -> str:
        """Return the trees that were decoded, dense and optimised (figure 4)."""
        (found,) = self.read(name)["results"].values()
        rows = [
            (
                *(each["kind"], str(each["nodes"])),
                *(f"{each[rate]:.2f}" for rate in ("predicted_rate", "rate", "speedup")),
            )
            for each in found["decoded"]
        ]
        return lines_of(("tree", "nodes", "tokens / step, replayed", "decoded", "speedup"), rows)

    def claims(self, name: str) -> dict[str, Any]:
        """Return the figures behind the paper's claims about trees."""
        (found,) = self.read(name)["results"].values()
        claims: dict[str, Any] = found["claims"]
        return claims

    def training(self, name: str, part: str) -> str:
        """Return a table of the training methods (tables 2 and 3)."""
        rows = [
            (
                each["method"],
                f"{each['quality']:.1f}" if "quality" in each else "",
                f"{each['acceleration_rate']:.2f}",
                f"{each['overhead']:.2f}",
                f"{each['speedup']:.2f}",
            )
            for each in self.read(name)[part]
        ]
        return lines_of(("", "right, %", "tokens / step", "overhead", "speedup"), rows)

    def has_figure(self, name: str, figure: str) -> bool:
        """Return True if a run of `medusa bench` drew a figure."""
        return (FIGURES / name / f"{figure}.png").is_file()

    def _file(self, name: str) -> Path | None:
        found = sorted([*self.folder.glob(f"{name}.json"), *self.folder.glob(f"{name}-*.json")])
        return found[0] if found else None


def lines_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(markdown_table(headings, rows))


def keep_command(folder: Path, name: str, command: str) -> None:
    """Write the command of a study beside its results, as a reader would write it."""
    write_json(folder / COMMANDS, {**commands(folder), name: command}, indent=1)


def commands(folder: Path) -> dict[str, str]:
    """Return the commands of all studies with results, by the name of the study."""
    file = folder / COMMANDS
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def page(folder: Path) -> str:
    """Return the page from a folder of results; studies without results are named as such."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(results=Results(folder), training=Results(folder.parent))
