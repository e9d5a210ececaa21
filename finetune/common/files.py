"""Path expansion, reading of regular files only, atomic writes, and the temporary names they use.

A temporary file or folder is `.NAME.PROCESS.RANDOM.tmp` beside its target. Its writer holds a lock on it, so that what
a killed process has left can be told from what another one is writing, here or on a machine that shares the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_OURS = re.compile(r"\.(.+)\.\d+\.[0-9a-f]{8}\.tmp", re.DOTALL)
_ABANDONED_AFTER = 24 * 3600  # seconds without a write, on disks without locks: no file takes that long
HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # what a lock that is taken raises


def expand(path: str) -> Path:
    """`path` with `~` and environment variables expanded, absolute."""
    return Path(os.path.abspath(os.path.expandvars(os.path.expanduser(path))))


def require_regular(path: Path) -> None:
    """Raise OSError unless a file has an end: opening a pipe waits for a writer, and reading /dev/zero never ends.

    A folder passes: to open it fails at once, with an error that names it.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a pipe or device, not a regular file", str(path))


def read_regular(path: Path) -> bytes:
    """The content of a file. Raises OSError as `require_regular`."""
    require_regular(path)
    return path.read_bytes()


def write_atomically(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Replace a file in one step; several processes and machines may write it.

    Args:
        path: The file; its folder exists.
        content: A text is encoded as UTF-8.
        durable: Wait until the content is on the disk, so that a power cut leaves no empty file.

    Raises:
        OSError: The existing file is then intact.
    """
    with replacing(path, durable) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))  # lone surrogates


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file to write to, which replaces `path` in one step when the block ends; as `write_atomically`.

    If the block raises, the existing file stays as it is. What a killed process has left of the same file is removed.
    """
    remove_leftovers(path.parent, path.name)
    with temporary_file(path) as file:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())
        put_in_place(file, path)


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[BinaryIO]:
    """A new, locked file beside `target`, its path in `name`; unless the block renames it, it is removed at the end."""
    file = _new_file(target)
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            os.unlink(file.name)


def put_in_place(file: BinaryIO, target: Path) -> None:
    """Rename a complete `temporary_file`, which stays locked until then."""
    if os.name == "nt":  # an open file cannot be renamed there
        file.close()
    os.replace(file.name, target)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`; what the block has not renamed is removed when it ends.

    What a killed process has left of the same target is removed first.
    """
    remove_leftovers(target.parent, target.name)
    temporary = temporary_name(target)
    temporary.mkdir(parents=True)
    handle = _open_to_lock(temporary)
    try:
        if handle is not None:
            _lock(handle)
        yield temporary
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(target: Path) -> Path:
    """A name beside `target` that no other process, thread or machine uses."""
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, target: str | None = None) -> None:
    """Remove what killed processes have left of `temporary_file` and `temporary_folder`, and nothing else.

    Args:
        folder: Where to look, not below it.
        target: The name of the file or folder that was being written; None for all.
    """
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:  # there is no such folder
        return
    for name in names:
        match = _OURS.fullmatch(name)
        if match and target in (None, match[1]):
            with contextlib.suppress(OSError):  # another process removes it as well
                _remove_if_abandoned(folder / name)


def _new_file(target: Path) -> BinaryIO:
    while True:
        temporary = temporary_name(target)
        file = open(temporary, "xb")  # noqa: SIM115, a new file: a link of this name is not followed
        _lock(file.fileno())
        if temporary.exists():
            return file
        file.close()  # between open and lock another process took it for a leftover


def _remove_if_abandoned(path: Path) -> None:
    """Remove a file or folder of ours unless its writer may still be alive."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return
    handle = _open_to_lock(path)
    try:
        is_locked = None if handle is None else _lock(handle)
        is_old = time.time() - status.st_mtime > _ABANDONED_AFTER
        is_abandoned = is_old if is_locked is None else is_locked
        if is_abandoned and stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
        elif is_abandoned:
            path.unlink()
    finally:
        if handle is not None:
            os.close(handle)


def _open_to_lock(path: Path) -> int | None:
    """A handle of a file or folder of ours; None where it cannot have one."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR  # NFS locks only what is open for writing
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None


def _lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process ends. Returns whether; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD_BY_ANOTHER else None
    return True
