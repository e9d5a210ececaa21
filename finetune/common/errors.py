"""The exceptions that mean "the user can fix this". Imports nothing heavy: `--help` must stay quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

_MAX_LINE = 300  # characters of an error line: one bad value must not flood a terminal or a log


class UserError(Exception):
    """A bad input or environment: printed as `error: WHERE: WHAT; FIX`, exit code 2, no traceback.

    where: the file or config key at fault. what: what is wrong, with the value found. fix: what to do.
    details: further lines for the other items that are wrong in the same way.
    """

    def __init__(self, where: object, what: str, fix: str, details: Sequence[str] = ()) -> None:
        self.where, self.what, self.fix, self.details = str(where), what, fix, tuple(details)
        # by another process of this run; None: the processes do not know each other
        self.already_reported: bool | None = None
        super().__init__(self.line())

    def line(self) -> str:
        text, fix = printable(f"{self.where}: {self.what}"), printable(f"; {self.fix}")
        room = max(_MAX_LINE - len(fix), _MAX_LINE // 2)  # a long value must not push the fix out
        return ((text if len(text) <= room else text[: room - 3] + "...") + fix)[:_MAX_LINE]

    def __reduce__(self):  # errors travel from loader processes by pickle
        return UserError, (self.where, self.what, self.fix, self.details)


class BadSlide(Exception):
    """Why the file of one slide cannot be used: `what`, and `fix`, as in UserError; who catches it knows the file."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix


def printable(text: str) -> str:
    """`text` with control and direction-changing characters escaped, so that it stays one harmless line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or its return value; a `UserError` is one line on stderr and exit 2.

    With `--debug` on the command line the traceback comes back.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Chinese caption must print on a Windows or C-locale console too
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        if error.already_reported or (error.already_reported is None and os.environ.get("LOCAL_RANK", "0") != "0"):
            sys.exit(2)  # the first process of this machine has the same arguments and says the same
        details = (f"  {printable(d)[:_MAX_LINE]}" for d in error.details)
        print(f"error: {error.line()}", *details, sep="\n", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)


def say(*lines: str) -> None:
    """Print to stdout now. What is said to a reader that has gone, such as `head`, is lost, and no more than that."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
