"""Standard streams that are closed, broken, full, or in another encoding than UTF-8."""

import io
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medusa.cli import app
from medusa.cli.streams import as_text

SHORT = ["--max-new-tokens", "12"]


def unread():
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return io.FileIO(writer, "w")


def full():
    """A full disk."""
    return io.FileIO("/dev/full", "w")


def run(arguments, monkeypatch, *, encoding="utf-8", stdin=b"", raw=None, buffer=8192):
    """Run a command on streams of this encoding as Python opens them; returns status, stdout and
    stderr.
    """
    raw = raw or io.BytesIO()
    out = io.TextIOWrapper(
        io.BufferedWriter(raw, buffer), encoding, errors="strict", write_through=True
    )
    err = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict", write_through=True)
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding, errors="strict")
    )
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "argv", ["medusa", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app(prog_name="medusa")
    written = raw.getvalue() if isinstance(raw, io.BytesIO) else b""
    monkeypatch.undo()
    return ended.value.code, written.decode(encoding), err.buffer.getvalue().decode()


@pytest.fixture
def commands(folders, tmp_path):
    """Commands that read or write other characters than ASCII: arguments and standard input."""
    (tmp_path / "prompts.txt").write_text("one two\nnaïve café\nthree\n", encoding="utf-8")
    quick = [
        "--rounds",
        "3",
        "--context",
        "20",
        "--max-nodes",
        "4",
        *SHORT,
        "--output",
        tmp_path / "out",
    ]
    return {
        "help": (["--help"], b""),
        "show": (["tree", "show", folders / "heads"], b""),
        "generate": (["generate", folders / "heads", "--raw", *SHORT], "naïve 東京".encode()),
        "chat": (["chat", folders / "heads", "--system", "½", *SHORT], "naïve\n東京\n".encode()),
        "calibrate": (
            ["calibrate", folders / "heads", "--data", tmp_path / "prompts.txt", *quick],
            b"",
        ),
    }


@pytest.mark.parametrize("name", ["help", "show", "generate", "chat", "calibrate"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_a_terminal_lacks_stop_no_command(commands, monkeypatch, name, encoding):
    arguments, stdin = commands[name]
    status, out, err = run(arguments, monkeypatch, encoding=encoding, stdin=stdin)
    assert status == 0, err
    assert out.strip()
    if name == "show":
        assert "100.0%  ####" in out
    if name == "calibrate":
        assert "?" not in out


@pytest.mark.parametrize("name", ["help", "show", "generate", "chat", "calibrate"])
@pytest.mark.parametrize("buffer", [1, 8192])  # what fails is a write, or only the flush at the end
@pytest.mark.parametrize(("place", "said"), [(unread, ""), (full, "No space left on device")])
def test_output_that_cannot_be_written_ends_in_one_line_at_most(
    commands, monkeypatch, name, place, said, buffer
):
    arguments, stdin = commands[name]
    status, _, err = run(arguments, monkeypatch, stdin=stdin, raw=place(), buffer=buffer)
    assert status == 1
    lines = [line for line in err.splitlines() if "error" in line.lower()]
    assert len(lines) == bool(said), err
    assert all(said in line for line in lines)
    assert "Traceback" not in err


def test_a_calibration_is_kept_that_nobody_reads(commands, monkeypatch, tmp_path):
    run(commands["calibrate"][0], monkeypatch, raw=unread())
    assert (tmp_path / "out" / "medusa_tree.json").is_file()


def test_closed_streams_are_empty_or_silent():
    """And files opened afterwards do not get their numbers."""
    script = (
        "import sys; from medusa.cli.streams import prepare; prepare(); print('a'); print('b', "
        "file=sys.stderr)\n"
        f"with open({str(__file__)!r}) as file: sys.exit(42 if file.fileno() > 2 and "
        "sys.stdin.read() == '' else 1)"
    )
    shell = f'exec "{sys.executable}" -c "$SCRIPT" <&- >&- 2>&-'
    assert (
        subprocess.run(
            ["sh", "-c", shell], env={**os.environ, "SCRIPT": script}, check=False
        ).returncode
        == 42
    )


def test_closed_streams_are_an_empty_prompt_and_no_output(folders, monkeypatch):
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for options, status in ([], 1), (["--prompt", "one", *SHORT], 0):
        with pytest.raises(SystemExit) as ended:
            app(["generate", str(folders / "heads"), *options])
        assert ended.value.code == status
    said = sys.stderr.getvalue()
    assert said == "error: the prompt is empty: pass --prompt, --file or text on standard input\n"


@pytest.mark.parametrize("content", [b"na\xefve", b"\xff\xfeo\x00n\x00e\x00"])
@pytest.mark.parametrize("place", ["file", "stdin", "--prompt", "--system"])
def test_text_that_is_not_utf8_is_named(folders, tmp_path, content, place):
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    given = {
        "file": ["generate", str(folders / "heads"), "--file", str(file)],
        "stdin": ["generate", str(folders / "heads")],
        "--prompt": [
            "generate",
            str(folders / "heads"),
            "--prompt",
            content.decode("utf-8", "surrogateescape"),
        ],
        "--system": [
            "chat",
            str(folders / "heads"),
            "--system",
            content.decode("utf-8", "surrogateescape"),
        ],
    }
    result = CliRunner().invoke(app, given[place], input=content)
    assert result.exit_code == 1
    named = {"file": str(file), "stdin": "standard input"}.get(place, place)
    assert result.stderr.startswith(f"error: {named} is not UTF-8 text")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("place", ["file", "stdin"])
def test_a_byte_order_mark_is_no_part_of_the_prompt(folders, tmp_path, reference, place):
    content = "\N{BYTE ORDER MARK}one two\n".encode()
    (tmp_path / "prompt.txt").write_bytes(content)
    options = {"file": ["--file", str(tmp_path / "prompt.txt")], "stdin": []}[place]
    result = CliRunner().invoke(
        app, ["generate", str(folders / "heads"), "--raw", *options, *SHORT], input=content
    )
    assert result.stdout == reference("one two", 12) + "\n"


def test_arguments_are_read_as_utf8_in_an_ascii_locale():
    assert as_text("naïve".encode().decode("ascii", "surrogateescape"), "--prompt") == "naïve"
    with pytest.raises(ValueError, match="--prompt is not UTF-8"):
        as_text("\ud800", "--prompt")
