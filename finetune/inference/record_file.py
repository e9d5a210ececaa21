"""The growing file of a job: one line of JSON per slide, written as captions come, gone on with after an interruption.

Each record says what it was made from (`made_from`: hashes of the model, the options and the slide), so that a line is
only kept where the job would write the same one again. For `.jsonl` the growing file is the output itself; `.json` and
`.csv` are written from one beside them (`OUTPUT.jsonl`) at the end.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from ..common.errors import UserError
from ..common.files import replacing
from ..common.log import notice
from ..common.run_lock import RunLock
from ..common.visible import json_text
from .records import Record, write_csv, write_json

_GO_ON = "free some space, then the same command with --resume"


@dataclass(frozen=True)
class Source:
    """Hashes of what the records of a job are made from, apart from the slide."""

    model: str
    options: str

    def of_slide(self, slide: str) -> str:
        """`made_from` of a record. slide: the hash of its files."""
        return f"{self.model}-{self.options}-{slide}"


@dataclass(frozen=True)
class _Line:
    """Where a record is in the file, in bytes, and what a resumed job must know of it."""

    start: int
    length: int
    made_from: str
    has_failed: bool


class RecordFile:
    """A context manager over the records of a job, found by slide id.

    Args:
        output: .jsonl, .json or .csv; None keeps the records in a temporary file.

    Attributes:
        failed_before: Ids of the slides that failed in the job that is resumed.
    """

    def __init__(self, output: Path | None) -> None:
        self.output = output
        self.failed_before: set[str] = set()
        self._lines: dict[str, _Line] = {}  # in the order of the file
        self._path = output
        if output is not None and output.suffix != ".jsonl":
            self._path = output.with_name(f"{output.name}.jsonl")
        self._mark = None if output is None else output.with_name(f".{output.name}.unfinished")
        self._lock = None if output is None else RunLock(output.parent, f".{output.name}.lock", "--output")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Raises UserError if another job writes the same output."""
        if self._lock:
            self._lock.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # a full disk has been reported by `append`
            self._close()
        if self._lock:
            self._lock.__exit__(kind, error, traceback)

    # --- begin -------------------------------------------------------------------------------------------------------

    def begin(self, source: Source, slides: Mapping[str, str], resume: bool) -> None:
        """Open the file for writing.

        Args:
            source: Of this job's records.
            slides: {id: hash of its files} of the job.
            resume: Keep the records that are there and would be the same again.

        Raises:
            UserError: The file cannot be written, or holds what this job would lose or must not mix with its own.
        """
        if self._path is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, closed by _close
            return
        try:
            if self._path.exists():
                self._read(only_records=resume)
                if resume:
                    self._resume(source, slides)
                else:
                    self._require_no_part_of(source, slides)
            self._close()
            self._mark.touch()
            if self._lines:
                self._file = open(self._path, "r+b")  # noqa: SIM115, closed by _close
            else:
                self._file = open(self._path, "w+b")  # noqa: SIM115, closed by _close
        except OSError as error:
            raise UserError(self._path, f"cannot be written ({error.strerror})", "give another --output") from None

    def _read(self, only_records: bool) -> None:
        """Find the records in the file; a last line that a crash has torn is none.

        Raises UserError for `only_records` and another whole line.
        """
        with open(self._path, "rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                record = _parsed(line)
                if record is None and only_records and line.endswith(b"\n"):
                    raise UserError(self._path, f"line {number} is not a record of inference.py",
                                    "give another --output, or delete it")
                if record is not None:
                    self._add(record, start, len(line))
                start += len(line)

    def _add(self, record: Mapping[str, Any], start: int, length: int) -> None:
        line = _Line(start, length, str(record.get("made_from")), record.get("error") is not None)
        self._lines.pop(record["id"], None)  # the newest record of a slide counts, in the place of its own line
        self._lines[record["id"]] = line

    def _resume(self, source: Source, slides: Mapping[str, str]) -> None:
        """Leave only the records in the file that the job would write again, and those of other slides."""
        for line in self._lines.values():
            _require_same(self._path, line.made_from, source)
        here = {name: self._lines[name] for name in slides if name in self._lines}
        self.failed_before = {name for name, line in here.items() if line.has_failed}
        changed = {name for name, line in here.items() if line.made_from != source.of_slide(slides[name])}
        again = self.failed_before | changed
        self._rewrite([name for name in self._lines if name not in again])
        notice("--resume: %d of %d captions are in %s already; %d failed slides and %d whose file has changed are "
               "captioned again", len(here) - len(again), len(slides), self._path.name, len(self.failed_before),
               len(changed - self.failed_before))

    def _require_no_part_of(self, source: Source, slides: Mapping[str, str]) -> None:
        """Raise UserError rather than begin again over the captions of a job that did not come to its end."""
        done = [name for name, files in slides.items()
                if name in self._lines and self._lines[name].made_from == source.of_slide(files)]
        self._lines.clear()
        if self._mark.exists() and 0 < len(done) < len(slides):
            raise UserError(self._path, f"holds {len(done)} of the {len(slides)} captions of this job",
                            "add --resume to keep them and go on, or delete it")

    # --- records -----------------------------------------------------------------------------------------------------

    def __contains__(self, slide_id: str) -> bool:
        return slide_id in self._lines

    def append(self, record: Record) -> None:
        """Write a record as a whole line, at once. Raises UserError."""
        line = json_text(record).encode() + b"\n"
        try:
            start = self._file.seek(0, 2)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise UserError(self._path or "records", f"cannot be written ({error.strerror})", _GO_ON) from None
        self._add(record, start, len(line))

    def records(self, ids: Iterable[str]) -> Iterator[Record]:
        """The records of some slides, read from the file one after the other; slides that have none are left out."""
        for name in ids:
            if name in self._lines:
                yield json.loads(self._bytes(name))

    def _bytes(self, name: str) -> bytes:
        if self._file is None:
            self._file = open(self._path, "rb")  # noqa: SIM115, closed by _close
        line = self._lines[name]
        self._file.seek(line.start)
        return self._file.read(line.length)

    # --- end ---------------------------------------------------------------------------------------------------------

    def finish(self, ids: Iterable[str]) -> None:
        """Write the output with all records there are: those of other jobs, then those of `ids` in that order.

        A job is marked as finished once all of `ids` have a record. Raises UserError if the output cannot be written;
        the growing file is then as it was.
        """
        if self.output is None:
            return
        wanted = list(ids)
        self._write_output(self._in_order(wanted))
        if self._lines.keys() >= set(wanted):
            self._mark.unlink(missing_ok=True)

    def _in_order(self, ids: list[str]) -> list[str]:
        """Those of other jobs as they are, then those of `ids`."""
        own = set(ids)
        others = [name for name in self._lines if name not in own]
        return others + [name for name in ids if name in self._lines]

    def _write_output(self, names: list[str]) -> None:
        if self.output.suffix == ".jsonl":
            self._rewrite(names)
            return
        write = {".json": write_json, ".csv": write_csv}[self.output.suffix]
        self._write(self.output, lambda file: write(lambda: self.records(names), file))

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _rewrite(self, names: list[str]) -> None:
        """Let the file hold exactly these records, in this order."""
        size = sum(self._lines[name].length for name in names)
        if [*self._lines] == names and size == self._path.stat().st_size:
            return
        self._write(self._path, lambda file: file.writelines(self._bytes(name) for name in names))
        self._close()
        old, self._lines, start = self._lines, {}, 0
        for name in names:
            line = old[name]
            self._lines[name] = _Line(start, line.length, line.made_from, line.has_failed)
            start += line.length

    def _write(self, path: Path, write: Callable[[BinaryIO], None]) -> None:
        try:
            with replacing(path) as file:
                write(file)
        except OSError as error:
            raise UserError(path, f"cannot be written ({error.strerror})",
                            f"its records are in {self._path}: {_GO_ON}") from None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is none, or not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("id"), str) and "caption" in record
    return record if is_record else None


def _require_same(path: Path, made_from: str, source: Source) -> None:
    """Raise UserError unless a record is of this model and these options."""
    model, _, rest = made_from.partition("-")
    if model == source.model and rest.partition("-")[0] == source.options:
        return
    what = "holds captions made with other options (decoding, template, texts, prompts, thresholds, precision)"
    if model != source.model:
        what = "holds captions of another model, or of an older version of this program"
    raise UserError(path, what, "give another --output, or leave --resume out to begin again")
