"""Tables of classes for a terminal: names shortened, letters of any width, numbers below each other."""
from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from lesa_nb.data.report import printable

_LONGEST = 40  # letters of a name


def cell_text(name: str) -> str:
    """A name as it fits into a table, on one line."""
    name = printable(name)
    return name if len(name) <= _LONGEST else name[:_LONGEST - 1] + "…"


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: wide letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def format_rows(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Rows of a table as lines: the columns in `left` flush left, the others flush right."""
    widths = [max(map(_width, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        gaps = [" "*(wide - _width(cell)) for cell, wide in zip(row, widths)]
        cells = [cell + gap if i in left else gap + cell for i, (cell, gap) in enumerate(zip(row, gaps))]
        lines.append("  ".join(cells).rstrip())
    return lines
