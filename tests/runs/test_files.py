import json
import os
import stat
import threading

import pytest

from sdft.runs.files import (
    remove_leftovers,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)


def test_text_comes_back_as_written_whatever_its_line_ends(tmp_path):
    target = tmp_path / "made" / "on the way" / "note.txt"
    write_text_atomically(target, "ü\r\n\n漢")
    assert target.read_bytes() == "ü\r\n\n漢".encode()


def test_json_comes_back_as_written_and_stays_readable(tmp_path):
    value = {"accuracy": {"Käse": None}, "rows": [1, 0.25, True]}
    write_json_atomically(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Käse" in text
    assert text.endswith("}\n")


def test_json_refuses_nan_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json_atomically(target, {"old": 1})
    with pytest.raises(ValueError, match=r"a\.json: .*write None for what was not measured"):
        write_json_atomically(target, {"new": float("nan")})
    assert json.loads(target.read_text()) == {"old": 1}


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_bytes_atomically(target, b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_target_with_the_longest_possible_name_can_be_written(tmp_path):
    target = tmp_path / ("n" * 255)
    write_text_atomically(target, "x")
    assert target.read_text() == "x"


def test_permissions_are_those_of_a_plain_open(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_bytes_atomically(tmp_path / "atomic", b"")
    plain, atomic = (stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "atomic"))
    assert atomic == plain


def test_a_reader_never_sees_half_a_file(tmp_path):
    target = tmp_path / "a.bin"
    versions = [bytes([letter]) * 200_000 for letter in b"abc"]
    write_bytes_atomically(target, versions[0])
    writers = [
        threading.Thread(target=lambda v=v: [write_bytes_atomically(target, v) for _ in range(10)])
        for v in versions
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert target.read_bytes() in versions
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path):
    for name in (
        ".a.tmp",
        "exports/.stage-1-x.tmp/model",
        "exports/stage-1/model",
        ".git",
        "b.tmp",
    ):
        write_text_atomically(tmp_path / name, "x")
    remove_leftovers(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"exports/stage-1/model", ".git", "b.tmp"}
