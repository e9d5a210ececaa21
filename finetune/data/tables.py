"""Tables of reports as hospitals export them: .xlsx, .csv, .tsv, .jsonl and JSON lists of records, as rows of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand
from ..common.log import notice
from .columns import count_known, list_columns
from .delimited import Row, read_delimited
from .json_text import parse_json, require_few_values
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
    if path.suffix.lower() in _WORKBOOKS and not _is_text_export(path):
        return _workbook_table(read_workbook(path), path)
    text = read_text(path, encoding=encoding)
    if path.suffix.lower() in _JSON_LINES:
        require_few_values(text, path, _RECORDS)
        return table_of_records(_json_lines(text, path), path)
    if is_table(path):
        return _table_of_rows(read_delimited(text, path), path)
    return _json_table(text, path)


def _json_table(text: str, path: Path) -> Table:
    records = parse_json(text, path, "expected a list of records")
    if not isinstance(records, list):
        raise UserError(path, f"the top level is a {type(records).__name__}", "give a table or a JSON list of records")
    return table_of_records(number_records(records), path)


def number_records(records: list[Any]) -> list[tuple[str, Any]]:
    """(place in the file, record) of each record of a JSON list."""
    return [(str(number), record) for number, record in enumerate(records, start=1)]


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
    header, *body = rows[_header_index(rows):]
    if not body:
        raise UserError(path, "has a header and no rows", "give a table with a row for each case or slide")
    names = _column_names(header[1], body)
    _refuse_ragged(names, header, body, path)
    columns = tuple(filter(None, names))
    return Table(path, columns, [_named_cells(names, cells) for _, cells in body], [place for place, _ in body])


def _named_cells(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """{column: cell} of a row, which may lack cells at its end."""
    row = dict(zip_longest(names, cells[:len(names)], fillvalue=""))
    row.pop("", None)  # columns that hold nothing
    return row


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
    longest = max(len(cells) for _, cells in body)
    has_cells = [any(number < len(cells) and cells[number] for _, cells in body) for number in range(longest)]
    names: list[str] = []
    for number, cell in enumerate(header):
        name = " ".join(cell.split())
        if not name and number < longest and has_cells[number]:
            name = f"column {number + 1}"
        names.append(_unused(name, names))
    return names


def _unused(name: str, names: Sequence[str]) -> str:
    """The name, with a number if there is one like it already."""
    numbered, number = name, 1
    while numbered and numbered in names:
        number += 1
        numbered = f"{name} ({number})"
    return numbered


def _refuse_ragged(names: Sequence[str], header: Row, body: Sequence[Row], path: Path) -> None:
    """Raise UserError for rows of other lengths than the header, which shift cells into wrong columns."""
    # a workbook stores no empty cells; in text, a missing one may be any of the row
    fewest = 0 if path.suffix.lower() in _WORKBOOKS else len(names)
    ragged = [(place, len(cells)) for place, cells in body if len(cells) < fewest or any(cells[len(names):])]
    if not ragged:
        return
    listed = ", ".join(f"{place} ({count})" for place, count in ragged[:_MAX_NAMED])
    raise UserError(f"{path}:{ragged[0][0]}", f"{len(ragged)} rows have other numbers of cells than the "
                    f"{len(names)} of the header in line {header[0]}: {listed}",
                    "are there line breaks or delimiters in cells without quotes? correct these rows")


# --- workbooks -------------------------------------------------------------------------------------------------------

def _workbook_table(sheets: list[Sheet], path: Path) -> Table:
    """The table of the sheets that have the most known columns; several of one header are joined."""
    tables = {sheet.name: _table_of_rows(sheet.rows, path) for sheet in _sheets_with_reports(sheets, path)}
    if len({table.columns for table in tables.values()}) > 1:
        first, second = (f"{name!r} ({list_columns(table.columns)})" for name, table in list(tables.items())[:2])
        raise UserError(path, f"has several tables: sheet {first} and sheet {second}",
                        "save the one that holds the reports as a file of its own")
    others = [sheet.name for sheet in sheets if sheet.name not in tables and sheet.rows]
    if len(sheets) > 1:
        notice("%s: read sheets %s; not read: %s", path.name, ", ".join(map(repr, tables)),
               ", ".join(map(repr, others)) or "none")
    return _join_tables(tables, path, len(sheets) > 1)


def _sheets_with_reports(sheets: list[Sheet], path: Path) -> list[Sheet]:
    known = {sheet.name: _known_columns(sheet) for sheet in sheets if sheet.rows and not sheet.hidden}
    if not known:
        raise UserError(path, "has no sheet with a table", "give a table with a header and a row for each case")
    return [sheet for sheet in sheets if known.get(sheet.name) == max(known.values())]


def _join_tables(tables: dict[str, Table], path: Path, name_sheets: bool) -> Table:
    rows = list(chain.from_iterable(table.rows for table in tables.values()))
    places: list[str] = []
    for name, table in tables.items():
        places += [f"{name}:{place}" for place in table.places] if name_sheets else table.places
    return Table(path, next(iter(tables.values())).columns, rows, places)


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
    for place, record in records:
        expanded = _expand(record, f"{path}:{place}")
        rows += expanded
        places += [place] * len(expanded)
    if not rows:
        raise UserError(path, "no labels", _RECORDS)
    columns = tuple(dict.fromkeys(chain.from_iterable(rows)))
    return Table(path, columns, [{name: row.get(name, "") for name in columns} for row in rows], places)


def _expand(record: Any, where: str) -> list[dict[str, str]]:
    """One row for each value of the longest list; the other values are in all of them."""
    if not isinstance(record, dict):
        raise UserError(where, f"the record is a {type(record).__name__}", _RECORDS)
    lists = {key: value if isinstance(value, list) else [value] for key, value in record.items()}
    texts = {key: [_value(value, key, where) for value in values] or [""] for key, values in lists.items()}
    num_rows = max((len(values) for values in texts.values()), default=1)
    return [{key: values[min(number, len(values) - 1)] for key, values in texts.items()} for number in range(num_rows)]


def _value(value: Any, key: str, where: str) -> str:
    """A JSON value as text: pandas writes what is missing as NaN, and beside it whole numbers as 123.0."""
    if isinstance(value, str):
        return _clean(value)
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    raise UserError(where, f"{key!r} is a {type(value).__name__}", "write a text, or a list of texts")
