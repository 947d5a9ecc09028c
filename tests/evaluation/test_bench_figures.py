"""Figures of `medusa bench`."""

import pytest

from medusa.evaluation.bench_figures import draw_all, draw_thresholds, sweeps, thresholds

pytest.importorskip("matplotlib")


def figures(speed, plain=10.0):
    ratio = speed / plain
    return {
        "tokens_per_second": speed,
        "tokens_per_step": speed / 10,
        "right": 0.5,
        "speedup_over": {"plain": {"median": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio}},
    }


def found(**methods):
    own = {"plain": {**figures(10.0), "speedup_over": {}}}
    own |= {name: figures(speed) for name, speed in methods.items()}
    return {"all": own, "math": own, "code": own, "context up to 256": own}


def test_each_report_gives_the_figures_that_it_allows():
    assert list(draw_all(found())) == ["speeds"]
    assert list(draw_all(found(medusa=20.0))) == ["speeds", "categories"]
    sweep = {f"draft=tiny,gamma={gamma}": 10.0 + gamma for gamma in (2, 4)}
    assert list(draw_all(found(medusa=20.0, **sweep))) == ["speeds", "categories", "gamma"]
    typical = {f"medusa,acceptance=typical,epsilon={each}": 20.0 for each in (0.2, 0.05)}
    assert list(thresholds(found(**typical))) == [0.05, 0.2]
    assert "thresholds" in draw_all(found(medusa=12.0, **typical))
    assert sweeps(found(**sweep)) == {"tiny": {2: 12.0, 4: 14.0}}


def test_bars_are_labelled_with_their_speedup():
    axes = draw_all(found(medusa=25.0))["speeds"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["", "2.50x"]
    drawn = draw_all(found(medusa=25.0, generate=9.0))["categories"].axes[0]
    assert [text.get_text() for text in drawn.get_xticklabels()] == ["math", "code"]
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["medusa", "generate"]


@pytest.mark.parametrize(
    ("changes", "label", "height"),
    [
        ({}, "right answers, %", 50),
        ({"right": None, "perplexity": 2.5}, "perplexity under the model", 2.5),
        ({"right": None}, "tokens a second", 12),
    ],
)
def test_thresholds_are_drawn_over_the_best_measure_of_quality(changes, label, height):
    typical = {f"medusa,acceptance=typical,epsilon={each}": 12.0 for each in (0.2, 0.05)}
    own = {name: {**each, **changes} for name, each in found(**typical)["all"].items()}
    axes = draw_thresholds({"all": own}).axes[0]
    assert axes.get_ylabel() == label
    curve = axes.get_lines()[0]
    assert list(curve.get_ydata()) == [height, height]
