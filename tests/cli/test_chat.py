"""`medusa chat`: turns, commands, interrupts and conversations that outgrow the model."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from medusa.cli import app

LENGTH = 8


@pytest.fixture
def chat(folders):
    """Runs a conversation of these lines."""

    def run(*lines, options=(), model="heads"):
        arguments = ["chat", str(folders / model), "--max-new-tokens", str(LENGTH), *options]
        result = CliRunner().invoke(app, arguments, input="".join(f"{line}\n" for line in lines))
        assert result.exit_code == 0, result.stderr
        return result

    return run


@pytest.fixture
def conversation(reference):
    """The base model's own answers to these messages, as the conversation grows."""

    def run(*texts, system=None):
        messages = [] if system is None else [{"role": "system", "content": system}]
        for text in texts:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": reference(messages, LENGTH)})
        return messages

    return run


def answers(messages):
    return "".join(
        message["content"] + "\n" for message in messages if message["role"] == "assistant"
    )


@pytest.mark.parametrize("model", ["heads", "base"])
def test_two_turns(chat, conversation, model):
    assert chat("one", "", "two", model=model).stdout == answers(conversation("one", "two"))


def test_reset_and_undo(chat, conversation):
    one, two = answers(conversation("one")), answers(conversation("one", "two"))
    result = chat("/undo", "one", "/reset", "one", "two", "/undo", "two")
    assert result.stdout == one + two + two[len(one) :]
    assert result.stderr.splitlines() == [
        "there is no turn to drop",
        "the conversation is forgotten",
        "the last turn is dropped",
    ]


def test_system_and_save(chat, conversation, tmp_path):
    file = tmp_path / "saved.json"
    result = chat(
        "/system be kind",
        "one",
        f"/save {file}",
        "/system",
        f"/save {tmp_path}/none/saved.json",
        "/save",
    )
    expected = conversation("one", system="be kind")
    assert result.stdout == answers(expected)
    assert json.loads(file.read_text(encoding="utf-8")) == expected
    assert "1 turn saved in" in result.stderr
    assert result.stderr.count("error: ") == 2
    assert chat("one", options=["--system", "be kind"]).stdout == answers(expected)


def test_commands_that_say_something(chat):
    result = chat(
        "/what",
        "/help",
        "/stats perhaps",
        "/stats on",
        "one",
        "/stats off",
        "one",
        "/exit",
        "never",
    )
    lines = result.stderr.splitlines()
    assert (
        lines[0]
        == "unknown command /what: /help lists them; a space before it sends it as a message"
    )
    assert [
        line.split()[0] for line in lines[1:8]
    ] == "/help /reset /undo /system /stats /save /exit".split()
    assert lines[8] == "error: say /stats on or /stats off"
    assert lines[9].startswith("8 tokens, ")
    assert len(lines) == 10
    assert len(result.stdout.splitlines()) >= 2


def test_a_space_sends_a_slash(chat, conversation):
    assert chat(" /what").stdout == answers(conversation("/what"))


def test_an_interrupt_keeps_the_session_and_the_partial_answer(
    chat, reference, monkeypatch, tmp_path
):
    import medusa.cli.conversation as module

    whole, runs = module.stream_text, []

    def interrupted(session, tokenizer):
        runs.append(session)
        for number, piece in enumerate(whole(session, tokenizer)):
            if len(runs) == 1 and number == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(module, "stream_text", interrupted)
    monkeypatch.setattr(module, "in_terminal", lambda: True)
    file = tmp_path / "saved.json"
    result = chat("one", "two", f"/save {file}")
    messages = json.loads(file.read_text(encoding="utf-8"))
    first, second = (message["content"] for message in messages if message["role"] == "assistant")
    full = reference(messages[:1], LENGTH)
    assert full.startswith(first)
    assert first != full
    assert second == reference(messages[:3], LENGTH)
    assert result.stdout == f"> {first}\n> {second}\n> > "
    assert "\nstopped\n" in result.stderr


def test_an_interrupt_ends_a_piped_conversation(folders, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("medusa.cli.conversation.stream_text", interrupted)
    assert (
        CliRunner().invoke(app, ["chat", str(folders / "heads")], input="one\ntwo\n").exit_code
        == 130
    )


def test_a_line_that_is_not_utf8_is_named_and_the_conversation_goes_on(folders, conversation):
    lines = b"\xef\xbb\xbfone\n\xff\ntwo\n"
    result = CliRunner().invoke(
        app, ["chat", str(folders / "heads"), "--max-new-tokens", str(LENGTH)], input=lines
    )
    assert result.exit_code == 0
    assert result.stdout == answers(conversation("one", "two"))
    assert result.stderr.startswith("error: the line is not UTF-8 text")


def test_saving_that_fails_keeps_the_saved_conversation(chat, tmp_path, monkeypatch):
    file = tmp_path / "saved.json"
    chat("one", f"/save {file}")
    before = file.read_bytes()

    def full(self, *_, **__):
        self.write_bytes(b"[")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    result = chat("two", f"/save {file}")
    assert "No space left on device" in result.stderr
    assert file.read_bytes() == before


def test_the_oldest_turns_go_when_the_conversation_outgrows_the_model(chat, tmp_path):
    file = tmp_path / "saved.json"
    result = chat("x" * 50, "y" * 50, "z" * 40, f"/save {file}")
    assert "too long for the model: forgot the oldest 1 turn" in result.stderr
    assert "x" * 50 not in file.read_text(encoding="utf-8")
    assert "z" * 40 in file.read_text(encoding="utf-8")


def test_a_message_that_never_fits_is_taken_back(chat, conversation):
    result = chat("one", "x" * 200, "one")
    assert "error: the prompt has" in result.stderr
    assert result.stdout == answers(conversation("one")) + answers(conversation("one"))


def test_a_tokenizer_without_a_chat_template(folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    result = CliRunner().invoke(app, ["chat", str(tmp_path / "base")])
    assert result.exit_code == 1
    assert "no chat template: take a model made for chat, or use `medusa generate`" in result.stderr
