from collections import namedtuple

import pytest

from medusa.training import checks
from medusa.training.checks import check_disk, check_options
from medusa.training.recipe import Recipe
from medusa.training.source import Source

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "fits"),
    [(7_000_000_000, True), (6_999_999_999, False)],
)
def test_an_error_of_a_full_disk_names_the_parts(tmp_path, monkeypatch, free, fits):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(free, 0, free))
    needs = {
        "checkpoints": (tmp_path / "new" / "run", 4_000_000_000),
        "hidden states": (tmp_path, 3_000_000_000),
    }
    if fits:
        check_disk(needs)
    else:
        with pytest.raises(
            ValueError, match=r"7\.00 GB \(checkpoints 4\.00 GB, hidden states 3\.00 GB\)"
        ):
            check_disk(needs)


def test_evaluation_share_is_refused_beside_evaluation_data(tmp_path):
    source = Source("model", "data", evaluation="held-out")
    check_options(Recipe(), source, tmp_path, "none")
    with pytest.raises(ValueError, match="evaluation_share has no effect beside evaluation data"):
        check_options(Recipe(evaluation_share=0.5), source, tmp_path, "none")


def test_an_adapter_needs_peft(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    check_options(Recipe(), Source("model", "data"), tmp_path, "none")
    with pytest.raises(ImportError, match="peft"):
        check_options(Recipe(method="medusa-2"), Source("model", "data"), tmp_path, "none")
