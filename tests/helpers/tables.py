"""Tables of reports as files, in the formats that pathology systems write."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import openpyxl

from tests.helpers.files import write_json


def write_xlsx(path: Path, **sheets: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def write_csv(path: Path, rows: list[list[str]], encoding: str = "utf-8", **dialect: object) -> Path:
    memory = io.StringIO()
    csv.writer(memory, **dialect).writerows(rows)
    path.write_bytes(memory.getvalue().encode(encoding))
    return path


def write_records(path: Path, rows: list[list[str]]) -> Path:
    records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    if path.suffix == ".json":
        return write_json(path, records)
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n", encoding="utf-8")
    return path
