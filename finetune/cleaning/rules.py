"""The rules of cleaning, read from a YAML file that users copy and change; the shipped one is rules.yaml."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..config.yaml_file import load_plain_yaml
from ..data.columns import simple_name
from ..data.patterns import LimitedPattern, repeats_too_much

SHIPPED = Path(__file__).parent / "rules.yaml"
SCOPES = ("sentence", "clause", "phrase", "bracket", "to_sentence_end", "to_end")
ACTIONS = ("mask", "remove", "keep")
_KEYS = ("keep_sections", "sections", "drop", "identifiers", "known_columns", "protect", "words", "placeholders")
_COMPARE = "compare with python -m finetune.labels --write_rules FILE"
_WORD = re.compile(r"\{([a-z_]+)\}")
_MAX_NESTING = 12  # of words in words
_MAX_PATTERN = 1_000_000  # characters with all words inserted
# The shipped patterns have been tried and are compiled by `re`, which is faster; others have a limit of time.
ReportPattern = re.Pattern[str] | LimitedPattern


@dataclass(frozen=True)
class Section:
    """A part of a report: the columns that hold nothing else, and the headings that begin it inside a text; only those
    at the beginning of a line if not `inline`."""

    columns: tuple[str, ...]
    headings: tuple[str, ...]
    inline: bool = True


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: rules are the key of a cache
class DropRule:
    """What is left out of a text: one pattern for each scope that the rule uses."""

    name: str
    patterns: Mapping[str, ReportPattern]


@dataclass(frozen=True)
class Identifier:
    """A kind of identifier.

    Attributes:
        action: mask (a group `id` alone, or all of a match), remove or keep.
        pattern: None without patterns.
        checked: Pattern of numbers that count if the check digit of an identity card is right; None without.
    """

    name: str
    action: str
    placeholder: str
    pattern: ReportPattern | None
    checked: ReportPattern | None


@dataclass(frozen=True)
class Rules:
    """All rules of one file."""

    keep_sections: tuple[str, ...]
    sections: Mapping[str, Section]
    drop: tuple[DropRule, ...]
    identifiers: tuple[Identifier, ...]
    patient_columns: frozenset[str]
    doctor_columns: frozenset[str]
    protect: ReportPattern | None
    placeholders: frozenset[str]

    @classmethod
    def load(cls, path: str | Path = SHIPPED, keep_sections: Iterable[str] = ()) -> Rules:
        """Read a rules file.

        Args:
            path: YAML as the shipped rules.yaml.
            keep_sections: In place of the file's, if any.

        Raises:
            UserError: Naming the rule, for anything that cannot be used: unknown keys, a pattern that is none.
        """
        return _Reader(path).rules(tuple(keep_sections))


def simplify_name(name: str) -> str:
    """A placeholder or text without case, white space, brackets and punctuation."""
    return re.sub(r"[\W_]+", "", name).casefold()


class _Reader:
    """Reads and checks one file."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self.sources: list[str] = []  # of what has been compiled
        content = load_plain_yaml(path)
        self._content: dict[str, Any] = self._mapping(content, "the file", _KEYS)
        self._words = self._content.get("words") or {}
        if not isinstance(self._words, dict) or not all(isinstance(w, str) for w in self._words.values()):
            raise self._error("words is not a mapping of names to patterns")

    def rules(self, keep_sections: tuple[str, ...]) -> Rules:
        sections = {name: self._section(name, entry) for name, entry in self._entries("sections")}
        keep = keep_sections or tuple(self._texts(self._content.get("keep_sections"), "keep_sections"))
        for name in keep:
            self._known(name, sections, "section")
        if not keep:
            raise self._error("keep_sections names no section")
        columns = self._mapping(self._content.get("known_columns") or {}, "known_columns", ("patient", "doctor"))
        named = {kind: frozenset(map(simple_name, self._texts(names, f"known_columns.{kind}")))
                 for kind, names in columns.items()}
        protect = self._texts(self._content.get("protect"), "protect")
        placeholders = self._texts(self._content.get("placeholders"), "placeholders")
        return Rules(
            keep_sections=keep,
            sections=sections,
            drop=tuple(self._drop_rule(name, entry) for name, entry in self._entries("drop")),
            identifiers=tuple(self._identifier(name, entry) for name, entry in self._entries("identifiers")),
            patient_columns=named.get("patient", frozenset()),
            doctor_columns=named.get("doctor", frozenset()),
            protect=self._pattern(protect, "protect"),
            placeholders=frozenset(map(simplify_name, placeholders)) | {""},
        )

    def _section(self, name: str, entry: Any) -> Section:
        fields = self._mapping(entry, f"sections.{name}", ("columns", "headings", "inline"))
        if fields.get("inline", "yes") not in ("yes", "no"):
            raise self._error(f"sections.{name}.inline is {fields['inline']!r}, expected yes or no")
        columns, headings = (tuple(self._texts(fields.get(key), f"sections.{name}.{key}"))
                             for key in ("columns", "headings"))
        return Section(columns, headings, fields.get("inline", "yes") == "yes")

    def _drop_rule(self, name: str, entry: Any) -> DropRule:
        fields = self._mapping(entry, f"drop.{name}", SCOPES)
        patterns = {}
        for scope in SCOPES:
            pattern = self._pattern(self._texts(fields.get(scope), f"drop.{name}.{scope}"), f"drop.{name}.{scope}")
            if pattern is not None:
                patterns[scope] = pattern
        return DropRule(name, patterns)

    def _identifier(self, name: str, entry: Any) -> Identifier:
        where = f"identifiers.{name}"
        fields = self._mapping(entry, where, ("action", "placeholder", "patterns", "checked_patterns"))
        action, placeholder = fields.get("action", "mask"), fields.get("placeholder", "")
        if action not in ACTIONS:
            raise self._error(f"{where}.action is {action!r}, expected {', '.join(ACTIONS)}")
        if not isinstance(placeholder, str) or (action == "mask" and not placeholder.strip()):
            raise self._error(f"{where}.placeholder is empty")
        pattern, checked = (self._pattern(self._texts(fields.get(key), f"{where}.{key}"), f"{where}.{key}")
                            for key in ("patterns", "checked_patterns"))
        return Identifier(name, action, placeholder, pattern, checked)

    def _pattern(self, patterns: list[str], where: str) -> ReportPattern | None:
        """One pattern of all, tried in their order; each keeps its groups under names of its own."""
        if not patterns:
            return None
        parts = []
        for number, pattern in enumerate(patterns):
            part = self._with_words(pattern, where)
            if repeats_too_much(part):
                raise self._error(f"{where}[{number}] repeats too much")
            self._compiled(part, f"{where}[{number}]")
            part, flags = _inline_flags(part)
            part = re.sub(r"\(\?P<(\w+)>", rf"(?P<\1_{number}>", part)
            part = re.sub(r"\(\?P=(\w+)\)", rf"(?P=\1_{number})", part)
            parts.append(f"(?{flags}:{part})")
        return self._compiled("|".join(parts), where)

    def _compiled(self, pattern: str, where: str) -> ReportPattern:
        try:
            compiled = self._limited(pattern, where)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._error(f"{where} is not a regular expression ({error})") from None
        if compiled.search("") and compiled.search("甲乙 ab 12"):
            raise self._error(f"{where} matches every text")
        return compiled

    def _limited(self, pattern: str, where: str) -> ReportPattern:
        self.sources.append(pattern)
        if self._path is SHIPPED or pattern in _shipped_patterns():
            return re.compile(pattern)
        return LimitedPattern(pattern, self._path, where)

    def _with_words(self, pattern: str, where: str) -> str:
        """`pattern` with each {word} replaced by its pattern."""
        for _ in range(_MAX_NESTING):
            if not _WORD.search(pattern):
                return pattern
            pattern = _WORD.sub(lambda word: f"(?:{self._word(word[1], where)})", pattern)
            if len(pattern) > _MAX_PATTERN:
                break
        raise self._error(f"{where} uses words that contain themselves")

    def _word(self, name: str, where: str) -> str:
        self._known(name, self._words, f"word in {where}")
        return self._words[name]

    def _entries(self, key: str) -> list[tuple[str, Any]]:
        return list(self._mapping(self._content.get(key) or {}, key, None).items())

    def _mapping(self, value: Any, where: str, keys: Iterable[str] | None) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(f"{where} is not a mapping")
        if keys is not None:
            for key in value:
                self._known(key, tuple(keys), f"key in {where}")
        return value

    def _texts(self, value: Any, where: str) -> list[str]:
        """A list of texts, [] for none."""
        value = [] if value in (None, "", "null") else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self._error(f"{where} is not a list of texts")
        return value

    def _known(self, name: str, names: Iterable[str], kind: str) -> None:
        if name not in names:
            similar = difflib.get_close_matches(name, list(names), 1)
            hint = f", did you mean {similar[0]}?" if similar else f"; known: {', '.join(names)}"
            raise self._error(f"unknown {kind}: {name}{hint}")

    def _error(self, problem: str) -> UserError:
        return UserError(self._path, problem, _COMPARE)


@functools.cache
def _shipped_patterns() -> frozenset[str]:
    """With words inserted, alone and joined."""
    reader = _Reader(SHIPPED)
    reader.rules(())
    return frozenset(reader.sources)


def _inline_flags(pattern: str) -> tuple[str, str]:
    """(pattern without a leading (?i), its flags): a flag may not stand inside a larger pattern."""
    flags = re.match(r"\(\?([aimsx]+)\)", pattern)
    return (pattern[flags.end():], flags[1]) if flags else (pattern, "")
