"""`python -m benchmarks.smollm2_figures SMOLLM2.json ABLATIONS.json`: draw SmolLM2's results.

The files are those of `benchmarks.smollm2` and `benchmarks.smollm2_ablations`. Drawn are the tokens
a step and the speedup by category, and the heads' accuracies by the size of the training data.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from medusa.calibration.drawing import new_figure

from .harness import ROOT

FOLDER = ROOT / "docs" / "figures"
SHOWN = ("Medusa", "Medusa, 64 nodes")
"""Methods whose tokens a step are drawn."""
SIZE = re.compile(r"recipe|data [x/] \d+")
"""Variants that differ only in the size of the data."""


def draw_categories(report: dict[str, Any], file: Path) -> None:
    """Draw tokens a step and the speedup over plain decoding by category."""
    figure = new_figure(9, 3.6)
    steps, speeds = figure.subplots(1, 2)
    rows = [row for row in report["rows"] if row["method"] in SHOWN]
    categories = [row["category"] for row in rows if row["method"] == SHOWN[0]]
    for place, method in enumerate(SHOWN):
        values = {
            row["category"]: row["tokens_per_step"] for row in rows if row["method"] == method
        }
        at = [number + 0.4 * place for number in range(len(categories))]
        steps.barh(at, [values.get(each, 0) for each in categories], 0.38, label=method)
    own = {row["category"]: row for row in rows if row["method"] == SHOWN[0]}
    speeds.barh(categories, [own[each]["speedup_over_plain"] for each in categories], 0.6)
    speeds.axvline(1, color="black", linewidth=0.8)
    steps.set_yticks([number + 0.2 for number in range(len(categories))], categories)
    for axes, title in ((steps, "tokens a step"), (speeds, "tokens a second / plain decoding")):
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
    steps.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
    figure.savefig(file, dpi=120)


def draw_data_sizes(report: dict[str, Any], file: Path) -> None:
    """Draw the heads' accuracies over the number of tokens that they were trained on."""
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    sizes = [row for row in report["rows"] if SIZE.fullmatch(row["variant"])]
    sizes.sort(key=lambda row: row["tokens"])
    tokens = [row["tokens"] for row in sizes]
    for head in range(len(sizes[0]["accuracy"])):
        accuracies = [100 * row["accuracy"][head][0] for row in sizes]
        axes.plot(tokens, accuracies, marker="o", label=f"head {head + 1}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{each / 1000:,.0f}k" for each in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("right at the first guess, %")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="file of benchmarks.smollm2")
    parser.add_argument("ablations", type=Path, help="file of benchmarks.smollm2_ablations")
    parser.add_argument(
        "--figures", type=Path, default=FOLDER, help="folder for them (default: docs/figures)"
    )
    options = parser.parse_args()
    read = (json.loads(file.read_text("utf-8")) for file in (options.results, options.ablations))
    results, ablations = read
    draw_categories(results, options.figures / "smollm2-categories.png")
    draw_data_sizes(ablations, options.figures / "smollm2-data.png")
    print(f"drawn in {options.figures}")


if __name__ == "__main__":
    main()
