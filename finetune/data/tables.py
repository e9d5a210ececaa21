"""Tables of reports as hospitals export them: .xlsx, .csv, .tsv, .jsonl and JSON lists of records, as rows of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from .columns import count_known, list_columns
from .delimited import Row, read_delimited
from .json_text import parse_json
from .text_encoding import read_text
from .workbook import Sheet, read_workbook

TABLE_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
_WORKBOOKS = (".xlsx", ".xlsm", ".xls")
_JSON_LINES = (".jsonl", ".ndjson")
_RECORDS = "expected one object a line, such as {\"id\": ..., \"report\": ...}"
_HEADER_WITHIN = 20  # rows; above a header stand titles and the date of the export
_MAX_NAMED = 5  # rows that a message names


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        path: The file.
        columns: Their names, all different.
        rows: {column: cell} of each row, without the white space around it; an empty cell is "". A record of JSON with
            a list of n values is n rows.
        places: Where each row is in the file: a line, or a row of a sheet.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    places: list[str]

    def where(self, number: int) -> str:
        """File and line of row `number` of `rows`, for messages."""
        return f"{self.path}:{self.places[number]}"


def is_table(path: Path) -> bool:
    """Whether a file of this ending is a table; a JSON file may be one or not."""
    return path.suffix.lower() in TABLE_SUFFIXES


def read_table(path: str | Path, encoding: str | None = None) -> Table:
    """Read a table. Its header may stand below titles; in a workbook, the sheets with one header are joined.

    Args:
        path: A file of one of TABLE_SUFFIXES, or a JSON list of records.
        encoding: Of a text file; None recognises it.

    Raises:
        UserError: Naming file and line of what cannot be read: cells of a row too few or too many, quotes that are not
            closed, sheets of different tables, what `read_text` refuses.
    """
    path = expand(str(path))
    suffix = path.suffix.lower()
    if suffix in _WORKBOOKS and not _is_text_export(path):
        return _workbook_table(read_workbook(path), path)
    text = read_text(path, encoding=encoding)
    if suffix in _JSON_LINES:
        return table_of_records(_json_lines(text, path), path)
    if is_table(path):
        return _table_of_rows(read_delimited(text, path), path)
    records = parse_json(text, path, "expected a list of records")
    if not isinstance(records, list):
        raise UserError(path, f"the top level is a {type(records).__name__}", "give a table or a JSON list of records")
    return table_of_records([(str(number), record) for number, record in enumerate(records, start=1)], path)


def _is_text_export(path: Path) -> bool:
    """Whether a file called .xls is text: many systems export tables of tabs or web pages under that name."""
    if path.suffix.lower() != ".xls" or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(512)
    if head.lstrip()[:1] == b"<":
        raise UserError(path, "is a web page called .xls", "open it in Excel or WPS and save it as .xlsx")
    return not head.startswith((b"PK", b"\xd0\xcf\x11\xe0"))


# --- rows of cells ---------------------------------------------------------------------------------------------------

def _table_of_rows(rows: list[Row], path: Path) -> Table:
    rows = _clean_rows(rows)
    if not rows:
        raise UserError(path, "is empty", "give a table with a header")
    header = _header_index(rows)
    body = rows[header + 1:]
    if not body:
        raise UserError(path, "has a header and no rows", "give a table with a row for each case or slide")
    names = _column_names(rows[header][1], body)
    _refuse_ragged(names, rows[header], body, path)
    kept = [number for number, name in enumerate(names) if name]
    columns = tuple(names[number] for number in kept)
    width = len(names)
    cells_of = [cells + [""] * (width - len(cells)) for _, cells in body]
    return Table(path, columns, [{names[n]: cells[n] for n in kept} for cells in cells_of],
                 [place for place, _ in body])


def _clean_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that are not blank, their cells cleaned."""
    cleaned = [(place, [_clean(cell) for cell in cells]) for place, cells in rows]
    return [(place, cells) for place, cells in cleaned if any(cells)]


def _clean(cell: str) -> str:
    """A cell without white space around it, with the line breaks of Unix."""
    cell = cell.strip(" \t\r\n\u3000\u00a0\ufeff\u200b")
    return cell.replace("\r\n", "\n").replace("\r", "\n") if "\r" in cell else cell


def _header_index(rows: Sequence[Row]) -> int:
    """The row of the names: the first with several cells, or one with more cells and known names below it."""
    best, best_known, best_cells = None, 0, 0
    for index, (_, cells) in enumerate(rows[:_HEADER_WITHIN]):
        different = len(set(filter(None, cells)))
        known = count_known(cells)
        if different < 2:
            continue
        if best is None or (known > best_known and different > best_cells):
            best, best_known, best_cells = index, known, different
    return best or 0


def _column_names(header: Sequence[str], body: Sequence[Row]) -> list[str]:
    """A name for each cell of the header, all different; "" for a column that holds nothing."""
    names: list[str] = []
    for number, cell in enumerate(header):
        name = " ".join(cell.split())
        if not name and any(len(cells) > number and cells[number] for _, cells in body):
            name = f"column {number + 1}"
        repeats = sum(1 for earlier in names if earlier == name or earlier.startswith(f"{name} (")) if name else 0
        names.append(f"{name} ({repeats + 1})" if repeats else name)
    return names


def _refuse_ragged(names: Sequence[str], header: Row, body: Sequence[Row], path: Path) -> None:
    """Raise UserError for rows of other lengths than the header, which shift cells into wrong columns."""
    is_workbook = path.suffix.lower() in _WORKBOOKS
    ragged = []
    for place, cells in body:
        too_long = any(cells[len(names):])
        # a workbook stores no empty cells; in text, a missing one may be any of the row
        too_short = len(cells) < len(names) and not is_workbook
        if too_long or too_short:
            ragged.append((place, len(cells)))
    if ragged:
        listed = ", ".join(f"{place} ({count})" for place, count in ragged[:_MAX_NAMED])
        raise UserError(f"{path}:{ragged[0][0]}", f"{len(ragged)} rows have other numbers of cells than the "
                        f"{len(names)} of the header in line {header[0]}: {listed}",
                        "are there line breaks or delimiters in cells without quotes? correct these rows")


# --- workbooks -------------------------------------------------------------------------------------------------------

def _workbook_table(sheets: list[Sheet], path: Path) -> Table:
    """The table of the sheets that have the most known columns; several of one header are joined."""
    known = {sheet.name: _known_columns(sheet) for sheet in sheets if sheet.rows and not sheet.hidden}
    if not known:
        raise UserError(path, "has no sheet with a table", "give a table with a header and a row for each case")
    chosen = [sheet for sheet in sheets if known.get(sheet.name) == max(known.values())]
    tables = {sheet.name: _table_of_rows(sheet.rows, path) for sheet in chosen}
    if len({table.columns for table in tables.values()}) > 1:
        first, second = (f"{name!r} ({list_columns(table.columns)})" for name, table in list(tables.items())[:2])
        raise UserError(path, f"has several tables: sheet {first} and sheet {second}",
                        "save the one that holds the reports as a file of its own")
    others = [sheet.name for sheet in sheets if sheet.name not in tables and sheet.rows]
    if len(tables) > 1 or others:
        logger.info("%s: sheet %s is read%s", path.name, ", ".join(map(repr, tables)),
                    f", not {', '.join(map(repr, others))}" if others else "")
    places = [f"{name}:{place}" if len(sheets) > 1 else place for name, table in tables.items()
              for place in table.places]
    columns = next(iter(tables.values())).columns
    return Table(path, columns, [row for table in tables.values() for row in table.rows], places)


def _known_columns(sheet: Sheet) -> int:
    rows = _clean_rows(sheet.rows[:_HEADER_WITHIN])
    return count_known(rows[_header_index(rows)][1]) if rows else 0


# --- records of JSON -------------------------------------------------------------------------------------------------

def _json_lines(text: str, path: Path) -> Iterable[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield str(number), parse_json(line, path, _RECORDS, number)


def table_of_records(records: Iterable[tuple[str, Any]], path: Path) -> Table:
    """A table of JSON records.

    Args:
        records: (place in the file, record) of each.
        path: The file, for messages.

    Raises:
        UserError: A record is no object, or a value is an object.
    """
    rows: list[dict[str, str]] = []
    places: list[str] = []
    columns: dict[str, None] = {}
    for place, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{path}:{place}", f"the record is a {type(record).__name__}", _RECORDS)
        expanded = _expand(record, f"{path}:{place}")
        rows += expanded
        places += [place] * len(expanded)
        columns |= dict.fromkeys(record)
    if not rows:
        raise UserError(path, "no labels", _RECORDS)
    names = tuple(columns)
    return Table(path, names, [{name: row.get(name, "") for name in names} for row in rows], places)


def _expand(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    """One row for each value of the longest list; the other values are in all of them."""
    num_rows = max([1, *(len(value) for value in record.values() if isinstance(value, list))])
    rows: list[dict[str, str]] = [{} for _ in range(num_rows)]
    for key, value in record.items():
        for number, row in enumerate(rows):
            if not isinstance(value, list):
                row[key] = _value(value, key, where)
            elif value:
                row[key] = _value(value[min(number, len(value) - 1)], key, where)
    return rows


def _value(value: Any, key: str, where: str) -> str:
    if isinstance(value, str):
        return _clean(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes what is missing as NaN
        return ""
    if isinstance(value, float) and value.is_integer():  # and whole numbers beside missing ones as 123.0
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    raise UserError(where, f"{key!r} is a {type(value).__name__}", "write a text, or a list of texts")
