from importlib.resources import files

import pytest

from medusa.training.recipe import Recipe

SHIPPED = sorted(
    each.name[:-5]
    for each in files("medusa.training.recipes").iterdir()
    if each.name.endswith(".yaml")
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name):
    assert Recipe(**Recipe.read(name)).stages


def test_shipped_recipes_have_the_papers_values():
    vicuna, zephyr = (
        Recipe(**Recipe.read(f"{name}"))
        for name in ("vicuna-7b-medusa-2", "zephyr-7b-self-distillation")
    )
    assert vicuna.stages == [("heads", 2.0), ("both", 2.0)]
    assert (vicuna.max_length, vicuna.packing) == (4096, True)
    assert (vicuna.bits, vicuna.batch_size, vicuna.lambda0, vicuna.lr, vicuna.warmup_steps) == (
        4,
        64,
        0.2,
        5e-4,
        40,
    )
    assert zephyr.stages == [("both", 2.0)]
    assert (zephyr.bits, zephyr.batch_size, zephyr.lambda0, zephyr.lr, zephyr.warmup_steps) == (
        0,
        128,
        0.01,
        1e-4,
        20,
    )
    assert (zephyr.distill, zephyr.lambda0_schedule, zephyr.max_length) == (True, "sine", 2048)


def test_recipe_files_may_have_dashes_and_any_yaml_numbers(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 5e-4\nepochs: 3\nbatch-size: 8\npacking: true\n")
    recipe = Recipe(**Recipe.read(file))
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.packing) == (5e-4, 3.0, 8, True)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("learning_rate: 1", ValueError, "unknown option learning_rate.*lr"),
        ("- 1", ValueError, "must hold options"),
        ("a: [", ValueError, "not YAML"),
        (None, FileNotFoundError, "vicuna-7b-medusa-2"),
    ],
)
def test_invalid_recipe_files_are_errors(tmp_path, text, error, said):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=said):
        Recipe.read(file)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "medusa-3"},
        {"num_heads": 0},
        {"lr": 0},
        {"epochs": -1},
        {"batch_size": 2.5},
        {"packing": "yes"},
        {"bits": 5},
        {"max_length": 2},
        {"lr": float("nan")},
        {"decay": float("inf")},
        {"epochs": "inf"},
        {"batch_size": float("inf")},
        {"num_layers": -1},
        {"evaluate_every": -1},
        {"seed": -1},
        {"max_grad_norm": -1},
        {"method": "medusa-2", "lora_dropout": 1.0},
        {"distill": True},
        {"cache_hidden_states": True, "method": "medusa-2"},
        {"method": "medusa-2", "lora_rank": 0, "bits": 4},
        {"method": "direct", "heads_epochs": 1},
        {"optimizer": "muon"},
        {"method": "medusa-2", "optimizer": "muon"},
    ],
)
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match="|".join(options)):
        Recipe(**options)


WITHOUT_EFFECT = [
    *(
        (option, "medusa-1", {})
        for option in ("lora_rank=8", "lora_alpha=8", "lora_dropout=0.1", "lambda0=0.5")
    ),
    *(
        (option, "medusa-1", {})
        for option in ("gradient_checkpointing=true", "lambda0_schedule=sine")
    ),
    *(
        (option, "medusa-1", {})
        for option in ("distill=true", "heads_epochs=1", "backbone_epochs=1")
    ),
    *((option, "medusa-2", {}) for option in ("cache_hidden_states=true", "draft_vocab_size=8")),
    *(
        (option, "direct", {})
        for option in ("lambda0=0.5", "lambda0_schedule=sine", "heads_lr_factor=2")
    ),
    *(
        (option, "backbone", {})
        for option in ("decay=0.5", "lambda0=0.5", "heads_lr_factor=2", "backbone_epochs=1")
    ),
    *((option, "medusa-2", {"lora_rank": 0}) for option in ("lora_alpha=8", "lora_dropout=0.1")),
    ("packing=true", "medusa-1", {"cache_hidden_states": True}),
]


@pytest.mark.parametrize(("option", "method", "besides"), WITHOUT_EFFECT)
def test_an_option_without_effect_is_named(option, method, besides):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"^{name} has no effect with"):
        Recipe(**{"method": method, name: {"true": True}.get(value, value), **besides})


@pytest.mark.parametrize(("option", "method", "besides"), WITHOUT_EFFECT)
def test_an_option_without_effect_is_named_even_at_its_default(option, method, besides):
    name = option.split("=")[0]
    recipe = Recipe(method=method, **besides)
    if getattr(recipe, name):
        with pytest.raises(ValueError, match=f"^{name} has no effect with"):
            recipe.check_effect([name])
    else:
        recipe.check_effect([name])
