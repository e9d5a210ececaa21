"""Read a report table of 100 000 rows in each format: python -m benchmarks.tables [ROWS]

12 columns as a pathology system exports them, about 1 kB of Chinese text a row. Each format is read in a process of its
own, so that the peak of its memory is its own.
"""

import csv
import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openpyxl

from finetune.data.labels import load_labels

_HEADER = ["序号", "病理号", "姓名", "性别", "年龄", "送检科室", "送检部位", "肉眼所见", "镜下所见",
           "病理诊断", "报告医师", "报告日期"]
_TEXT = "（胃窦）低分化腺癌，浸润至浆膜层，切缘未见癌，淋巴结转移（3/12）。脉管内见癌栓，神经侵犯（+）。"


def _rows(count: int) -> list[list[object]]:
    return [[i, 2_300_000 + i, "张三", "男", 20 + i % 70, "普外科", "胃", f"{_TEXT * 2}{i}", f"{_TEXT * 6}{i}",
             f"{_TEXT * 3}{i}", "李四", "2024-05-31"] for i in range(count)]


def _write(folder: Path, rows: list[list[object]]) -> list[Path]:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("报告")
    for row in [_HEADER, *rows]:
        sheet.append(row)
    book.save(folder / "t.xlsx")
    for name, encoding in (("gbk.csv", "gb18030"), ("utf16.csv", "utf-16")):
        with open(folder / name, "w", encoding=encoding, newline="") as file:
            csv.writer(file).writerows([_HEADER, *rows])
    records = [dict(zip(_HEADER, row, strict=True)) for row in rows]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "t.jsonl").write_text(lines, encoding="utf-8")
    (folder / "t.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return [folder / name for name in ("t.xlsx", "gbk.csv", "utf16.csv", "t.jsonl", "t.json")]


def _read(path: Path, results: Any) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    labels, problems = load_labels(path)
    assert not problems
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    digest = hashlib.sha256(repr(list(labels.items())).encode()).hexdigest()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((seconds, cpu, peak, len(labels), digest))


def main() -> None:
    """Print a row for each format; stops if they do not give equal labels."""
    context = multiprocessing.get_context("spawn")  # a child of its own memory
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(Path(folder), _rows(count))
        print("| format | MB | s | s of CPU | peak MB | labels |\n|---|---|---|---|---|---|")
        hashes = set()
        for path in paths:
            results = context.Queue()
            process = context.Process(target=_read, args=(path, results))
            process.start()
            seconds, cpu, peak, num_labels, labels_hash = results.get()
            process.join()
            hashes.add(labels_hash)
            megabytes = path.stat().st_size / 1e6
            print(f"| {path.name} | {megabytes:.0f} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} | {num_labels} |",
                  flush=True)
        assert len(hashes) == 1, "formats give different labels"


if __name__ == "__main__":
    main()
