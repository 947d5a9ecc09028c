import argparse
import json

import pytest
from rich.console import Console

from benchmarks.training import START, reproduce, table
from benchmarks.training_cost import (
    compare_hidden_states,
    compare_losses,
    compare_vocabularies,
)
from medusa import demo

QUIET = Console(quiet=True)


@pytest.mark.slow
def test_tables_have_all_rows_and_medusa_1_has_the_quality_of_the_baseline(tmp_path):
    sizes = {"tasks": 64, "own": 32, "prompts": 2, "timed": 2, "recorded": 3}
    options = argparse.Namespace(start=START, work=tmp_path, **sizes)
    report = reproduce(options, QUIET)
    rows = {row["method"]: row for row in report["rows"]}
    assert list(rows) == [
        "baseline",
        "backbone alone, as many tokens",
        "direct fine-tuning",
        "Medusa-1",
        "Medusa-2",
        "Medusa-2, self-distilled",
        "Medusa-2, longer: the embedded model",
    ]
    assert rows["Medusa-1"]["as_baseline"] == 100  # heads alone change nothing
    for name in ("quality", "categories", "perplexity"):
        assert rows["Medusa-1"][name] == pytest.approx(rows["baseline"][name])
    assert rows["Medusa-2"]["perplexity"] != rows["baseline"]["perplexity"]
    assert rows["Medusa-2, self-distilled"]["perplexity"] != rows["baseline"]["perplexity"]
    assert rows["baseline"]["acceleration_rate"] == 1
    assert rows["baseline"]["prompts"] == 10
    assert [row["method"] for row in report["ladder"]] == [
        "heads alone",
        "dense tree",
        "optimised tree",
        "Medusa-2",
    ]
    assert report["ladder"][0]["acceleration_rate"] <= report["ladder"][1]["acceleration_rate"]
    assert table("table", report["rows"]).row_count == 7
    own = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert all(record["response"] for record in own)


def test_the_loss_in_chunks_is_the_same_with_less_memory():
    found = compare_losses(
        argparse.Namespace(threads=1, rounds=1, loss_tokens=1024, loss_hidden_size=64)
    )
    assert found["in chunks"]["loss"] == pytest.approx(found["whole"]["loss"], rel=1e-5)
    assert found["peak_share"] < 0.5


def test_epochs_with_and_without_stored_hidden_states_are_timed():
    assert (demo.FOLDER / "base").is_dir()
    found = compare_hidden_states(argparse.Namespace(threads=1, examples=4, epochs=1))
    assert found["tokens"] > 100
    assert found["speed_ratio"] > 0


def test_steps_with_data_and_full_vocabulary_are_timed():
    found = compare_vocabularies(argparse.Namespace(threads=1, rounds=1, tokens=4, hidden_size=64))
    assert found["own lm_heads"]["speed_ratio"] > 0
    assert found["shared lm_head"]["tokens_per_second"].keys() == {"full", "data"}
