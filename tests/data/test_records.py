import json
import tracemalloc

import pytest

from medusa.data.records import read_records


def contents(source):
    return [(record.content, record.place) for record in read_records(str(source))]


def test_records_have_line_numbers_and_bad_lines_have_a_problem(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": \n"a line\\u2028break"\n', encoding="utf-8")
    one, bad, text = read_records(str(file))
    assert (one.content, one.place, one.problem) == ({"text": "one"}, "a.jsonl, line 1", "")
    assert bad.place == "a.jsonl, line 3"
    assert "not JSON" in bad.problem
    assert (text.content, text.place) == ("a line\u2028break", "a.jsonl, line 4")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_a_byte_order_mark_is_removed(tmp_path, name):
    (tmp_path / name).write_text("one" if name == "a.txt" else '"one"', encoding="utf-8-sig")
    assert [record.content for record in read_records(str(tmp_path / name))] == ["one"]


def test_an_unreadable_line_does_not_stop_the_reading(tmp_path):
    lines = [
        b'{"text": "one"}',
        b'{"text": "caf\xe9"}',
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"text": "two"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    records = list(read_records(str(tmp_path / "a.jsonl")))
    assert [record.content for record in records] == [
        {"text": "one"},
        None,
        None,
        None,
        {"text": "two"},
    ]
    assert "not UTF-8" in records[1].problem
    assert "nested too deeply" in records[2].problem
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ncaf\xe9\ntwo")
    records = list(read_records(str(tmp_path / "a.txt")))
    assert [record.content for record in records] == ["one", None, "two"]


def test_lines_are_read_one_at_a_time(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 100_000)
    records = read_records(str(tmp_path / "a.jsonl"))
    tracemalloc.start()
    next(records)
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


def test_files_of_a_folder_are_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{"n": 2}, {"n": 3}]))
    (tmp_path / "a.txt").write_text("first\n\nsecond\n")
    (tmp_path / "notes.md").write_text("no data")
    assert contents(tmp_path) == [
        ("first", "a.txt, line 1"),
        ("second", "a.txt, line 2"),
        ({"n": 2}, "b.json, record 1"),
        ({"n": 3}, "b.json, record 2"),
    ]


def test_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}]).to_parquet(
        str(tmp_path / "a.parquet")
    )
    assert contents(tmp_path / "a.parquet") == [
        ({"text": "one"}, "a.parquet, row 1"),
        ({"text": "two"}, "a.parquet, row 2"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.csv", b"x", ValueError, "not .csv"),
        ("a.json", b"{", ValueError, "not JSON"),
        ("a.jsonl", b"\xff\xfe", ValueError, "not UTF-8"),
        ("missing.jsonl", None, FileNotFoundError, "no file or folder"),
        ("a.txt", "line".encode("utf-16"), ValueError, "a.txt is not UTF-8"),
        ("b.json", b'"\xe9"', ValueError, "b.json is not UTF-8"),
        ("c.json", b"[" * 100_000, ValueError, "c.json: JSON that is nested too deeply"),
        ("empty.jsonl", b"\n\n", ValueError, "empty.jsonl is empty"),
        ("empty.json", b"[]", ValueError, "empty.json is empty"),
        ("empty.txt", b"", ValueError, "empty.txt is empty"),
        ("folder/", None, ValueError, "holds no file"),
    ],
)
def test_unreadable_sources_are_errors_of_one_line(tmp_path, name, content, error, said):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=said) as caught:
        list(read_records(str(path)))
    assert "\n" not in str(caught.value)


def test_a_folder_of_distilled_answers_is_read_without_their_settings(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "answers.jsonl.settings.json").write_text('{"settings": {"model": "demo"}}')
    assert [record.content for record in read_records(str(tmp_path))] == [{"text": "one"}]
