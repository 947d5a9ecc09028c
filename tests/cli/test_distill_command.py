import json
import re

import pytest
from rich.console import Console
from servers import body, reply, serving, status
from typer.testing import CliRunner

from medusa.cli import app
from medusa.cli import progress as progress_module
from medusa.files import locked
from medusa.training.distill import DistillProgress

runner = CliRunner()


@pytest.fixture
def go(folders, tmp_path):
    """Runs the command on two prompts; returns its exit code and what it says."""
    (tmp_path / "seeds.txt").write_text("one two\nthree four\n")

    def run(*options, prompts=tmp_path / "seeds.txt", output=tmp_path / "out.jsonl"):
        given = {"--prompts": prompts, "-o": output, "--max-new-tokens": 8, "--temperature": 0}
        named = [str(each) for pair in given.items() if pair[1] is not None for each in pair]
        result = runner.invoke(app, ["distill", str(folders / "heads"), *named, *options])
        assert "Traceback" not in result.stderr
        return result.exit_code, " ".join(result.stderr.split())

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_written_and_a_second_run_finds_them(go, tmp_path):
    code, said = go()
    assert code == 0
    assert "2 conversations in" in said
    assert (
        "2 of them end in an answer that was cut off (8 tokens or the model's positions), marked "
        '"cut"' in said
    )
    written = lines(tmp_path / "out.jsonl")
    assert [line["messages"][-1]["cut"] for line in written] == [True, True]
    code, said = go()
    assert (code, lines(tmp_path / "out.jsonl")) == (0, written)
    assert re.search(r"^2 conversations in", said)
    for option in (["--seed", "3"], ["--leave-out-cut"]):
        code, said = go(*option)
        assert code == 1
        assert "other settings" in said


def test_cut_answers_can_be_left_out(go, tmp_path):
    code, said = go("--leave-out-cut", "--seed", str(2**70))
    assert code == 0
    assert "0 conversations in" in said
    assert "2 left out, without an answer" in said
    assert {line["why"] for line in lines(tmp_path / "out.jsonl.left-out")} == {
        "answer 1 was cut off"
    }


def test_stop_strings_of_a_model_need_nothing_of_the_user(go, folders, tmp_path):
    file = folders / "base" / "generation_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "stop_strings": ["e"]}))
    try:
        assert go()[0] == 0
    finally:
        file.write_text(before)


@pytest.mark.parametrize("server", [[], ["--server", "http://127.0.0.1:9/v1"]])
@pytest.mark.parametrize(
    "problem", ["no prompts", "not UTF-8", "folder", "no folder", "held", "broken"]
)
def test_prompts_and_output_are_checked_before_anything_is_asked(
    go, tmp_path, monkeypatch, problem, server
):
    def unasked(*_, **__):
        raise AssertionError("it was asked")

    go()
    monkeypatch.setattr("medusa.cli.models.load", unasked)
    monkeypatch.setattr("medusa.training.server.ServerAnswerer.drive", unasked)
    output, bad = tmp_path / "out.jsonl", tmp_path / "bad.txt"
    bad.write_bytes(b"" if problem == "no prompts" else b"\xff")
    if problem in ("no prompts", "not UTF-8"):
        code, said = go(*server, prompts=bad)
        assert "bad.txt is empty" in said or "bad.txt is not UTF-8" in said
    elif problem == "folder":
        code, said = go(*server, output=tmp_path)
        assert "is not a file" in said
    elif problem == "no folder":
        code, said = go(*server, output=output / "below.jsonl")
        assert "out.jsonl" in said
    elif problem == "held":
        with locked(output):
            code, said = go(*server)
        assert "another process is writing to" in said
    else:
        output.write_text("{\n" + output.read_text())
        code, said = go(*server)
        assert "out.jsonl, line 1: not JSON" in said
    assert code == 1


def test_an_interrupt_says_what_is_kept(go, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("medusa.training.distill.distill", interrupted)
    code, said = go()
    assert code == 130
    assert re.search(r"stopped; 0 conversations in \S+out.jsonl\. The same command goes on", said)


@pytest.fixture
def many_ends(folders):
    """Lets the random model end its turns, which it would hardly do otherwise."""
    file = folders / "base" / "generation_config.json"
    before = file.read_text()
    ends = list(range(2, 298, 6))
    file.write_text(json.dumps({**json.loads(before), "eos_token_id": ends}))
    yield
    file.write_text(before)


@pytest.mark.usefixtures("many_ends")
def test_the_model_asks_itself_and_a_second_run_asks_nothing_again(go, tmp_path):
    assert go(prompts=None) == (
        1,
        "error: nothing to answer: pass --prompts, --self-prompts or both",
    )
    assert go("--limit", "3", "--self-prompts", "5", prompts=None)[0] == 1

    def run(count):
        code, said = go("--self-prompts", str(count), prompts=None)
        assert code == 0, said
        left_out = tmp_path / "out.jsonl.left-out"
        cut = lines(left_out) if left_out.exists() else []
        names = [line["id"] for line in lines(tmp_path / "out.jsonl") + cut]
        assert sorted(names) == sorted(f"self-prompt {number}" for number in range(count))
        questions = [line["messages"][0]["content"] for line in lines(tmp_path / "out.jsonl")]
        assert questions
        assert len(set(questions)) == len(questions)
        return (tmp_path / "out.jsonl").read_bytes()

    written = run(8)
    assert run(8) == written
    assert run(12).startswith(written)
    code, said = go("--self-prompts", "5", "--server", "http://127.0.0.1:9/v1", prompts=None)
    assert code == 1
    assert "a chat server does not" in said


def test_a_server_answers_in_place_of_a_model(go, tmp_path):
    def answer(request, _):
        refused = "three" in request["messages"][-1]["content"]
        return status(400, "too hot") if refused else body(reply("fine"))

    with serving(answer) as (address, _):
        code, said = go("--server", address)
    assert code == 1
    assert "too hot" in said
    assert "1 of 2 conversations were refused; the same command asks them again" in said
    (kept,) = lines(tmp_path / "out.jsonl")
    assert kept["messages"][-1]["content"] == "fine"


@pytest.mark.parametrize(
    ("progress", "seconds", "line"),
    [
        (DistillProgress(10), 0.0, "0/10 conversations"),
        (DistillProgress(10, earlier=4), 5.0, "4/10 conversations"),
        (
            DistillProgress(10, earlier=4, finished=2, tokens=300),
            60.0,
            "6/10 conversations, 5 tokens/s, 0:02:00 left",
        ),
        (
            DistillProgress(10, earlier=4, finished=1, tokens=300, refused=["x"]),
            60.0,
            "6/10 conversations, 5 tokens/s, 0:02:00 left, 1 refused",
        ),
    ],
)
def test_a_line_of_progress(progress, seconds, line):
    assert progress_module.status(progress, seconds) == line


def test_a_log_has_a_line_every_so_often(clock, capsys):
    with progress_module.watching(Console(stderr=True), 10) as watch:
        progress = DistillProgress(10, earlier=4)
        for clock.now in (0.0, 10.0, 25.0, 30.0, 50.0):
            progress.finished = int(clock.now) // 10
            if clock.now == 25.0:
                progress.finished = 2
                progress.refused.append("a: no")
            watch(progress)
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "refused: a: no",
        "7/10 conversations",
        "10/10 conversations",
        "10/10 conversations",
    ]


def test_a_terminal_has_a_bar(monkeypatch):
    console = Console(force_terminal=True, record=True, width=100)
    with progress_module.watching(console, 4) as watch:
        watch(DistillProgress(4, finished=4, tokens=9))
    assert "4/4 conversations" in console.export_text()
