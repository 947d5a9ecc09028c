from importlib.resources import files

import pytest

from medusa.training.recipe import Recipe

SHIPPED = sorted(each.name[:-5] for each in files("medusa.training.recipes").iterdir() if each.name.endswith(".yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_recipes_that_come_with_the_library_are_valid(name):
    assert Recipe(**Recipe.read(name)).stages


def test_what_the_paper_says_of_vicuna_and_zephyr():
    vicuna, zephyr = (
        Recipe(**Recipe.read(f"{name}")) for name in ("vicuna-7b-medusa-2", "zephyr-7b-self-distillation")
    )
    assert vicuna.stages == [("heads", 2.0), ("both", 2.0)]
    assert (vicuna.bits, vicuna.batch_size, vicuna.lambda0, vicuna.lr, vicuna.warmup_steps) == (4, 64, 0.2, 5e-4, 40)
    assert zephyr.stages == [("both", 1.0)]
    assert (zephyr.bits, zephyr.batch_size, zephyr.lambda0, zephyr.lr, zephyr.warmup_steps) == (0, 128, 0.01, 1e-4, 20)
    assert (zephyr.distill, zephyr.lambda0_schedule, zephyr.max_length) == (True, "sine", 2048)


def test_files_are_read_with_dashes_and_numbers_as_yaml_has_them(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 5e-4\nepochs: 3\nbatch-size: 8\npacking: true\n")
    recipe = Recipe(**Recipe.read(file))
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.packing) == (5e-4, 3.0, 8, True)


@pytest.mark.parametrize(
    ("told", "error", "said"),
    [
        ("learning_rate: 1", ValueError, "unknown option learning_rate.*lr"),
        ("- 1", ValueError, "must hold options"),
        ("a: [", ValueError, "not YAML"),
        (None, FileNotFoundError, "vicuna-7b-medusa-2"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, told, error, said):
    file = tmp_path / "mine.yaml"
    if told is not None:
        file.write_text(told)
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
