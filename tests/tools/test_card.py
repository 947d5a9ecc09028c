import shutil

from medusa import demo
from tools.demo_model.card import write_card


def test_the_card_tells_what_the_reports_hold(tmp_path):
    for part in ("base", "heads"):
        (tmp_path / part).mkdir()
        for name in ("training.json", "config.json"):
            shutil.copy(demo.FOLDER / part / name, tmp_path / part / name)
    write_card(tmp_path, 5_300_000, {"sql": 0.98, "math": 0.995}, 400, 4800)
    card = (tmp_path / "README.md").read_text()
    assert "5.3 million parameters with 5 Medusa heads" in card
    assert "| sql | math |\n|---|---|\n| 98.0% | 99.5% |" in card
    assert "| from step 18850 | extraction 62%" in card
    assert "on 4800 of its own greedy answers" in card
    assert "{" not in card.replace("{}", "")
