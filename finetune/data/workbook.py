"""Excel workbooks (.xlsx): cells as the text that a user sees. The only module that imports openpyxl.

openpyxl reads the cells row by row, which takes little memory. What it does not report that way, merged cells and
formulas that were never computed, is read from the XML of the sheet.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import require_regular
from ..common.memory import require_memory
from .delimited import Row

_MAX_UNPACKED = 1 << 31  # bytes of XML: ten times what a million reports need
_SMALL, _MAX_COMPRESSION = 1 << 22, 100  # bytes of XML; real tables unpack to 5 to 20 times the size of the file
_MEMORY = 4  # bytes that a byte of XML takes as cells
_MAX_ROWS, _MAX_COLUMNS = 1 << 20, 1000  # Excel's own limit; no report table has more columns
_MAX_CELLS = 20_000_000  # with the empty ones before a cell in a far column, which the file need not hold
_MAX_FILLED = 10_000_000  # cells that merged ranges may cover
_BLOCK, _OVERLAP = 1 << 20, 1 << 14  # bytes of XML searched at a time; a formula has at most 8192 characters
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\b[^>]*\bref="([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})"')
# A formula without a value; an empty value is one if the cell is a string.
_NOT_COMPUTED = re.compile(
    rb'<(?:\w+:)?c\b(?![^>]*\bt="str")[^>]*\br="([A-Z]{1,3}\d{1,7})"[^>]*>\s*'
    rb'<(?:\w+:)?f\b(?:[^>]*/>|[^>]*>[^<]*</(?:\w+:)?f>)\s*'
    rb'(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v></(?:\w+:)?v>)?\s*</(?:\w+:)?c>')
_ZEROS = re.compile("0{2,}")  # a number format that shows 123 as 00123
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")  # Excel's way to write control characters


@dataclass
class Sheet:
    """A sheet of a workbook.

    Attributes:
        hidden: Whether Excel does not show it.
        rows: (row number, cells) of each row that has any.
    """

    name: str
    hidden: bool
    rows: list[Row]


@dataclass
class _Marks:
    """What a sheet's XML says beside its cells.

    Attributes:
        merged: (column, first row, last row) of ranges over several rows.
        not_computed: Cells of formulas without a value.
    """

    merged: set[tuple[int, int, int]] = field(default_factory=set)
    not_computed: dict[str, None] = field(default_factory=dict)


@dataclass
class _Size:
    """The cells of a workbook that were made so far. Few bytes may stand for many: a cell in a far column does."""

    path: Path
    cells: int = 0

    def add(self, cells: int) -> None:
        """Raises UserError if that makes too many."""
        self.cells += cells
        if self.cells > _MAX_CELLS:
            raise UserError(self.path, f"has more than {_MAX_CELLS} cells, most of them empty or repeated",
                            "delete what is outside of the table, or save it as CSV UTF-8")


def read_workbook(path: Path) -> list[Sheet]:
    """Read all sheets that hold cells.

    A number is written without `.0`, with the zeros that its format shows in front; a date as 2024-05-31, a formula as
    its last value. The cells of a range that is merged over several rows all have its value.

    Raises:
        UserError: Not a workbook that can be read, or formulas without a value.
    """
    _refuse_other_files(path)
    from openpyxl.reader.excel import ExcelReader  # a fifth of a second that other formats need not wait

    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and extensions, which do not matter here
            reader = ExcelReader(path, read_only=True, data_only=True)
            reader.read()
            targets = {sheet.name: relation.target for sheet, relation in reader.parser.find_sheets()}
            if len(set(targets.values())) < len(targets):  # one sheet of many names would be read as often
                raise ValueError
            size = _Size(path)
            return [_read_sheet(sheet, reader.archive, targets[sheet.title], size) for sheet in reader.wb.worksheets]
    except UserError:
        raise
    except Exception as error:  # openpyxl has no error of its own: a damaged file raises whatever its parts do
        raise UserError(path, f"not a readable workbook ({type(error).__name__})",
                        "open it in Excel or WPS and save it again as .xlsx or as CSV UTF-8") from None


def _refuse_other_files(path: Path) -> None:
    """Raise UserError for what cannot be an .xlsx file, or would not fit into memory."""
    try:
        require_regular(path)
        with open(path, "rb") as file:
            head = file.read(8)
        if head.startswith(b"\xd0\xcf\x11\xe0"):
            raise UserError(path, "is an old .xls workbook, or one with a password",
                            "open it in Excel or WPS and save it as .xlsx without a password")
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "give the path of the table") from None
    except zipfile.BadZipFile:
        raise UserError(path, f"not an .xlsx workbook (starts with {head.decode('latin-1')!r})",
                        "open it in Excel or WPS and save it as .xlsx, or as CSV UTF-8") from None
    packed = path.stat().st_size
    if unpacked > min(_MAX_UNPACKED, max(_SMALL, _MAX_COMPRESSION * packed)):
        raise UserError(path, f"unpacks to {unpacked / 1e9:.3f} GB, {unpacked // packed} times its size",
                        "save the table alone, as .xlsx or CSV UTF-8")
    require_memory(path, _MEMORY * unpacked, "its cells")


def _read_sheet(sheet: Any, archive: zipfile.ZipFile, target: str, size: _Size) -> Sheet:
    marks = _read_marks(archive, target)
    if marks.not_computed:
        first = next(iter(marks.not_computed))
        raise UserError(size.path, f"{len(marks.not_computed)} formulas of sheet {sheet.title!r} have no value, such "
                        f"as {first}", "open the file in Excel or WPS and save it, or paste the cells as values")
    rows = _read_cells(sheet, size)
    _fill_merged(rows, marks, size)
    kept = [(str(number), row) for number, row in enumerate(rows, start=1) if any(row)]
    return Sheet(sheet.title, sheet.sheet_state != "visible", kept)


def _read_cells(sheet: Any, size: _Size) -> list[list[str]]:
    sheet.reset_dimensions()  # some programs write a wrong size, which would cut the table
    rows: list[list[str]] = []
    for row in sheet.iter_rows():
        if len(row) > _MAX_COLUMNS or len(rows) == _MAX_ROWS:
            raise UserError(size.path, f"sheet {sheet.title!r} has {len(row)} columns or more than {len(rows)} rows",
                            "delete what is outside of the table")
        size.add(len(row) + 1)  # an empty row takes memory too
        rows.append([_text(cell) if cell.value is not None else "" for cell in row])
    return rows


def _read_marks(archive: zipfile.ZipFile, target: str) -> _Marks:
    marks = _Marks()
    with archive.open(target) as file:
        carried = b""
        while block := file.read(_BLOCK):
            xml = carried + block
            for column, first, last in _MERGED.findall(xml):
                marks.merged.add((_column_number(column), int(first), int(last)))
            marks.not_computed |= dict.fromkeys(cell.decode() for cell in _NOT_COMPUTED.findall(xml))
            carried = xml[-_OVERLAP:]
    return marks


def _column_number(letters: bytes) -> int:
    """A is 1, Z 26, AA 27."""
    number = 0
    for letter in letters:
        number = 26 * number + letter - ord("A") + 1
    return number


def _fill_merged(rows: list[list[str]], marks: _Marks, size: _Size) -> None:
    """Write the value of a merged range into its first column; a title over several columns stays one cell."""
    if sum(min(last, len(rows)) - first for _, first, last in marks.merged if first < len(rows)) > _MAX_FILLED:
        raise UserError(size.path, "has too many merged cells", "unmerge them, or save the table as CSV UTF-8")
    for column, first, last in marks.merged:
        top = rows[first - 1] if 0 < first <= len(rows) else []
        value = top[column - 1] if column <= len(top) else ""
        for row in rows[first:last] if value else []:
            size.add(max(0, column - len(row)))
            row.extend([""] * (column - len(row)))
            row[column - 1] = row[column - 1] or value


def _text(cell: Any) -> str:
    """What a user sees in a cell that is not empty."""
    value = cell.value
    if isinstance(value, str):
        return _ESCAPED.sub(_escaped_character, value) if "_x" in value else value
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float)):
        return _number(value, cell.number_format)
    return str(value).removesuffix(" 00:00:00")  # a date


def _escaped_character(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def _number(value: float, number_format: str) -> str:
    """A number as text: 12345.0 is 12345, and 123 in the format 00000 is 00123."""
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= 1e15:
            return repr(value)
        value = int(value)
    text = str(value)
    return text.zfill(len(number_format)) if _ZEROS.fullmatch(number_format or "") else text
