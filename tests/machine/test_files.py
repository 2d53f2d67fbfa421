"""Files that are whole or not there, and digests."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import (
    atomic_path,
    digest,
    digest_file,
    digest_folder,
    read_json,
    to_json,
    write_bytes,
    write_json,
    write_table,
    write_text,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
checked = settings(deadline=None, max_examples=60, derandomize=True)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_midway_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["file.txt"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert files_in(tmp_path) == []


def test_a_process_that_is_killed_midway_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    script = """
import os, signal, sys
from pathlib import Path
from tomoscout.machine.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode < 0
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert files_in(tmp_path) == ["file.txt"]


def test_what_cannot_be_json_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"score": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"score": float("nan")})
    assert read_json(path) == {"score": 1.0}


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_bytes(path, b"old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        reader = path.open("rb")
    assert path.read_bytes() == b"new"
    # Who has the old file open still reads the whole of it: the new one took its place, not its bytes.
    with reader:
        assert reader.read() == b"old"


@given(json_values)
@checked
def test_json_comes_back(value: object) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert to_json(json.loads(text)) == text


def test_equal_values_are_equal_text() -> None:
    assert to_json({"b": 1, "a": [1, 2]}) == to_json({"a": [1, 2], "b": 1})
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_digests_tell_values_apart() -> None:
    values = [None, 0, 1, 1.5, "1", "", [], [1], [[1]], {}, {"1": 1}, {"a": None}, b"", b"1", b"null\n1"]
    assert len({digest(value) for value in values}) == len(values)


def test_read_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(TomoscoutError, match=f"^{path}: no such file$"):
        read_json(path)
    for text in ('{"half": ', "[" * 100_000, "[1e999]", "[NaN]"):
        path.write_text(text)
        with pytest.raises(TomoscoutError, match=rf"^{path}: not valid JSON \("):
            read_json(path)
    path.write_bytes(b'{"score": "\xff"}')
    with pytest.raises(TomoscoutError, match=f"^{path}: text that is not UTF-8: byte 0xff at position 11"):
        read_json(path)


def test_tables(tmp_path: Path) -> None:
    rows = [{"name": 'a, "b"', "count": 1}, {"name": "c\td", "count": 2}]
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        write_table(tmp_path / name, ["name", "count"], rows)
        with (tmp_path / name).open(newline="") as handle:
            back = list(csv.DictReader(handle, delimiter=delimiter))
        assert back == [{key: str(value) for key, value in row.items()} for row in rows]
        assert b"\r" not in (tmp_path / name).read_bytes()


def test_file_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    content = bytes(range(256)) * 400
    path.write_bytes(content)
    assert digest_file(path) == digest(content)


def test_folder_digest_sees_content_names_and_places(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("1")
    (folder / "b").write_text("2")
    seen = [digest_folder(folder)]
    (folder / "b").write_text("3")
    seen.append(digest_folder(folder))
    (folder / "b").rename(folder / "c")
    seen.append(digest_folder(folder))
    (folder / "c").rename(folder / "deep" / "c")
    seen.append(digest_folder(folder))
    (folder / "deep" / "c").unlink()
    seen.append(digest_folder(folder))
    assert len(set(seen)) == len(seen)
    folder.rename(tmp_path / "elsewhere")
    assert digest_folder(tmp_path / "elsewhere") == seen[-1]
