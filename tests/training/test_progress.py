import io
import sys

import pytest

from medusa.training.progress import progress


@pytest.mark.parametrize(
    ("total", "first"),
    [
        (20_000, "hidden states: 2,500 of 20,000 tokens, 100 a second, 0:02:55 left"),
        (None, "hidden states: 2,500 tokens, 100 a second"),
        (2_000_000, "hidden states: 250,000 of 2,000,000 tokens, 10,000 a second, 0:02:55 left"),
    ],
)
def test_a_long_phase_prints_lines_where_there_is_no_terminal(clock, total, first):
    said = []
    times = 100 if total == 2_000_000 else 1
    with progress("hidden states", total, "tokens", said.append) as advance:
        for clock.now in (5.0, 10.0, 25.0, 30.0, 40.0):
            advance(times * (500 if clock.now < 25 else 1500))
    assert said == [first, f"hidden states: {5_500 * times:,} tokens in 0:00:40"]


def test_short_and_hidden_phases_print_nothing(clock, capsys):
    said = []
    with progress("reading", 10, "records", said.append) as advance:
        advance(10)
    with progress("reading", 10, "records", said.append, shown=False) as advance:
        clock.now = 100.0
        advance(10)
    assert said == []
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_standard_error_by_default(clock, capsys):
    with progress("reading", None, "records") as advance:
        clock.now = 30.0
        advance(15)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading: 15 records, 0.5 a second",
        "reading: 15 records in 0:00:30",
    ]


def test_a_terminal_shows_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    said = []
    with progress("hidden states", 4, "tokens", said.append) as advance:
        advance(4)
    assert "hidden states" in terminal.getvalue()
    assert said == []


def test_a_caller_can_describe_the_progress(clock):
    printed = []

    def describe(done, seconds):
        return f"{done} of 9 after {seconds:g} s"

    with progress("answers", 9, "answers", printed.append, describe=describe) as advance:
        for clock.now in (10.0, 25.0, 50.0):
            advance(3)
    assert printed == ["6 of 9 after 25 s", "9 of 9 after 50 s", "9 of 9 after 50 s"]
