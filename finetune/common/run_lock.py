"""One run per folder: the second one that wants to write into it is refused."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from .errors import UserError

_NAME = ".lock"
_WINDOWS_BYTE = 1 << 30  # msvcrt locks bytes against reading too: one far behind the process id in the file


class RunLock:
    """Holds a run folder, making it if needed, for this process; the operating system lets go when the process ends.

    On exit the lock file goes, and with it the folders this lock has made if nothing was put into them: a run that is
    refused leaves no trace. Where the file system has no locks the run goes on without one. Raises UserError naming the
    process that holds the folder, or if the folder cannot be written: better now than after the first epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._made, self._file = folder, [], -1

    def __enter__(self) -> RunLock:
        try:
            self._make_folder(self.folder)
            while True:
                self._file = os.open(self.folder / _NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
                self._lock()
                if self._is_current():
                    break
                os.close(self._file)  # its owner removed it between our open and our lock
            os.ftruncate(self._file, 0)
            os.write(self._file, str(os.getpid()).encode())
        except OSError as error:
            self._remove_folders()
            raise UserError(self.folder, f"cannot be written ({error.strerror})",
                            "choose another --output_dir") from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if os.name == "nt":  # an open file cannot be removed there
                os.close(self._file)
                (self.folder / _NAME).unlink()
            else:
                (self.folder / _NAME).unlink()  # while it is held: nobody else can have taken it
                os.close(self._file)
        self._remove_folders()

    def _make_folder(self, folder: Path) -> None:
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _remove_folders(self) -> None:
        for folder in self._made:  # the innermost first; the first that is not empty ends it
            try:
                folder.rmdir()
            except OSError:
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
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                owner = os.pread(self._file, 20, 0).decode("ascii", "replace") if hasattr(os, "pread") else "?"
                os.close(self._file)
                raise UserError(self.folder, f"is in use by another run (process {owner or '?'})",
                                "wait for it, stop it, or choose another --output_dir") from None
            # ENOLCK, ENOTSUP: a network drive without locks

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.folder / _NAME))
        except FileNotFoundError:
            return False
