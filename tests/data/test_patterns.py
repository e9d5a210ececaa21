"""Patterns of the config: what they extract, and that none takes longer or more memory than it may."""

from __future__ import annotations

import re
import time

import pytest

from finetune.data import patterns
from finetune.data.patterns import Pattern
from tests.helpers.files import refused

KEY = "data.group_pattern"


@pytest.mark.parametrize("pattern", [r"^TCGA-\w\w-\w{4}", r"^(\d+)_", r"([^/]+)/[^/]+$", r"p(\d+)?", r"(?i)^([a-z]{2,20})\d{6}",
                                     r"^病例(\d+)"])
@pytest.mark.parametrize("text", ["TCGA-AB-1234-01Z", "12_3", "a/b/c", "p", "p7", "AB123456", "病例12-3", ""])
def test_it_extracts_what_the_standard_library_does(pattern, text):
    match = re.search(pattern, text)
    expected = match[1 if re.compile(pattern).groups else 0] or None if match else None
    assert Pattern(pattern, KEY).find(text) == expected


@pytest.mark.parametrize("pattern", ["^(a+)+$", r"^(\w+\s?)*$", "(x+x+)+y", "(a?){40}a{40}b", "(.*)*b"])
def test_A04_no_pattern_hangs(pattern):
    start = time.process_time()
    Pattern(pattern, KEY).find("a" * 40 + "!")
    Pattern(pattern, KEY).find("x" * 40 + "!")
    assert time.process_time() - start < 10, "re needs years"


def test_A04_a_slow_pattern_ends_in_one_line_and_its_time_is_counted_over_all_texts(monkeypatch):
    monkeypatch.setattr(patterns, "_MAX_SECONDS", 0.05)
    with refused(KEY, "^(a|aa)+$", "takes more than"):
        Pattern("^(a|aa)+$", KEY).find("a" * 60 + "!")
    pattern = Pattern("(x+x+)+y", KEY)
    with refused(KEY, "takes more than"):
        for _ in range(10_000):
            pattern.find("x" * 100)


@pytest.mark.parametrize("pattern", ["(a{9999}){9999}", "((((a{1,100}){1,100}){1,100}){1,100})b", "a" * 1001, "(a{,99999})",
                                     "a{12345678901234567890}", "((a{0,999}){0,999})"])
def test_A04_a_pattern_that_would_fill_the_memory_is_refused_before_it_is_compiled(pattern):
    with refused(KEY, "too large"):
        Pattern(pattern, KEY)


@pytest.mark.parametrize("pattern", ["(", "x*+*", "[a", "(?P<n>a)(?P=m)", "(" * 400, r"\p{Nonsense}"])
def test_what_is_no_pattern_is_refused(pattern):
    with refused(KEY, "is not a regular expression"):
        Pattern(pattern, KEY)


def test_ids_with_many_counted_fields_are_no_large_pattern():
    uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    assert Pattern(uuid, KEY).find("x-01234567-89ab-cdef-0123-456789abcdef") == "01234567-89ab-cdef-0123-456789abcdef"
