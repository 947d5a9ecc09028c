import re

import pytest

from medusa.training.plan import plan
from medusa.training.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "rows", "said"),
    [
        (
            {"epochs": 5},
            425,
            "warning: 35 steps are too few for heads to learn much: --batch-size 20 makes 110",
        ),
        (
            {"epochs": 1},
            1,
            "warning: 1 step is too few for heads to learn much: take more data, or --epochs 100",
        ),
        ({"epochs": 2}, 59, "warning: 2 steps are .*: take more data, or --epochs 100"),
        ({"batch_size": 8, "micro_batch_size": 8, "epochs": 2}, 398, None),  # 100 steps
        (
            {"batch_size": 8, "micro_batch_size": 8, "epochs": 2},
            392,
            "warning: 98 steps .*--batch-size 7 makes 112",
        ),
    ],
)
def test_few_steps_give_a_warning_that_proposes_a_batch_size(options, rows, said):
    recipe = Recipe(**options)
    lines = plan(recipe, "heads", recipe.epochs, rows, 1000)
    assert len(lines) == (1 if said is None else 2)
    if said is not None:
        assert re.fullmatch(said, lines[1])


@pytest.mark.parametrize(
    ("stage", "method", "rate"),
    [
        ("heads", "medusa-2", "2.0e-03"),
        ("backbone", "medusa-2", "5.0e-04"),
        ("both", "medusa-2", "5.0e-04 (backbone) and 2.0e-03 (heads)"),
        ("both", "direct", "5.0e-04 (backbone) and 5.0e-04 (heads)"),
    ],
)
def test_the_learning_rates_are_those_of_the_stage(stage, method, rate):
    recipe = Recipe(method=method, epochs=2, batch_size=10, micro_batch_size=10)
    (line,) = plan(recipe, stage, 2, 10_000, 500_000)
    assert line == (
        "plan: 2000 steps of 10 examples, about 500 learnt tokens a step; the learning rate rises "
        f"to {rate} in 40 "
        "steps and then falls to 0 along a cosine"
    )
