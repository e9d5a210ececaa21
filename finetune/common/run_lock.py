"""One run per folder, and one job per output file: a second one is refused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import UserError
from .files import HELD_BY_ANOTHER

_NAME = ".lock"
_WINDOWS_BYTE = 1 << 30  # msvcrt also blocks reading of a locked byte, so lock one far behind the process id


class RunLock:
    """Context manager that locks a run folder, created if needed; the operating system unlocks it if the process dies.

    On exit the lock file is removed, and with it the folders that were created if they are still empty: a refused run
    leaves no trace. On a file system without locks the run continues without one.

    Raises:
        UserError: Another process uses the folder, or it is not writable.
    """

    def __init__(self, folder: Path, name: str = _NAME, flag: str = "--output_dir") -> None:
        """
        Args:
            folder: Of the run.
            name: Of the lock file.
            flag: What chooses the folder, for messages.
        """
        self.folder, self._name, self._flag = folder, name, flag
        self._created: list[Path] = []  # innermost first
        self._file = -1

    def __enter__(self) -> RunLock:
        try:
            self._created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                self._file = os.open(self.folder / self._name, flags, 0o666)
                self._lock()
                if self._is_current():
                    break
                os.close(self._file)  # its owner removed it between our open and our lock
            self._require_ours()
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, str(os.getpid()).encode())
        except OSError as error:
            self._remove_created()
            raise UserError(self.folder, f"cannot be written ({error.strerror})",
                            f"choose another {self._flag}") from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if os.name == "nt":  # an open file cannot be removed there
                os.close(self._file)
                (self.folder / self._name).unlink()
            else:
                (self.folder / self._name).unlink()  # still locked, so it is no other process's file
                os.close(self._file)
        self._remove_created()

    def _remove_created(self) -> None:
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:  # not empty
                return

    def _lock(self) -> None:
        try:
            if os.name == "nt":
                import msvcrt

                os.lseek(self._file, _WINDOWS_BYTE, os.SEEK_SET)
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
                os.lseek(self._file, 0, os.SEEK_SET)
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD_BY_ANOTHER:  # ENOLCK, ENOTSUP: a network drive without locks
                return
            owner = os.pread(self._file, 20, 0).decode("ascii", "replace") if hasattr(os, "pread") else ""
            os.close(self._file)
            raise UserError(self.folder, f"is in use by another run (process {owner or '?'})",
                            f"wait for it, stop it, or choose another {self._flag}") from None

    def _require_ours(self) -> None:
        """Raise UserError for a file of someone else: a lock file holds at most a process id."""
        content = os.read(self._file, 20)
        if content and not content.isdigit():
            os.close(self._file)
            raise UserError(self.folder / self._name, "is not a lock of this program",
                            f"move it away, or choose another {self._flag}")

    def _is_current(self) -> bool:
        """Whether the locked file is still the one in the folder."""
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.folder / self._name))
        except FileNotFoundError:
            return False
