"""What a check says: one line on one part of the environment. Imports nothing heavy: torch may be missing or broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..common.errors import UserError

OK, NOTE, WARNING, ERROR = "ok", "-", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        subject: What was looked at.
        status: OK, NOTE (nothing to do, but good to know), WARNING or ERROR (training would not start).
        text: What was found.
        fix: What to do; empty if there is nothing to do.
    """

    subject: str
    status: str
    text: str
    fix: str = ""

    def lines(self) -> list[str]:
        """For a terminal."""
        first = f"{self.status:8} {self.subject:18} {self.text}"
        return [first, f"{'':8} {'':18} -> {self.fix}"] if self.fix else [first]


def attempt(subject: str, check: Callable[[], Finding], status: str = ERROR) -> Finding:
    """The finding of a check; what it raises as UserError is a finding of `status`."""
    try:
        return check()
    except UserError as error:
        more = f" (and {len(error.details) - 1} more)" if len(error.details) > 1 else ""
        return Finding(subject, status, f"{error.where}: {error.what}{more}", error.fix)


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    errors, warnings = (sum(f.status == status for f in findings) for status in (ERROR, WARNING))
    if not errors and not warnings:
        return "all in order"
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
