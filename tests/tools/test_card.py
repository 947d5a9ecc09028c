import math
import shutil

from safetensors import safe_open

from medusa import demo
from medusa.demo.tasks import CATEGORIES
from tools.demo_model.card import write_card
from tools.demo_model.train import ANSWERS, CARD_TASKS

ACCURACY = {"extraction": 0.9625, "tables": 0.9725, "sql": 0.98, "math": 0.995, "code": 1.0}
"""Accuracy of the embedded model on `CARD_TASKS` tasks, measured by the stage `card`."""


def test_the_committed_model_card_is_the_one_that_its_script_writes(tmp_path):
    for name in ("base/training.json", "heads/training.json", "heads/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(demo.FOLDER / name, tmp_path / name)
    with safe_open(demo.FOLDER / "base" / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    parameters = sum(math.prod(shape) for shape in shapes)
    answers = ANSWERS["train"] * len(CATEGORIES)
    write_card(tmp_path, parameters, ACCURACY, CARD_TASKS, answers)
    committed = (demo.FOLDER / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == committed
