"""Tables as text: cells separated by commas, semicolons, tabs or bars, as Excel, R and hospital systems write them."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..common.errors import UserError
from .columns import count_known

Row = tuple[str, list[str]]  # where the row starts, for messages; its cells
_DELIMITERS = ",;\t|"
_LOOKED_AT = 50  # rows from which the delimiter is found
_HEAD = 1 << 18  # characters that certainly hold them
_MAX_CELL = 1 << 24  # characters; the limit of Python's csv module is a report of 131 kB
_AS_TEXT = re.compile(r'="(.*)"', re.DOTALL)  # how exports keep Excel from turning 00123 into a number
_QUOTE_FIX = 'put a cell that holds a quote, a delimiter or a line break in quotes, and write its quotes twice'


def read_delimited(text: str, path: Path) -> list[Row]:
    """The rows of a table as text; the delimiter is recognised, line breaks within quotes belong to their cell.

    Args:
        text: Content of the file.
        path: Of the file, for messages; of a `.tsv` the delimiter is a tab.

    Returns:
        (line number, cells) of each row.

    Raises:
        UserError: Naming the line of a quote that is never closed or that closes too early.
    """
    if text.startswith("sep=") and len(text) > 4:  # Excel's own way to name the delimiter
        delimiter = text[4]
        text = text.partition("\n")[2]
        return list(_rows(text, path, delimiter, first_line=2))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    return list(_rows(text, path, delimiter))


def _rows(text: str, path: Path, delimiter: str, first_line: int = 1) -> Iterator[Row]:
    previous_limit = csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = first_line
    try:
        for cells in reader:
            yield str(line), [_cell(cell) for cell in cells]
            line = reader.line_num + first_line
    except csv.Error as error:
        raise UserError(f"{path}:{line}", f"its cells cannot be told apart ({error})", _QUOTE_FIX) from None
    finally:
        csv.field_size_limit(previous_limit)


def _cell(cell: str) -> str:
    as_text = _AS_TEXT.fullmatch(cell) if cell.startswith("=") else None
    return as_text[1] if as_text else cell


def _delimiter(text: str) -> str:
    """The delimiter that gives the most columns with known names; else rows of the most equal lengths."""
    head = text[:_HEAD]
    return max(_DELIMITERS, key=lambda delimiter: _score(head, delimiter))


def _score(head: str, delimiter: str) -> tuple[int, int, int]:
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    try:
        rows = [row for row in islice(reader, _LOOKED_AT) if row]
    except csv.Error:
        rows = []
    known = max((count_known(row) for row in rows), default=0)
    widths = Counter(len(row) for row in rows if len(row) > 1)
    width, num_rows = widths.most_common(1)[0] if widths else (0, 0)
    return known, num_rows, width
