"""Cross-validation: the scores of all folds in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json, write_table
from tomoscout.machine.tables import aligned
from tomoscout.options.forms import checked
from tomoscout.options.sections import Fraction


class _Results(BaseModel):
    """The entries of `results.json` in a model folder that are read here."""

    classes: list[str]
    metric: str
    score: Fraction
    scores: dict[str, Fraction]


def summarise(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row per object, after a row `all` for the score that selected the models: the score of each fold, their mean,
    their spread (standard deviation, n − 1), and the number of folds whose validation runs hold the object.

    Raises:
        TomoscoutError: a fold has no results.
    """
    return _rows(read_results(folders))


def read_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of the trainings of several models whose scores are compared.

    Raises:
        TomoscoutError: a model has no results, or the models were selected by different scores.
    """
    results = []
    for folder in folders:
        path = folder / "results.json"
        found: dict[str, Any] = read_json(path)
        checked(_Results, found, path, "the results of a training")
        results.append(found)
    chosen_by = {result["metric"] for result in results}
    if len(chosen_by) > 1:
        where = folders[0].parent
        raise TomoscoutError(f"{where}: the models were chosen by different scores: {', '.join(sorted(chosen_by))}")
    return results


def _rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for result in results for name in result["classes"]))
    rows = [_row("all", [result["score"] for result in results])]
    return rows + [_row(name, [result["scores"].get(name) for result in results]) for name in names]


def _row(name: str, scores: Sequence[float | None]) -> dict[str, Any]:
    known = [score for score in scores if score is not None]
    return {
        "object": name,
        "mean": float(np.mean(known)) if known else None,
        "spread": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "folds": len(known),
        **{f"fold {number}": score for number, score in enumerate(scores)},
    }


def run_compare_folds(folders: Sequence[Path], output: Path) -> None:
    """Write the table to `output` (.csv) and to a .json file beside it, and print it.

    Raises:
        TomoscoutError: a fold has no results, or the models of the folds were selected by different scores.
    """
    results = read_results(folders)
    rows = _rows(results)
    write_table(output, list(rows[0]), rows)
    write_json(output.with_suffix(".json"), {"metric": results[0]["metric"], "rows": rows})
    print(format_summary(rows), end="")


def format_summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text for a terminal."""
    columns = list(rows[0])
    lines = aligned([columns, *([_cell(row[column]) for column in columns] for row in rows)])
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:], ""])


def _cell(value: object) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
