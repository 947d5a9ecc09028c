import errno
import json

import pytest

from medusa.files import locked
from medusa.training import answers_file as module
from medusa.training.answers_file import answers_file
from medusa.training.conversations import FinishedConversation, GenerationSettings

SETTINGS = GenerationSettings("m", seed=2**70)
QUESTION = {"role": "user", "content": "?"}


def answered(text):
    return FinishedConversation([QUESTION, {"role": "assistant", "content": text}])


def write(path, *names, settings=SETTINGS):
    with answers_file(path, settings) as answers:
        for name in names:
            answers.append(name, answered(name))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "answers.jsonl"


def test_a_file_is_resumed_with_the_names_in_it(path):
    write(path, "a")
    with answers_file(path, SETTINGS) as answers:
        answers.append("b", FinishedConversation([QUESTION], "answer 1 was empty"))
        answers.append("é", answered("京"))
    with answers_file(path, SETTINGS) as answers:
        assert (answers.kept, answers.left_out) == ({"a", "é"}, {"b"})
        assert "b" in answers
        assert "c" not in answers
    left_out = path.with_name("answers.jsonl.left-out")
    assert json.loads(left_out.read_text()) == {"id": "b", "why": "answer 1 was empty"}


@pytest.mark.parametrize("end", ['{"id": "b", "mess', '{"id": "b"}', "\x00\x00"])
def test_an_unfinished_last_line_is_removed(path, end):
    write(path, "a")
    whole = path.read_text()
    path.write_text(whole + end)
    write(path)
    assert path.read_text() == whole


def test_an_unfinished_first_line_is_removed(path):
    write(path)
    path.write_text('{"id": "a", "mess')
    write(path, "a")
    assert len(path.read_text().splitlines()) == 1


def test_a_complete_last_line_without_its_line_break_is_kept(path):
    write(path, "a", "b")
    whole = path.read_text()
    path.write_text(whole[:-1])
    write(path)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "b", "mess',
        b"3",
        b'{"messages": []}',
        b'{"id": 3, "messages": []}',
        b'{"id": "b"}',
        b"\xff",
    ],
)
def test_a_broken_line_inside_the_file_is_named_and_nothing_is_lost(path, line):
    write(path, "a", "b", "c")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: .*delete the line"):
        write(path, "d")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"answers\.jsonl\.settings\.json: not JSON .*restore it"),
        ("[]", r"answers\.jsonl\.settings\.json: the whole file: .*restore it"),
        (
            '{"settings": {"model": 3}}',
            r"answers\.jsonl\.settings\.json: settings\.model: .*restore it",
        ),
        (None, r"answers\.jsonl is no file of medusa distill .*settings\.json is missing"),
    ],
)
def test_settings_that_cannot_be_read_are_named_and_nothing_is_lost(path, text, problem):
    write(path, "a")
    before = path.read_bytes()
    settings = path.with_name("answers.jsonl.settings.json")
    settings.unlink() if text is None else settings.write_text(text)
    with pytest.raises(ValueError, match=problem):
        write(path, "b")
    assert path.read_bytes() == before


def test_a_file_has_one_set_of_settings_unless_it_is_empty(path):
    write(path)
    other = GenerationSettings("m", seed=3, leave_out_cut=True)
    path.with_name("answers.jsonl.settings.json").write_text("")
    write(path, "a", settings=other)
    with pytest.raises(
        ValueError, match=r"other settings \(seed, leave_out_cut\): take another --output"
    ):
        write(path, "b")
    path.unlink()
    path.with_name("answers.jsonl.left-out").write_text(
        '{"id": "a", "why": "answer 1 was cut off"}\n'
    )
    with pytest.raises(ValueError, match="other settings"):  # who was left out depends on them, too
        write(path, "b")


def test_only_one_process_writes_a_file(path):
    with (
        locked(path),
        pytest.raises(ValueError, match=r"another process is writing to .*answers\.jsonl"),
    ):
        write(path, "a")
    assert not path.exists()


def test_paths_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not a file: give --output the name of a file"):
        write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "answers.jsonl")


def test_a_full_disk_keeps_finished_conversations_and_names_the_file(path, monkeypatch):
    class Full:
        """A file on a disk that has room for nine more bytes."""

        def __init__(self, file):
            self.file, self.room = file, 9
            self.fileno, self.truncate = file.fileno, file.truncate

        def write(self, line):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(line[: self.room])
            self.room -= written
            return written

    with answers_file(path, SETTINGS) as answers:
        answers.append("a", answered("a"))
        whole = path.read_bytes()
        monkeypatch.setattr(answers, "file", Full(answers.file))
        with pytest.raises(OSError, match=r"No space left on device: '.*answers\.jsonl'"):
            answers.append("b", answered("b"))
        assert path.read_bytes() == whole
        assert answers.kept == {"a"}


def test_a_full_disk_is_noticed_before_a_question_is_asked(path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.Path, "write_text", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*settings\.json'"),
        answers_file(path, SETTINGS),
    ):
        raise AssertionError("it was opened")


def test_a_text_that_is_not_unicode_is_refused_before_it_is_written(path):
    with answers_file(path, SETTINGS) as answers:
        with pytest.raises(UnicodeEncodeError):
            answers.append("a", answered("half a pair: \ud83d"))
        assert path.read_bytes() == b""
        assert "a" not in answers
