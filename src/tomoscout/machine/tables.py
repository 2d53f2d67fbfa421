"""Tables for a terminal.

tabulate and rich were tried instead of `aligned`, and rejected. tabulate takes 80 to 190 ms to import and 7 times as
long for 10,000 rows. rich takes 190 times as long, and wraps or truncates rows to the width of the terminal, which a
log does not have. Neither treats "–" (no value) as a number when it aligns a column.
"""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows of cells, the header first, as lines with two spaces between columns. Columns of numbers are aligned
    to the right, except the first column."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    to_the_right = [number > 0 and all(map(_is_number, column[1:])) for number, column in enumerate(columns)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "–"
    return True
