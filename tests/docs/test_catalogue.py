"""Every row of the fault catalogue has a test that carries its id, or a row under 未处理, in docs/faults.md."""

from __future__ import annotations

import re

from tests.helpers.files import ROOT

PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
CATALOGUE, NOT_HANDLED = PAGE.split("## 未处理")[0], PAGE.split("## 未处理")[1].split("## 部分处理")[0]
COUNTS = {"H": 20, "J": 12, "C": 12, "K": 21, "N": 8, "R": 8, "T": 2, "I": 8, "A": 8}  # rows of each letter; none may be dropped


def rows(text: str) -> list[str]:
    return re.findall(r"^\| ([HJCKNRTIA]\d\d) \|", text, re.MULTILINE)


def covered() -> set[str]:
    """Ids in the names of test functions and in the ids of parameters."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"def (test_\w+)", text) + re.findall(r"""["']([A-Z]\d\d [^"'\n]*)["']""", text)
        found |= {i for name in names for i in re.findall(r"(?<![A-Za-z0-9])[HJCKNRTIA]\d\d(?!\d)", name.replace("_", " "))}
    return found


def test_the_page_has_every_row_once_and_in_order():
    assert rows(CATALOGUE) == [f"{letter}{n:02d}" for letter, count in COUNTS.items() for n in range(1, count + 1)]


def test_every_row_is_tested_or_listed_as_untested():
    named, given_up = set(rows(CATALOGUE)), set(rows(NOT_HANDLED))
    assert not named - covered() - given_up and not covered() - named and not given_up & covered()
