"""Training runs, as of `medusa train`, with a tiny Llama."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.utils import filter_repo_objects
from models import publish, tiny
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from medusa import MedusaModel
from medusa.files import locked
from medusa.training import Recipe, Source, checks, hidden, train
from medusa.training.staged_model import StagedModel
from medusa.training.trainer import MedusaTrainer, NotFiniteError

SMALL = {
    "num_heads": 2,
    "batch_size": 4,
    "micro_batch_size": 2,
    "lr": 2e-3,
    "warmup_steps": 2,
    "evaluation_share": 0.2,
    "log_every": 1,
    "save_every": 2,
    "evaluate_every": 0,
}


def go(base_folder, chats, folder, merge=False, report_to="none", hidden_states=None, **options):
    said, source = [], Source(str(base_folder), str(chats))
    places = {"merge": merge, "report_to": report_to, "hidden_states": hidden_states}
    train(Recipe(**{**SMALL, **options}), source, folder, **places, say=said.append)
    return said


def logged(folder, stage="1-heads"):
    """Return the log of a stage, from its last checkpoint."""
    states = sorted(
        (folder / "stages" / stage).glob("checkpoint-*"),
        key=lambda each: int(each.name.split("-")[1]),
    )
    return json.loads((states[-1] / "trainer_state.json").read_text())["log_history"]


def weights(folder):
    return load_file(folder / "medusa_lm_head.safetensors")


def test_medusa_1_learns_and_leaves_a_folder_that_loads(base_folder, chats, tmp_path):
    said = go(base_folder, chats, tmp_path / "run", epochs=15, save_every=10)
    assert re.search(r"chats.jsonl: 24 examples, \d+ tokens to learn", said[0])
    model = MedusaModel.from_pretrained(tmp_path / "run", all_heads=True)
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.base.parameters(), plain.parameters(), strict=True)
    )
    report = json.loads((tmp_path / "run" / "training.json").read_text())
    metrics, before = report["metrics"], logged(tmp_path / "run")[0]
    assert metrics["eval_loss_head_1"] < 0.6 * before["eval_loss_head_1"]
    assert metrics["eval_perplexity_change"] == 0
    assert metrics["eval_acceleration_rate"] > before["eval_acceleration_rate"]
    assert report["recipe"]["method"] == "medusa-1"
    assert model.calibration.accuracies[0][0] == metrics["eval_head_1_top_1"]


def test_cached_hidden_states_give_the_same_run(base_folder, chats, tmp_path):
    for name, cached in (("one", False), ("other", True)):
        go(base_folder, chats, tmp_path / name, epochs=2, cache_hidden_states=cached)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "other")[name], tensor, rtol=1e-4, atol=1e-5)
    assert (
        len(list((tmp_path / "other" / "hidden-states").glob("*/index.json"))) == 2
    )  # training and evaluation


def test_runs_share_hidden_states(base_folder, chats, tmp_path, monkeypatch):
    computed = []
    original = hidden._compute
    monkeypatch.setattr(
        hidden, "_compute", lambda *given: computed.append(given) or original(*given)
    )
    for name, options in (
        ("one", {}),
        ("two", {"lr": 1e-3}),
        ("three", {"num_layers": 2}),
        ("alone", {"lr": 3e-3}),
    ):
        shared = None if name == "alone" else tmp_path / "shared"
        source = Source(str(base_folder), str(chats))
        recipe = Recipe(**{**SMALL, "epochs": 1, "cache_hidden_states": shared is None, **options})
        train(recipe, source, tmp_path / name, hidden_states=shared, say=lambda _: None)
        assert len(computed) == (4 if name == "alone" else 2)
    assert not (tmp_path / "two" / "hidden-states").exists()


@pytest.mark.parametrize("merge", [False, True])
def test_medusa_2_changes_the_backbone_by_an_adapter(base_folder, chats, tmp_path, merge):
    recipe = Recipe(
        **{**SMALL, "method": "medusa-2", "heads_epochs": 1, "epochs": 4, "lora_rank": 4}
    )
    train(recipe, Source(str(base_folder), str(chats)), tmp_path, merge=merge, say=lambda _: None)
    assert (tmp_path / "adapter").is_dir() != merge
    assert (tmp_path / "model").is_dir() == merge
    model = MedusaModel.from_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert not torch.allclose(model.base(ids).logits, plain(ids).logits, atol=1e-3)
    assert not model.base.config.tie_word_embeddings
    text = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(text, model.base.generate(ids, max_new_tokens=12, do_sample=False))
    model.save_pretrained(
        tmp_path / "again", base=str(base_folder) if not merge else str(tmp_path / "model")
    )
    again = MedusaModel.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        torch.testing.assert_close(again.base(ids).logits, model.base(ids).logits)


def test_stages_run_in_order_and_the_schedule_raises_lambda(
    base_folder, chats, tmp_path, monkeypatch
):
    seen = []
    original = MedusaTrainer._heads_weight

    def noted(self):
        model = self.training_model
        seen.append(
            (
                self.stage,
                original(self),
                model.backbone_learns,
                model.heads_learn,
            )
        )
        return seen[-1][1]

    monkeypatch.setattr(MedusaTrainer, "_heads_weight", noted)
    options = {
        "method": "medusa-2",
        "heads_epochs": 1,
        "backbone_epochs": 1,
        "epochs": 2,
        "lora_rank": 2,
    }
    go(
        base_folder,
        chats,
        tmp_path,
        lambda0=0.5,
        lambda0_schedule="sine",
        micro_batch_size=4,
        **options,
    )
    steps = 5  # 19 examples, 4 a step
    assert [each[0] for each in seen] == ["heads"] * steps + ["backbone"] * steps + [
        "both"
    ] * 2 * steps
    assert {each[2:] for each in seen[:steps]} == {(False, True)}
    assert {each[2:] for each in seen[steps : 2 * steps]} == {(True, False)}
    assert {each[2:] for each in seen[2 * steps :]} == {(True, True)}
    grown = [each[1] for each in seen[2 * steps :]]
    assert grown == sorted(grown)
    assert grown[0] < 0.1
    assert grown[-1] == pytest.approx(0.5)


def test_heads_and_backbone_have_their_own_learning_rates(
    base_folder, chats, tmp_path, monkeypatch
):
    groups = []
    original = MedusaTrainer.create_optimizer

    def noted(self, model=None):
        made = original(self, model)
        groups.append([(group["lr"], len(group["params"])) for group in made.param_groups])
        return made

    monkeypatch.setattr(MedusaTrainer, "create_optimizer", noted)
    go(base_folder, chats, tmp_path, method="medusa-2", epochs=1, lora_rank=2)
    assert [rate for rate, _ in groups[0]] == [2e-3, 8e-3]
    assert groups[0][1][1] == 3  # w1, b1, w2
    go(base_folder, chats, tmp_path / "direct", method="direct", epochs=1, lora_rank=0)
    assert [rate for rate, _ in groups[1]] == [2e-3, 2e-3]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_spares_norms(base_folder, chats, tmp_path, monkeypatch, decay):
    made = []
    original = MedusaTrainer.create_optimizer
    monkeypatch.setattr(
        MedusaTrainer,
        "create_optimizer",
        lambda self, model=None: made.append(original(self, model)) or made[-1],
    )
    go(base_folder, chats, tmp_path, method="direct", lora_rank=0, epochs=1, weight_decay=decay)
    decayed = {
        parameter.ndim
        for group in made[0].param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert {group["weight_decay"] for group in made[0].param_groups} == {0.0, decay}
    assert 1 not in decayed
    assert bool(decayed) == bool(decay)


def test_self_distillation_starts_at_no_divergence_and_stays_near(base_folder, chats, tmp_path):
    options = {
        "method": "medusa-2",
        "lora_rank": 4,
        "epochs": 3,
        "lora_dropout": 0.0,
        "lambda0": 0.01,
    }
    go(base_folder, chats, tmp_path / "kl", distill=True, **options)
    go(base_folder, chats, tmp_path / "ce", **options)
    first = next(line for line in logged(tmp_path / "kl", "1-both") if "loss_backbone" in line)
    assert first["loss_backbone"] == pytest.approx(0.0, abs=1e-5)
    change = {
        name: json.loads((tmp_path / name / "training.json").read_text())["metrics"][
            "eval_perplexity_change"
        ]
        for name in ("kl", "ce")
    }
    assert abs(change["kl"]) < 0.2 * abs(change["ce"])


def test_a_whole_backbone_is_trained_and_saved(base_folder, chats, tmp_path):
    go(base_folder, chats, tmp_path, method="medusa-2", epochs=2, lora_rank=0)
    model = MedusaModel.from_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    assert (tmp_path / "model" / "config.json").is_file()
    assert not torch.equal(model.base.model.norm.weight, plain.model.norm.weight)


def test_muon_takes_the_matrices_of_a_backbone_that_learns(
    base_folder, chats, tmp_path, monkeypatch
):
    made = []
    original = MedusaTrainer.create_optimizer
    monkeypatch.setattr(
        MedusaTrainer,
        "create_optimizer",
        lambda self, model=None: made.append(original(self, model)) or made[-1],
    )
    options = {
        "method": "medusa-2",
        "heads_epochs": 1,
        "epochs": 3,
        "lora_rank": 0,
        "micro_batch_size": 4,
    }
    go(base_folder, chats, tmp_path, optimizer="muon", **options)
    alone, both = made
    assert [len(group["params"]) for group in alone.param_groups] == [3]  # w1, b1, w2
    assert all(each.ndim == 2 for each in both.param_groups[0]["params"])
    lines = [line for line in logged(tmp_path, "2-both") if "loss_backbone" in line]
    assert lines[-1]["loss_backbone"] < lines[0]["loss_backbone"]
    assert [group["initial_lr"] for group in both.param_groups] == [2e-3, 2e-3, 8e-3]
    assert {group["lr"] for group in both.param_groups} == {0}  # the schedule's end


def test_muon_needs_whole_matrices(base_folder, chats, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        go(base_folder, chats, tmp_path, method="backbone", lora_rank=0, optimizer="muon")


def test_packed_rows_train(base_folder, chats, tmp_path):
    go(base_folder, chats, tmp_path, epochs=2, packing=True, max_length=64)
    assert logged(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2},
        {"epochs": 1.5, "batch_size": 3, "micro_batch_size": 1},
        {"epochs": 2, "packing": True, "max_length": 64, "micro_batch_size": 1},
        {"epochs": 2, "cache_hidden_states": True},
    ],
    ids=["rows", "part of an epoch", "packed", "kept"],
)
def test_the_plan_is_printed_before_the_backbone_is_loaded_and_is_correct(
    base_folder, chats, tmp_path, monkeypatch, options
):
    counts = []
    original = MedusaTrainer._get_num_items_in_batch

    def noted(self, *given):
        counts.append(original(self, *given))
        return counts[-1]

    monkeypatch.setattr(MedusaTrainer, "_get_num_items_in_batch", noted)
    said = go(base_folder, chats, tmp_path, **options)
    place, plan = next((place, line) for place, line in enumerate(said) if "plan:" in line)
    assert said.index(f"loading {base_folder}") > place
    steps, unit, tokens = re.search(
        r"plan: (\d+) steps of \d+ (\D+), about (\d+) learnt tokens a step", plan
    ).groups()
    assert unit == ("packed rows" if options.get("packing") else "examples")
    assert len(counts) == int(steps)
    epoch = counts[: round(int(steps) / options["epochs"])]
    assert int(tokens) == pytest.approx(float(sum(each[0] for each in epoch)) / len(epoch), abs=1)
    assert "rises to 8.0e-03 in 1 steps" in plan or "rises to 8.0e-03 in 2 steps" in plan
    assert "too few" in said[place + 1]


def test_heads_with_a_draft_vocabulary_train(base_folder, chats, tmp_path):
    said = go(base_folder, chats, tmp_path, epochs=15, save_every=0, draft_vocab_size=12)
    assert any("learn and propose 12 of" in line for line in said)
    before = load_file(base_folder / "model.safetensors")
    rows = before["lm_head.weight" if "lm_head.weight" in before else "model.embed_tokens.weight"]
    changed = (weights(tmp_path)["0.1.weight"] != rows).any(1)
    assert 0 < int(changed.sum()) < len(rows)
    metrics = json.loads((tmp_path / "training.json").read_text())["metrics"]
    assert metrics["eval_head_1_top_1"] > 0.5
    tokens = weights(tmp_path)["token_map"]
    assert len(tokens) == 12
    assert set(changed.nonzero().flatten().tolist()) <= set(tokens.tolist())


def test_a_folder_has_one_writer(base_folder, chats, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another process is writing to"):
        go(base_folder, chats, tmp_path / "run", epochs=1)
    go(base_folder, chats, tmp_path / "run", epochs=1)


@pytest.mark.parametrize(
    "text", ["", '{"recipe": {"met', "[]", '{"recipe": {}, "model": 1, "data": "x"}']
)
def test_a_damaged_manifest_is_named_and_unchanged(base_folder, chats, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"run\.json: .*take another --output, or delete the folder"
    ):
        go(base_folder, chats, tmp_path / "run", epochs=1)
    assert (tmp_path / "run" / "run.json").read_text() == text


@pytest.mark.parametrize("broken", ["save", "evaluation"])
@pytest.mark.parametrize("method", ["medusa-1", "medusa-2"])
def test_a_run_that_fails_after_its_last_step_loses_nothing(
    base_folder, chats, tmp_path, monkeypatch, broken, method
):
    options = {"method": method, "epochs": 1, "save_every": 0, "log_every": 2}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("medusa.training.run.save", full) if broken == "save" else context.setattr(
            MedusaTrainer, "last_evaluation", full
        )
        with pytest.raises(OSError, match="No space"):
            go(base_folder, chats, tmp_path / "run", **options)
    with monkeypatch.context() as context:
        context.setattr(MedusaTrainer, "train_from_checkpoint", full)
        go(base_folder, chats, tmp_path / "run", **options)
    go(base_folder, chats, tmp_path / "whole", **options)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "run")[name], tensor)
    metrics = [
        json.loads((tmp_path / name / "training.json").read_text())["metrics"]
        for name in ("run", "whole")
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("damage", [b"", b"\x20\0\0\0\0\0\0\0{"])
def test_a_damaged_checkpoint_is_named(base_folder, chats, tmp_path, damage):
    go(base_folder, chats, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "training.json").unlink()
    (tmp_path / "run" / "stages" / "1-heads" / "end" / "learnt.safetensors").write_bytes(damage)
    with pytest.raises(ValueError, match=r"1-heads/end is damaged .*delete it"):
        go(base_folder, chats, tmp_path / "run", epochs=1)


def test_a_folder_holds_one_run(base_folder, chats, tmp_path):
    go(base_folder, chats, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="a run with other lr"):
        go(base_folder, chats, tmp_path / "run", epochs=1, lr=1e-3)
    other = tmp_path / "other.jsonl"
    other.write_text(chats.read_text().replace("count", "say"))
    with pytest.raises(ValueError, match="a run with other data"):
        go(base_folder, other, tmp_path / "run", epochs=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        go(base_folder, chats, tmp_path / "full", epochs=1)


def test_a_run_that_cannot_begin_writes_nothing(base_folder, chats, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "get_available_reporting_integrations", list)
    monkeypatch.setattr(StagedModel, "load", None)  # nothing is loaded
    out = tmp_path / "out"
    for options, said in (
        ({"batch_size": 5}, "no multiple"),
        ({"optimizer": "adamwx"}, "adamwx"),
        ({"merge": True}, "merge is for a backbone that learns"),
        ({"report_to": "smoke-signals"}, "report_to must be one of none, all, .*tensorboard"),
        ({"report_to": "tensorboard"}, "report_to tensorboard needs its package"),
        ({"optimizer": "apollo_adamw"}, "(?i)apollo"),
        ({"hidden_states": chats / "states"}, "cannot be written to .*--hidden-states"),
        (
            {"hidden_states": tmp_path, "method": "medusa-2"},
            "cache_hidden_states has no effect with method medusa-2",
        ),
    ):
        with pytest.raises((ValueError, ImportError), match=said):
            go(base_folder, chats, out, **options)
    with pytest.raises(ValueError, match="cannot be written to"):
        go(base_folder, chats, chats / "out")
    with pytest.raises(FileNotFoundError, match=r"no folder \./nowhere"):
        go("./nowhere", chats, out)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        go(base_folder, chats, out)


def test_a_finished_run_is_not_repeated(base_folder, chats, tmp_path):
    said = go(base_folder, chats, str(tmp_path), epochs=1, evaluation_share=0)
    assert "nothing is held out" in said[1]
    tree = tmp_path / "medusa_tree.json"
    tree.write_text("calibrated")
    said = go(base_folder, chats, str(tmp_path), epochs=1, evaluation_share=0)
    assert "finished: nothing is left to do" in said[-1]
    assert tree.read_text() == "calibrated"


def test_an_adapter_can_be_merged_afterwards(base_folder, chats, tmp_path):
    options = {"method": "medusa-2", "epochs": 1, "lora_rank": 2}
    go(base_folder, chats, tmp_path, **options)
    adapted = MedusaModel.from_pretrained(tmp_path).base(torch.arange(5, 25)[None]).logits
    go(base_folder, chats, tmp_path, merge=True, **options)
    assert (tmp_path / "model").is_dir()
    assert not (tmp_path / "adapter").exists()
    torch.testing.assert_close(
        MedusaModel.from_pretrained(tmp_path).base(torch.arange(5, 25)[None]).logits, adapted
    )


def test_training_continues_from_heads(base_folder, chats, tmp_path):
    go(base_folder, chats, tmp_path / "one", epochs=1)
    train(
        Recipe(**SMALL, epochs=1),
        Source(str(tmp_path / "one"), str(chats)),
        tmp_path / "two",
        say=lambda _: None,
    )
    first = next(line for line in logged(tmp_path / "two") if "eval_loss_head_1" in line)
    last = json.loads((tmp_path / "one" / "training.json").read_text())["metrics"]
    assert first["eval_loss_head_1"] == pytest.approx(last["eval_loss_head_1"], rel=1e-3)
    with pytest.raises(ValueError, match="num_heads is 3"):
        train(
            Recipe(**{**SMALL, "num_heads": 3}),
            Source(str(tmp_path / "one"), str(chats)),
            tmp_path / "three",
            say=print,
        )


def test_training_continues_from_heads_on_the_hub(base_folder, chats, tmp_path):
    cache = tmp_path / "hub"
    go(base_folder, chats, tmp_path / "one", epochs=1)
    MedusaModel.from_pretrained(tmp_path / "one", all_heads=True).save_pretrained(
        tmp_path / "two", base="owner/base"
    )
    publish(base_folder, cache, "owner/base")
    publish(tmp_path / "two", cache, "owner/heads")
    source = Source(
        "owner/heads", str(chats), loading={"cache_dir": cache, "local_files_only": True}
    )
    train(Recipe(**SMALL, epochs=1), source, tmp_path / "three", say=lambda _: None)
    first = next(line for line in logged(tmp_path / "three") if "eval_loss_head_1" in line)
    last = json.loads((tmp_path / "one" / "training.json").read_text())["metrics"]
    assert first["eval_loss_head_1"] == pytest.approx(last["eval_loss_head_1"], rel=1e-3)
    assert (
        json.loads((tmp_path / "three" / "config.json").read_text())["base_model_name_or_path"]
        == "owner/base"
    )


def test_the_error_of_a_loss_that_is_not_finite_names_step_head_and_batch(
    base_folder, chats, tmp_path, monkeypatch
):
    original = MedusaTrainer.compute_loss

    def broken(self, model, inputs, **options):
        if self.model.training and self.state.global_step == 3:
            with torch.no_grad():
                self.training_model.heads.b1[0][1] = float("nan")
        return original(self, model, inputs, **options)

    monkeypatch.setattr(MedusaTrainer, "compute_loss", broken)
    with pytest.raises(
        NotFiniteError,
        match=r"step 4: the loss of head 2 is not finite, in the batch of examples \d+",
    ):
        go(base_folder, chats, tmp_path, epochs=2)
    assert (tmp_path / "stages" / "1-heads" / "checkpoint-2").is_dir()
    kept = load_file(tmp_path / "stages" / "1-heads" / "checkpoint-2" / "learnt.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


COMMAND = """
import json, pathlib, sys
from accelerate import PartialState
from medusa.training import Recipe, Source, train
recipe, model, data, folder = sys.argv[1:]
train(Recipe(**json.loads(recipe)), Source(model, data), pathlib.Path(folder))
(pathlib.Path(folder) / "processes").write_text(str(PartialState().num_processes))
PartialState().destroy_process_group()
"""


def command(base_folder, chats, folder, options):
    arguments = json.dumps({**SMALL, **options}), str(base_folder), str(chats), str(folder)
    return [sys.executable, "-c", COMMAND, *arguments]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"lora_rank": 4}, {"lora_rank": 0, "optimizer": "muon"}], ids=["adapter", "muon"]
)
def test_a_killed_and_resumed_run_ends_like_an_undisturbed_one(base_folder, chats, tmp_path, how):
    options = {"method": "medusa-2", "heads_epochs": 2, "epochs": 3, "save_every": 3, **how}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    go(base_folder, chats, whole, **options)
    kills = 0
    for after in (
        "1-heads/checkpoint-3",
        "1-heads/unfinished",
        "2-both",
        "2-both/checkpoint-6",
        None,
    ):
        running = subprocess.Popen(
            command(base_folder, chats, broken, options),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while running.poll() is None and (
            after is None or not (broken / "stages" / after).exists()
        ):
            time.sleep(0.001)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.wait()
    assert kills >= 3
    assert running.returncode == 0
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(broken)[name], tensor), name
    models = [
        AutoModelForCausalLM.from_pretrained(each / "model")
        for each in (whole, broken)
        if not how["lora_rank"]
    ]
    for mine, theirs in zip(*(each.parameters() for each in models), strict=True):
        assert torch.equal(mine, theirs)
    ends = [
        [line["loss"] for line in logged(folder, "2-both") if "loss" in line]
        for folder in (whole, broken)
    ]
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["run", "kept"])
def test_two_processes_have_the_loss_curve_of_one(base_folder, chats, tmp_path, kept):
    # With 20 examples all batches are full; accelerate would fill up a last one with examples from
    # the first.
    options = {"epochs": 2, "micro_batch_size": 2, "max_grad_norm": 0.5, "evaluation_share": 1 / 6}
    options["cache_hidden_states"] = kept
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    one, two = tmp_path / "one", tmp_path / "two"
    go(base_folder, chats, one, **options)
    script = tmp_path / "script.py"
    script.write_text(COMMAND)
    arguments = command(base_folder, chats, two, options)[3:]
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29517",
    ]
    completed = subprocess.run(
        [*launched, str(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert (two / "processes").read_text() == "2"
    curves = [[line["loss"] for line in logged(folder) if "loss" in line] for folder in (one, two)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="older versions do not resume sharded training on a CPU",
)
@pytest.mark.parametrize(
    ("engine", "stage", "options"),
    [
        ("fsdp2", "1-heads", {}),
        ("fsdp2", "1-both", {"method": "medusa-2", "lora_rank": 4, "lora_dropout": 0}),
        ("fsdp2", "1-both", {"method": "medusa-2", "lora_rank": 0}),
        ("zero3", "1-heads", {}),
    ],
    ids=["heads", "adapter", "whole", "heads by ZeRO-3"],
)
def test_a_sharded_model_trains_like_a_whole_one(
    base_folder, chats, tmp_path, engine, stage, options
):
    if engine == "zero3":
        pytest.importorskip("deepspeed")
    options |= {"epochs": 2, "micro_batch_size": 2, "evaluation_share": 1 / 6, "save_every": 3}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    one, two = tmp_path / "one", tmp_path / "two"
    go(base_folder, chats, one, **options)
    script = tmp_path / "script.py"
    script.write_text(COMMAND)
    launched = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"configs/{engine}.yaml",
    ]
    launched += [] if engine == "zero3" else ["--mixed_precision", "no"]
    launched += ["--num_processes", "2", "--main_process_port", "29519", str(script)]

    def spread():
        completed = subprocess.run(
            [*launched, *command(base_folder, chats, two, options)[3:]],
            check=False, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2],  # noqa: E501
        )  # fmt: skip
        assert completed.returncode == 0, completed.stderr[-3000:]
        assert (two / "processes").read_text() == "2"
        return [line["loss"] for line in logged(two, stage) if "loss" in line]

    curve = [line["loss"] for line in logged(one, stage) if "loss" in line]
    assert spread() == pytest.approx(curve, rel=1e-3)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-2, atol=1e-3)

    # Resume from the last checkpoint but one.
    (two / "training.json").unlink()
    (two / "stages" / stage / "end" / "state.json").unlink()
    last = max(
        (two / "stages" / stage).glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1])
    )
    shutil.rmtree(last)
    assert spread() == pytest.approx(curve, rel=1e-3)

    # Resume when everything is trained, but the output folder is not written.
    for name in ("training.json", "medusa_lm_head.safetensors"):
        (two / name).unlink()
    spread()
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-2, atol=1e-3)


def test_a_backbone_sharded_by_zero3_cannot_be_trained(base_folder, chats, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa.training.trainer.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3 spreads a backbone that is frozen"):
        go(base_folder, chats, tmp_path / "run", method="medusa-2", lora_rank=4)


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_a_trained_backbone_is_loaded_from_the_hub(base_folder, chats, tmp_path, merge):
    cache, folder, published = tmp_path / "hub", tmp_path / "run", tmp_path / "published"
    go(base_folder, chats, folder, method="medusa-2", lora_rank=4, merge=merge)
    shutil.copytree(folder, published, ignore=shutil.ignore_patterns("stages", "run.json"))
    if not merge:  # the published adapter names its base by a hub id
        MedusaModel.from_pretrained(folder, all_heads=True).save_pretrained(
            published, base="owner/base"
        )
        publish(base_folder, cache, "owner/base")
    publish(published, cache, "owner/heads")
    files = [str(file.relative_to(published)) for file in published.rglob("*") if file.is_file()]
    here = MedusaModel.from_pretrained(folder)
    with patch("medusa.formats.names.snapshot_download", wraps=snapshot_download) as downloads:
        there = MedusaModel.from_pretrained("owner/heads", cache_dir=cache, local_files_only=True)
    asked = set(
        filter_repo_objects(files, allow_patterns=downloads.call_args.kwargs["allow_patterns"])
    )
    assert {file for file in files if file.endswith(".safetensors")} <= asked
    for mine, theirs in zip(here.base.parameters(), there.base.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    ids = torch.tensor([[1, 2, 3]])
    assert (
        here.generate(ids, max_new_tokens=6).tolist()
        == there.generate(ids, max_new_tokens=6).tolist()
    )


@pytest.fixture(scope="module")
def block_folder(tmp_path_factory, tokenizer):
    """A tiny Llama whose matrices consist of whole quantisation blocks."""
    folder = tmp_path_factory.mktemp("blocks")
    tiny(
        dtype=torch.float32, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibration of .* found no tree that pays")
@pytest.mark.parametrize(
    "name", ["vicuna-7b-medusa-1", "vicuna-7b-medusa-2", "zephyr-7b-self-distillation"]
)
def test_the_papers_recipes_run_as_they_are(block_folder, chats, tmp_path, name):
    options = Recipe.read(name)
    if options.get("bits"):
        pytest.importorskip("bitsandbytes")
    said = []
    train(
        Recipe(**options),
        Source(str(block_folder), str(chats), str(chats)),
        tmp_path / "run",
        say=said.append,
    )
    assert (tmp_path / "run" / "adapter").is_dir() == (options["method"] == "medusa-2"), said
    report = json.loads((tmp_path / "run" / "training.json").read_text())
    assert report["metrics"]["eval_loss_head_1"] < 10
    model = MedusaModel.from_pretrained(tmp_path / "run", dtype=torch.float32, all_heads=True)
    assert model.heads.config.num_heads == 5
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4).shape[1] <= 7


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "options", [{}, {"method": "medusa-2", "lora_rank": 4}], ids=["heads", "adapter"]
)
def test_heads_and_adapters_learn_on_a_quantised_backbone(
    block_folder, chats, tmp_path, bits, options
):
    pytest.importorskip("bitsandbytes")
    said = go(block_folder, chats, tmp_path / "run", bits=bits, epochs=4, **options)
    losses = [
        line["loss"]
        for line in logged(tmp_path / "run", "1-both" if options else "1-heads")
        if "loss" in line
    ]
    assert losses[-1] < 0.9 * losses[0], said
    model = MedusaModel.from_pretrained(tmp_path / "run", dtype=torch.float32)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4).shape[1] <= 7
