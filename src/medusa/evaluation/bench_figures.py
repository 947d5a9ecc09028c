"""Figures of `medusa bench` in the form of the paper's figures 3, 5, 7 and 8.

Drawing needs matplotlib (`pip install 'medusa-decoding[plots]'`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..calibration.drawing import new_figure
from .bench_report import ALL, categories

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Figures by group and method, as of `bench_report.report`."""
PLAIN = "plain"
GAMMA = re.compile(r"draft=(?P<draft>[^,]+),gamma=(?P<gamma>\d+)")
EPSILON = re.compile(r"epsilon=(?P<epsilon>[\d.]+)")


def draw_all(found: Figures) -> dict[str, Figure]:
    """Return the figures that a report allows, by the name of their files.

    Raises:
        ImportError: matplotlib is not installed, or does not work.
    """
    drawn = {"speeds": draw_speeds(found)}
    if PLAIN in found[ALL] and len(found[ALL]) > 1 and len(categories(found)) > 1:
        drawn["categories"] = draw_categories(found)
    if sweeps(found):
        drawn["gamma"] = draw_gamma(found)
    if len(thresholds(found)) > 1:
        drawn["thresholds"] = draw_thresholds(found)
    return drawn


def draw_speeds(found: Figures) -> Figure:
    """Return tokens a second by method, with the speedup over plain decoding (figures 3 and 8)."""
    own = found[ALL]
    figure = new_figure(7, 1.2 + 0.45 * len(own))
    axes = figure.add_subplot()
    speeds = [figures["tokens_per_second"] for figures in own.values()]
    bars = axes.barh(
        list(own), speeds, 0.6, color=["0.6" if name == PLAIN else "C0" for name in own]
    )
    labels = [
        f"{figures['speedup_over'][PLAIN]['median']:.2f}x"
        if PLAIN in figures["speedup_over"]
        else ""
        for figures in own.values()
    ]
    axes.bar_label(bars, labels, padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("tokens a second, prefill included (median over turns)")
    return figure


def draw_categories(found: Figures) -> Figure:
    """Return the speedup over plain decoding by category and method (figure 3, right)."""
    names, methods = categories(found), [name for name in found[ALL] if name != PLAIN]
    figure = new_figure(1.5 + 0.35 * len(names) * (1 + len(methods)), 3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        at = [number + width * place for number in range(len(names))]
        speedups = [found[name][method]["speedup_over"][PLAIN] for name in names]
        heights = [speedup["median"] for speedup in speedups]
        errors = [
            [speedup["median"] - speedup["low"] for speedup in speedups],
            [speedup["high"] - speedup["median"] for speedup in speedups],
        ]
        axes.bar(at, heights, 0.92 * width, yerr=errors, label=method, error_kw={"lw": 0.8})
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([number + 0.4 - width / 2 for number in range(len(names))], names, fontsize=9)
    axes.tick_params(axis="x", rotation=30)
    axes.set_ylabel("speed / plain decoding")
    axes.legend(fontsize=8)
    return figure


def sweeps(found: Figures) -> dict[str, dict[int, float]]:
    """Return tokens a second by gamma for each draft model that several gammas were tried with."""
    by_draft: dict[str, dict[int, float]] = {}
    for name, figures in found[ALL].items():
        if match := GAMMA.fullmatch(name):
            speeds = by_draft.setdefault(match["draft"], {})
            speeds[int(match["gamma"])] = figures["tokens_per_second"]
    return {draft: speeds for draft, speeds in by_draft.items() if len(speeds) > 1}


def draw_gamma(found: Figures) -> Figure:
    """Return the speed of speculative decoding by the number of draft tokens (figure 7)."""
    figure = new_figure(6, 3.6)
    axes = figure.add_subplot()
    for draft, speeds in sweeps(found).items():
        gammas = sorted(speeds)
        axes.plot(gammas, [speeds[each] for each in gammas], marker="o", label=f"draft {draft}")
        axes.set_xticks(gammas)
    for number, (name, figures) in enumerate(levels(found).items(), start=len(sweeps(found))):
        style = ":" if name == PLAIN else "--"
        colour = "0.5" if name == PLAIN else f"C{number}"
        axes.axhline(figures["tokens_per_second"], linestyle=style, color=colour, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("draft tokens (gamma)")
    axes.set_ylabel("tokens a second")
    axes.legend(fontsize=8)
    return figure


def thresholds(found: Figures) -> dict[float, Mapping[str, Any]]:
    """Return the figures of typical acceptance by its threshold epsilon, in ascending order."""
    by_epsilon = {
        float(match["epsilon"]): figures
        for name, figures in found[ALL].items()
        if (match := EPSILON.search(name))
    }
    return dict(sorted(by_epsilon.items()))


def draw_thresholds(found: Figures) -> Figure:
    """Return tokens a step and quality by threshold, beside other acceptances (figure 5).

    Quality is the share of right answers; without checked answers it is the perplexity, and without
    that tokens a second stand in its place.
    """
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    label, height = quality(found)

    def place(figures: Mapping[str, Any]) -> tuple[float, float]:
        return figures["tokens_per_step"], height(figures)

    own = thresholds(found)
    axes.plot(*zip(*map(place, own.values()), strict=True), marker="o", label="typical acceptance")
    for epsilon, figures in own.items():
        axes.annotate(
            f"{epsilon:g}", place(figures), fontsize=7, xytext=(3, 4), textcoords="offset points"
        )
    for name, figures in found[ALL].items():
        if not EPSILON.search(name):
            axes.plot(*place(figures), "*", markersize=10, label=name)
    axes.set_xlabel("tokens a step")
    axes.set_ylabel(label)
    axes.set_title("numbers at the curve: epsilon", fontsize=9)
    axes.legend(fontsize=8)
    return figure


def quality(found: Figures) -> tuple[str, Callable[[Mapping[str, Any]], float]]:
    """Return the best measure of quality that all methods have: its label, and how to read it."""
    own = found[ALL].values()
    if all(figures["right"] is not None for figures in own):
        return "right answers, %", lambda figures: 100 * figures["right"]
    if all(figures.get("perplexity") is not None for figures in own):
        return "perplexity under the model", lambda figures: figures["perplexity"]
    return "tokens a second", lambda figures: figures["tokens_per_second"]


def levels(found: Figures) -> dict[str, Mapping[str, Any]]:
    """Return the methods without a gamma, which are drawn as lines."""
    shown: Sequence[str] = [name for name in found[ALL] if not name.startswith("draft=")]
    return {name: found[ALL][name] for name in shown}
