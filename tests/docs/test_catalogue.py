"""Every row of the fault catalogue has a test that carries its id, or a line under 未处理 in the guide."""

from __future__ import annotations

import re

from tests.helpers.files import ROOT

ROWS = {f"{letter}{n:02d}" for letter, count in {"H": 20, "J": 12, "C": 12, "K": 21, "N": 8, "R": 8, "T": 2}.items()
        for n in range(1, count + 1)}


def covered() -> set[str]:
    """Ids in the names of test functions and in the ids of parameters."""
    found: set[str] = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"def (test_\w+)", text) + re.findall(r"""["']([A-Z]\d\d [^"'\n]*)["']""", text)
        found |= {i for name in names for i in re.findall(r"(?<![A-Za-z0-9])[HJCKNRT]\d\d(?!\d)", name.replace("_", " "))}
    return found


def not_handled() -> set[str]:
    guide = (ROOT / "README_training.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| ([HJCKNRT]\d\d) \|", guide.split("**未处理。**")[1].split("部分处理")[0], re.MULTILINE))


def test_every_row_is_tested_or_said_not_to_be():
    assert len(ROWS) == 83 and not ROWS - covered() - not_handled()
    assert not covered() - ROWS and not not_handled() & covered()
