from dataclasses import replace

import pytest

from medusa.demo.recipe import Recipe


def test_the_rate_is_a_straight_line_between_its_points():
    recipe = replace(Recipe(), rates=((0, 0.1), (100, 1.0), (300, 0.5), (400, 0.0)))
    assert recipe.steps == 400
    assert [recipe.rate(step) for step in (0, 50, 100, 200, 350)] == pytest.approx([0.1, 0.55, 1.0, 0.75, 0.25])
