"""The measurement of `medusa bench`, its records and its report."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from medusa import MedusaModel
from medusa.core.schedule import UNCALIBRATED, Calibration
from medusa.demo import heads_folder
from medusa.evaluation.bench import Bench, BenchSettings, calmest, stalled
from medusa.evaluation.bench_report import (
    ALL,
    context_group,
    interval,
    is_noisy,
    reached,
    report,
    token_times,
)
from medusa.evaluation.diagnosis import diagnosis, unaccepted
from medusa.evaluation.methods import Run
from medusa.evaluation.prompts import task_questions
from medusa.evaluation.records import QuestionRecord, RunRecord, TurnRecord, records_file
from medusa.evaluation.specs import method_of
from medusa.evaluation.suites import Question


@pytest.fixture(scope="module")
def demo():
    model = MedusaModel.from_pretrained(heads_folder(), dtype=torch.float32, all_heads=True)
    return model, AutoTokenizer.from_pretrained(base_folder())


def base_folder():
    config = json.loads((Path(heads_folder()) / "config.json").read_text())
    return Path(heads_folder()) / config["base_model_name_or_path"]


def bench_of(demo, names, **settings):
    methods = {name: method_of(name, demo[0], lambda: demo[0].base) for name in names}
    return Bench(*demo, methods, BenchSettings(max_new_tokens=24, **settings))


def user(text):
    return [{"role": "user", "content": text}]


def test_all_methods_answer_all_turns_and_continue_the_same_text(demo):
    question = Question("q", "c", user(task_questions(1)[0].messages[0]["content"]), ("Again.",))
    bench = bench_of(demo, ["plain", "medusa", "medusa,nodes=3"], rounds=2)
    record = bench.answer(question, 0)
    assert (record.question, record.category, len(record.turns)) == ("q", "c", 2)
    first, second = record.turns
    assert len(second.prompt) > len(first.prompt) + len(first.runs["plain"][0].ids)
    for turn in record.turns:
        assert list(turn.runs) == ["plain", "medusa", "medusa,nodes=3"]
        assert all(len(rounds) == 2 for rounds in turn.runs.values())
        plain = turn.runs["plain"][0]
        assert all(each.ids == plain.ids for rounds in turn.runs.values() for each in rounds)
        assert plain.accepted == [1] * plain.steps
        medusa = turn.runs["medusa"][0]
        assert sum(medusa.accepted) == len(medusa.ids) - 1
        assert len(medusa.step_seconds) == medusa.steps < plain.steps
        assert max(medusa.accepted) > 1
        assert medusa.drafting_steps > plain.drafting_steps == 0
        assert set(medusa.phases) == {"heads", "draft", "verify", "accept", "keep"}


def test_the_size_and_the_shape_of_the_tree_can_be_chosen(demo):
    methods = ["plain", "medusa,nodes=7", "medusa,dense=1x1", "medusa,dense=3x2"]
    turn = bench_of(demo, methods).answer(task_questions(1)[0], 0).turns[0]
    most = {name: max(rounds[0].accepted) for name, rounds in turn.runs.items()}
    assert all(turn.runs[name][0].ids == turn.runs["plain"][0].ids for name in methods)
    assert (most["plain"], most["medusa,dense=1x1"], most["medusa,dense=3x2"]) == (1, 3, 3)


def test_a_checker_judges_the_last_turn_of_each_method(demo):
    question = Question("q", "c", user("x"), ("y",), check=lambda text: bool(text.strip()))
    record = bench_of(demo, ["plain", "medusa"]).answer(question, 0)
    assert record.turns[0].right == {}
    assert set(record.turns[1].right) == {"plain", "medusa"}


def test_the_suite_s_temperature_comes_before_the_caller_s(demo):
    bench = bench_of(demo, ["plain"], temperature=0.9)
    assert bench.answer(Question("q", "c", user("x")), 0).turns[0].temperature == 0.9
    own = bench.answer(Question("q", "c", user("x"), temperature=0.0), 0).turns[0]
    assert own.temperature == 0


def test_sampled_answers_can_be_repeated(demo):
    bench = bench_of(demo, ["medusa,acceptance=rejection"], temperature=1.0)
    question = Question("q", "c", user("Write."))
    answers = [bench.answer(question, number).turns[0].runs for number in (3, 3, 4)]
    ids = [next(iter(each.values()))[0].ids for each in answers]
    assert ids[0] == ids[1] != ids[2]


def test_thresholds_and_greedy_acceptance_at_a_temperature(demo):
    names = [
        "medusa,acceptance=greedy",
        "medusa,acceptance=typical,epsilon=1,delta=0.999",
        "medusa,acceptance=typical,epsilon=0",
    ]
    bench = bench_of(demo, names, temperature=1.0)
    (turn,) = bench.answer(task_questions(1)[0], 0).turns
    greedy, strict, lax = (rounds[0] for rounds in turn.runs.values())
    plain = bench_of(demo, ["plain"]).answer(task_questions(1)[0], 0).turns[0].runs["plain"][0]
    assert greedy.ids == plain.ids
    assert lax.ids != plain.ids, "with epsilon 0 every possible token passes"
    assert len(strict.ids) == len(plain.ids)


def test_the_order_of_methods_rotates(demo):
    order = []

    def noted(name):
        def method(model, ids, arguments):
            order.append(name)
            return run_of()

        return method

    bench = Bench(*demo, {name: noted(name) for name in "abc"}, BenchSettings(rounds=2))
    record = bench.answer(Question("q", "c", user("x")), 4)
    assert "".join(order) == "bcacab"
    assert list(record.turns[0].runs) == ["a", "b", "c"]


def run_of(ids=(1, 2, 3), seconds=1.0, steps=(0.5, 0.5), **more):
    return Run(list(ids), len(steps), 0.1, seconds, tuple(steps), **more)


def test_a_run_with_a_stall_is_measured_again():
    calm, disturbed = run_of(steps=[0.01] * 100), run_of(steps=[0.01] * 99 + [0.9])
    assert not stalled(calm)
    assert stalled(disturbed)
    assert not stalled(run_of(steps=()))
    further = [disturbed, calm, calm]
    assert calmest(disturbed, lambda: further.pop(0)) is not None
    assert len(further) == 1, "two further runs, and none after one without a stall"


# --- methods by name


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fast", "there are plain, medusa, generate"),
        ("plain=3", "there are plain"),
        ("plain,nodes=3", "plain has no options, not nodes=3"),
        ("medusa,node=3", "medusa has nodes, dense, acceptance, epsilon, delta, not node=3"),
        ("medusa,nodes=many", "many is not a positive whole number"),
        ("medusa,dense=2x", "is not a positive whole number"),
        ("medusa,dense=2,nodes=3", "nodes and dense both choose a tree"),
        ("medusa,dense=1x1x1x1x1x1x1", "the tree is 7 deep but there are"),
        ("medusa,acceptance=fast", "acceptance is one of typical, rejection, greedy"),
        ("medusa,epsilon=0.1", "epsilon and delta are for acceptance=typical"),
        ("medusa,acceptance=typical,epsilon=2", "2 is not a number from 0 to 1"),
        ("draft", "draft needs a model"),
    ],
)
def test_a_wrong_method_is_explained(demo, spec, said):
    with pytest.raises(ValueError, match=said):
        method_of(spec, demo[0], lambda: demo[0].base)


def test_transformers_methods_run_the_backbone_that_is_loaded_for_them(demo, tmp_path):
    model, tokenizer = demo
    model.base.save_pretrained(tmp_path)
    backbone = type(model.base).from_pretrained(tmp_path)
    loaded = []

    def load():
        loaded.append(backbone)
        return backbone

    methods = {
        name: method_of(name, model, load)
        for name in ("plain", "generate", "prompt_lookup", f"draft={tmp_path},gamma=3")
    }
    assert len(loaded) == 3
    bench = Bench(model, tokenizer, methods, BenchSettings(max_new_tokens=12))
    (turn,) = bench.answer(task_questions(1)[0], 0).turns
    plain, generate, lookup, draft = (rounds[0] for rounds in turn.runs.values())
    assert plain.ids == generate.ids == lookup.ids == draft.ids
    assert generate.accepted == [1] * (len(plain.ids) - 1)
    # the draft is the model itself: each step accepts three tokens, and one more is its own
    assert draft.steps <= 3
    assert max(draft.accepted) == 4
    assert generate.drafting_steps is lookup.drafting_steps is draft.drafting_steps is None


# --- records


def record_of(question="a", category="c", temperature=0.0, **runs):
    recorded = {name: [RunRecord.of(run) for run in rounds] for name, rounds in runs.items()}
    turn = TurnRecord(
        prompt=[1] * 10, temperature=temperature, runs=recorded, right={}, measured_again=[]
    )
    return QuestionRecord(question=question, category=category, turns=[turn])


def test_records_are_kept_and_an_unfinished_line_is_dropped(tmp_path):
    path, settings = tmp_path / "new" / "a.jsonl", {"suite": "x", "methods": ("plain",)}
    with records_file(path, settings) as file:
        file.append(record_of("a", plain=[run_of()]))
    with path.open("ab") as opened:
        opened.write(b'{"question": "b"')
    with records_file(path, settings) as file:
        assert list(file.records) == ["a"]
        file.append(record_of("b", plain=[run_of()]))
    with records_file(path, settings) as file:
        assert list(file.records) == ["a", "b"]
        assert file.records["a"].turns[0].runs["plain"][0].run() == run_of()


def test_other_settings_and_broken_lines_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with records_file(path, {"seed": 0}):
        pass
    other = pytest.raises(ValueError, match=r"other settings \(seed\): take another")
    with other, records_file(path, {"seed": 1}):
        pass
    with path.open("a") as opened:
        opened.write('{"question": "b"}\n')
    broken = pytest.raises(ValueError, match="line 2: category: field required")
    with broken, records_file(path, {"seed": 0}):
        pass


# --- report


def test_totals_are_medians_of_ratios_so_that_one_stall_makes_no_figure():
    records = [
        record_of(
            str(number),
            plain=[run_of(range(21), 2.0, [0.1] * 20)],
            medusa=[run_of(range(21), 100.0 if number == 3 else 0.9, [0.09] * 10)],
        )
        for number in range(9)
    ]
    found = report(records)[ALL]
    assert found["medusa"]["speedup_over"]["plain"]["median"] == pytest.approx(2.1)
    assert found["medusa"]["tokens_per_second"] == pytest.approx(21)
    assert found["medusa"]["tokens_per_step"] == 2
    assert found["medusa"]["identical"] == found["medusa"]["greedy_turns"] == 9
    assert found["plain"]["step_ms"] == pytest.approx(100)


def test_the_speedup_of_equal_steps_is_the_acceleration_rate_by_the_overhead():
    def run(steps, step):
        return Run(list(range(21)), steps, 0.0, steps * step, (step,) * steps)

    found = report([record_of(plain=[run(20, 0.1)], medusa=[run(8, 0.125)])])[ALL]["medusa"]
    assert (found["tokens_per_step"], found["overhead"]) == (2.5, pytest.approx(1.25))
    speedup = found["speedup_over"]["plain"]["median"]
    assert speedup == pytest.approx(found["tokens_per_step"] / found["overhead"])


def test_figures_are_grouped_by_category_and_context():
    one = record_of("a", "x", plain=[run_of()])
    other = record_of("b", "y", temperature=0.7, plain=[run_of()])
    long = TurnRecord(**{**other.turns[0].model_dump(), "prompt": [1] * 3000})
    found = report([one, QuestionRecord(question="b", category="y", turns=[long])])
    assert list(found) == [ALL, "x", "y", "context up to 256", "context up to 4,096"]
    assert found["y"]["plain"]["greedy_turns"] == 0
    assert context_group(5000) == "context over 4,096"


def test_the_time_of_a_step_is_shared_by_its_tokens():
    run = run_of(range(7), 0.4, [0.1, 0.3], accepted=(1, 5))
    assert token_times([run]) == {"p50": pytest.approx(60), "p95": pytest.approx(60)}
    assert token_times([run_of(steps=())]) is None
    assert reached({1: 2, 2: 1, 4: 1}) == [0.5, 0.25, 0.25]


def test_a_wide_interval_is_noisy():
    assert interval([1.0] * 9) == (1.0, 1.0)
    low, high = interval([1.0, 1.1, 1.2, 3.0, 3.1, 3.2, 1.0])
    assert low < high
    assert is_noisy({"median": 1.2, "low": low, "high": high})
    assert not is_noisy({"median": 2.0, "low": 1.9, "high": 2.1})


# --- diagnosis


def slow_report():
    phases = {"heads": 0.2, "verify": 1.7, "accept": 0.1}
    return report(
        [
            record_of(
                name,
                name,
                plain=[run_of(range(21), 2.0, [0.1] * 20, phases={"verify": 2.0})],
                medusa=[
                    run_of(range(21), 2.0, [0.2] * steps, phases=phases, accepted=(2,) * steps)
                ],
            )
            for name, steps in (("easy", 10), ("hard", 16))
        ]
    )


def test_a_slow_run_is_explained():
    made = Calibration(UNCALIBRATED.accuracies, {1: 1.0}, {"device": "Z80"})
    said = " ".join(diagnosis(slow_report(), "medusa", "plain", made, "Z81"))
    assert "medusa is 1.00 times as fast as plain" in said
    assert "a step takes 2.00 plain steps" in said
    assert "in the phase verify; the tree has more nodes" in said
    assert "first head's token is accepted in 100%" in said
    assert "fewest tokens a step is hard (1.25)" in said
    assert "calibrated on another device (Z80), not on Z81" in said


def test_heads_without_a_calibration_and_other_answers_are_said():
    records = [
        record_of(plain=[run_of((1, 2, 3))], medusa=[run_of((1, 2, 4))]),
    ]
    said = " ".join(diagnosis(report(records), "medusa", "plain", UNCALIBRATED, "Z80"))
    assert "not calibrated here" in said
    assert "1 of 1 greedy answers differ from those of plain" in said


def run_that_drafts(accepted, drafting_steps=None):
    steps = [0.1] * len(accepted)
    return run_of(
        range(1 + sum(accepted)), steps=steps, accepted=accepted, drafting_steps=drafting_steps
    )


@pytest.mark.parametrize(
    ("name", "drafting", "said"),
    [
        ("medusa", 3, "medusa: no token of the heads was accepted, although 3 of 4 steps verified"),
        ("medusa,nodes=8", 4, "medusa,nodes=8: no token of the heads was accepted"),
        ("medusa", 0, "medusa decoded plainly in all 4 steps: no tree was tried"),
        ("draft=x,gamma=2", None, "no token of the draft model was accepted in 4 steps"),
        ("prompt_lookup_packed", None, "no token that was looked up in a prompt was accepted in 4"),
    ],
)
def test_candidates_that_are_never_accepted_are_said(name, drafting, said):
    useless, useful = (run_that_drafts(each, drafting) for each in ((1, 1, 1, 1), (1, 1, 2, 1)))
    found = report([record_of(**{name: [useless]})])
    assert said in unaccepted(found, name)
    assert unaccepted(report([record_of(**{name: [useful]})]), name) is None


@pytest.mark.parametrize("name", ["plain", "generate", "server=http://x"])
def test_methods_that_do_not_draft_have_nothing_to_accept(name):
    assert unaccepted(report([record_of(**{name: [run_that_drafts((1, 1))]})]), name) is None


def demo_with_noise():
    torch.manual_seed(0)
    model = MedusaModel.from_pretrained(heads_folder(), dtype=torch.float32, all_heads=True)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    return model, AutoTokenizer.from_pretrained(base_folder())


def test_wrong_heads_and_a_wrong_draft_are_noticed(tmp_path):
    """Heads and a draft of noise leave the text as it is, and no token of theirs is accepted."""
    model, tokenizer = demo_with_noise()
    noise = type(model.base)(model.base.config)
    noise.save_pretrained(tmp_path)
    names = ["plain", "medusa,nodes=8", "medusa", f"draft={tmp_path},gamma=2"]
    records = [bench_of((model, tokenizer), names).answer(task_questions(1)[0], 0)]
    found = report(records)
    assert all(own["identical"] == 1 for own in found[ALL].values())
    said = [unaccepted(found, name) for name in names]
    assert said[0] is None
    assert "no token of the heads was accepted" in said[1]
    assert "no token of the heads was accepted" in said[2]
    assert "no token of the draft model was accepted" in said[3]
