from dataclasses import replace

import pytest

from tools.demo_model.recipe import BackboneRecipe, Foresight


def test_the_learning_rate_is_linear_between_its_points():
    recipe = replace(BackboneRecipe(), rates=((0, 0.1), (100, 1.0), (300, 0.5), (400, 0.0)))
    assert recipe.steps == 400
    assert [recipe.rate(step) for step in (0, 50, 100, 200, 350)] == pytest.approx(
        [0.1, 0.55, 1.0, 0.75, 0.25]
    )


def test_the_weight_of_the_heads_changes_at_its_points():
    foresight = Foresight(begin=10, weights=((20, 0.03), (30, 0.1)))
    assert [foresight.weight(step) for step in (10, 19, 20, 29, 30, 99)] == [
        0.0,
        0.0,
        0.03,
        0.03,
        0.1,
        0.1,
    ]
