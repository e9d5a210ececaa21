"""The exceptions that mean "the user can fix this". Imports nothing heavy: `--help` must stay quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from .terminal import styled
from .threads import prepare_threads
from .visible import visible

_MAX_LINE = 300  # characters of an error line: one bad value must not flood a terminal or a log


class UserError(Exception):
    """A bad input or environment: printed as `error: WHERE: WHAT; FIX`, exit code 2, no traceback.

    Attributes:
        where: The file, flag or config key at fault.
        what: What is wrong, with the value found.
        fix: What to do.
        details: Further lines, one for each other item that is wrong in the same way.
        already_reported: Whether another process of this run prints it; None if the processes are not connected.
    """

    def __init__(self, where: object, what: str, fix: str, details: Sequence[str] = ()) -> None:
        self.where, self.what, self.fix, self.details = str(where), what, fix, tuple(details)
        self.already_reported: bool | None = None
        super().__init__(self.line())

    def line(self) -> str:
        """`WHERE: WHAT; FIX` as one printable line of at most 300 characters."""
        problem, fix = visible(f"{self.where}: {self.what}"), visible(f"; {self.fix}")
        room = max(_MAX_LINE - len(fix), _MAX_LINE // 2)  # a long value must not push the fix out
        if len(problem) > room:
            problem = problem[: room - 3] + "..."
        return (problem + fix)[:_MAX_LINE]

    def __reduce__(self) -> tuple[type, tuple]:  # errors travel from loader processes by pickle
        return UserError, (self.where, self.what, self.fix, self.details)


class BadSlide(Exception):
    """Why the file of one slide cannot be used: `what` and `fix` as in UserError; the catcher adds the file."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its return value (None = 0).

    A `UserError` is one line on stderr and exit code 2, with --debug on the command line a traceback; Ctrl+C is 130.
    """
    prepare_threads()  # `main` imports torch
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Chinese caption must print on a Windows or C-locale console too
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        if not _is_reported_elsewhere(error):
            _print_error(error)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)


def _print_error(error: UserError) -> None:
    details = [f"  {visible(detail)[:_MAX_LINE]}" for detail in error.details]
    beginning = styled("error:", "red", sys.stderr)
    print(f"{beginning} {error.line()}", *details, sep="\n", file=sys.stderr)


def _is_reported_elsewhere(error: UserError) -> bool:
    if error.already_reported is None:  # all processes of this machine have the same arguments and the same error
        return os.environ.get("LOCAL_RANK", "0") != "0"
    return error.already_reported


def say(*lines: str) -> None:
    """Print visible lines to stdout now. If the reader, such as `head`, has closed the pipe, they are dropped."""
    try:
        print(*(visible(line, keep="\t") for line in lines), sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
