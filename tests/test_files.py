import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from medusa.files import (
    Schema,
    check_writable,
    locked,
    read_json,
    replacing,
    replacing_all,
    write_json,
)


class Shape(Schema):
    name: str
    sizes: list[list[int]] = Field(default_factory=list)
    share: float = 0.5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ('{"name": "a"', "not JSON"),
        ("[]", "the whole file: input should be an object"),
        ("null", "the whole file: input should be an object"),
        ("3", "the whole file: input should be an object"),
        ("{}", "name: field required"),
        ('{"name": 3}', "name: input should be a valid string"),
        ('{"name": "a", "sizes": [[0, 0.7]]}', r"sizes\[0\]\[1\]: input should be a valid integer"),
        ('{"name": "a", "sizes": [[true]]}', r"sizes\[0\]\[0\]: input should be a valid integer"),
        ('{"name": "a", "sizes": [["0"]]}', r"sizes\[0\]\[0\]: input should be a valid integer"),
        ('{"name": "a", "sizes": null}', "sizes: input should be a valid array"),
        ('{"name": "a", "share": NaN}', "share: input should be a finite number"),
    ],
)
def test_the_error_names_the_file_and_the_field(tmp_path, text, problem):
    file = tmp_path / "shape.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"shape.json: .*{problem}"):
        read_json(file, Shape)


def test_the_error_names_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "shape.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValueError, match=r"shape\.json: not JSON"):
        read_json(tmp_path / "shape.json", Shape)


def test_written_json_reads_back_unchanged(tmp_path):
    file = tmp_path / "shape.json"
    write_json(file, {"name": "ä", "sizes": [[1], []]})
    assert read_json(file, Shape) == Shape(name="ä", sizes=[[1], []])
    assert [file.name for file in tmp_path.iterdir()] == ["shape.json"]


def test_a_failed_write_keeps_the_previous_file(tmp_path):
    file = tmp_path / "shape.json"
    file.write_text("good")

    def fill_the_disk():
        with replacing(file) as beside:
            beside.write_text("hal")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_the_disk()
    with pytest.raises(TypeError):
        write_json(file, {"name": object()})
    assert file.read_text() == "good"
    assert [file.name for file in tmp_path.iterdir()] == ["shape.json"]


def test_the_target_of_a_link_is_replaced_and_the_link_is_kept(tmp_path):
    (tmp_path / "shape.json").symlink_to("elsewhere.json")
    for content in (1, 2):
        write_json(tmp_path / "shape.json", content)
        assert (tmp_path / "elsewhere.json").read_text() == f"{content}\n"
    assert (tmp_path / "shape.json").is_symlink()


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_writable(tmp_path / "pipe")
    write_json(tmp_path / "pipe", 1)
    assert os.read(reader, 9) == b"1\n"
    assert (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_check_writable_names_a_file_that_cannot_be_written(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "shape.json")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "shape.json", Path("/proc/shape.json")):
        with pytest.raises(OSError, match=f"^{place} "):
            check_writable(place)


def test_permissions_of_a_replaced_file_are_kept_and_new_ones_are_default(tmp_path):
    plain, file = tmp_path / "plain", tmp_path / "shape.json"
    plain.touch()
    write_json(file, 1)
    assert file.stat().st_mode == plain.stat().st_mode
    os.chmod(file, 0o640)
    write_json(file, 2)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path):
    hold = "import sys; from medusa.files import locked\nwith locked(__import__('pathlib').Path(sys.argv[1])):"  # noqa: E501
    place = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}\n print('held', flush=True); sys.stdin.read()", str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is writing to"), locked(place):
            pass
        with locked(place, waiting=other.kill):  # waits until the other has ended
            pass
    with locked(place):
        pass


def test_files_of_a_folder_are_replaced_all_or_none(tmp_path, monkeypatch):
    """Whichever move fails, readers find the previous files."""
    place = tmp_path / "heads"

    def save(text):
        with replacing_all(place, last=("config",)) as new:
            for name in ("a", "b", "config"):
                (new / name).write_text(text)
            (new / "adapter").mkdir()
            (new / "adapter" / "weights").write_text(text)

    def content():
        return {
            str(each.relative_to(place)): each.read_text()
            for each in sorted(place.rglob("*"))
            if each.is_file()
        }

    save("one")
    (place / "mine").write_text("stays")
    before = content()
    assert before == {
        "a": "one",
        "adapter/weights": "one",
        "b": "one",
        "config": "one",
        "mine": "stays",
    }
    move, moved = Path.replace, []

    def fail_at(number):
        def counted(self, target):
            if len(moved) == number:
                raise OSError("disk full")
            moved.append(Path(target).name)
            return move(self, target)

        moved.clear()
        monkeypatch.setattr(Path, "replace", counted)

    for number in range(4):
        fail_at(number)
        with pytest.raises(OSError, match="disk full"):
            save("two")
        assert content() == before
        assert "config" not in moved
    fail_at(4)
    save("two")
    assert moved[-1] == "config"
    assert content() == {**dict.fromkeys(before, "two"), "mine": "stays"}
