"""Files that are read back have the form that is expected of them, or are refused in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.options.forms import checked, read_entries, read_form


class Scores(BaseModel):
    score: float
    runs: list[str]


@dataclass(frozen=True)
class Trial:
    number: Annotated[int, Field(strict=True)]
    curve: dict[int, float]


def test_a_file_comes_back_as_its_form(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"score": 1, "runs": ["a"], "more": None})
    assert read_form(Scores, path, "scores") == Scores(score=1.0, runs=["a"])
    write_json(path, {"number": 3, "curve": {1: 0.5}})
    assert read_form(Trial, path, "a trial") == Trial(3, {1: 0.5})
    with pytest.raises(TomoscoutError, match=rf"^{path}: not scores \(score, runs missing\)$"):
        read_form(Scores, path, "scores")
    write_json(path, {"number": "3", "curve": {}})
    with pytest.raises(TomoscoutError, match=rf"^{path}: not a trial \(number: .* integer, found '3'\)$"):
        read_form(Trial, path, "a trial")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1], r"top level: .* dictionary .*, found \[1\]"),
        ({"score": 1}, "runs missing"),
        ({}, "score, runs missing"),
        ({"score": "high", "runs": []}, "score: .* number, found 'high'"),
        ({"score": True, "runs": []}, "score: .* number, found True"),
        ({"score": None, "runs": []}, "score: .* number, found None"),
        ({"score": 1, "runs": {}}, "runs: .* list, found {}"),
    ],
    ids=str,
)
def test_what_lacks_an_entry_is_named_with_what_is_wrong(tmp_path: Path, values: Any, reason: str) -> None:
    path = tmp_path / "file.json"
    write_json(path, values)
    with pytest.raises(TomoscoutError, match=rf"^{path}: not scores \({reason}\)$"):
        read_entries(path, "scores", score=float, runs=list)
    with pytest.raises(TomoscoutError, match=rf"^{path}: not scores \({reason}\)$"):
        checked(Scores, values, path, "scores")


def test_entries_may_be_more_and_come_back_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    values = {"score": 1, "runs": [], "more": {"a": [1]}}
    write_json(path, values)
    found = read_entries(path, "scores", score=float, runs=list)
    assert found == values
    assert isinstance(found["score"], int)


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError) as caught:
        checked(Scores, {"score": "x" * 500, "runs": []}, tmp_path, "scores")
    assert len(str(caught.value)) < 200 + len(str(tmp_path))
