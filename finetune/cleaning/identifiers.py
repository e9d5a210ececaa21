"""Names, numbers, dates and places are masked or removed, by the rules and by the values of the table's own columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .rules import Identifier, ReportPattern

KNOWN = "known_values"  # the rule of values that the columns of the table name
KNOWN_NAME, KNOWN_NUMBER = "[NAME]", "[ID]"
_HAN = re.compile(r"[\u4e00-\u9fff·]+")
_KNOWN_NAME = re.compile(r"(?!.*(?:科|室|院|部|组|中心|未知|不详|患者|病人)$)[\u4e00-\u9fff·]{2,20}|"
                         r"(?=.*[A-Z])[A-Za-z][A-Za-z .,'’-]{2,}")
_KNOWN_NUMBER = re.compile(r"(?=(?:\D*\d){4})\S{5,}")
_LONGEST_PROTECTED = 80  # characters before and after a piece in which something that is never masked may begin or end
_CARD_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999
_CARD_DIGITS = "10X98765432"
_EMPTY_BRACKETS = re.compile(r"[(（【\[][\s,，、;；:：]*[)）】\]]")
# Separators before another one, at an end, or at the beginning of a sentence
_LOOSE = re.compile(r"[,，、;；:：]\s*(?=[,，、;；。\n]|\.(?:\s|$)|$)|(?<=[。\n])\s*[,，、;；:：。]+|(?<=\.)\s+[,;:.]+|"
                    r"(?<=[（(])\s*[,，、;；:：]+|^[\s,，、;；:：。.]+")


@dataclass(frozen=True)
class Masked:
    """An identifier that was found: the rule, and the text that is no longer there."""

    rule: str
    text: str


class Masker:
    """Applies the identifier rules, in their order, to one text after the other."""

    def __init__(self, rules: Sequence[Identifier], protect: ReportPattern | None,
                 doctors: Iterable[str] = ()) -> None:
        """Args: rules; protect: never masked; doctors: names that are masked in every text."""
        self._rules = [rule for rule in rules if rule.action != "keep"]
        self._protect = protect
        marks = {KNOWN_NAME, KNOWN_NUMBER, *(rule.placeholder for rule in rules if rule.placeholder)}
        self._only_placeholders = re.compile(rf"(?:^|(?<=[。.!\n，,；;（(]))\s*(?:(?:{'|'.join(map(re.escape, marks))})"
                                             rf"[\s、:：/]*)+(?=[。.!\n，,；;）)]|$)")
        self._doctors = frozenset(name for name in doctors if _KNOWN_NAME.fullmatch(name))
        self._lengths = sorted({len(name) for name in self._doctors if _HAN.fullmatch(name)}, reverse=True)
        self._beginnings = {name[:2] for name in self._doctors}
        self._latin = [name for name in self._doctors if not _HAN.fullmatch(name)]

    def mask(self, text: str, known: Iterable[str] = ()) -> tuple[str, list[Masked]]:
        """`text` without identifiers, and what was found.

        Args:
            text: A normalised text.
            known: Values of this case that may occur in it: its patient's name, numbers, phones.
        """
        found: list[Masked] = []
        for rule in self._rules:
            if rule.pattern is not None:
                text = self._apply(rule, rule.pattern, text, found)
            if rule.checked is not None:
                text = self._apply(rule, rule.checked, text, found, checked=True)
        text = self._mask_known(text, known, found)  # last, so that a rule still sees the whole name after its label
        return (self.tidy(text) if found else text), found

    def _apply(self, rule: Identifier, pattern: ReportPattern, text: str, found: list[Masked],
               checked: bool = False) -> str:
        if pattern.search(text) is None:
            return text

        def replacement(match: re.Match[str]) -> str:
            begin, end = _identifier_span(match)
            is_wrong_number = checked and not is_identity_card(match[0])
            if is_wrong_number or self._is_protected(text, begin, end):
                return match[0]
            if rule.action == "remove":
                found.append(Masked(rule.name, match[0]))
                return ""
            found.append(Masked(rule.name, text[begin:end]))
            return text[match.start():begin] + rule.placeholder + text[end:match.end()]

        return pattern.sub(replacement, text)

    def tidy(self, text: str) -> str:
        """`text` without what masking leaves: empty brackets, loose separators, clauses of nothing but placeholders."""
        text = self._only_placeholders.sub("", text)
        for _ in range(2):
            text = _LOOSE.sub("", _EMPTY_BRACKETS.sub("", text))
        return re.sub(r"[ \t]{2,}", " ", text).strip()

    def _mask_known(self, text: str, known: Iterable[str], found: list[Masked]) -> str:
        values = {value for value in known if value in text and is_identifying(value)}
        values |= self._doctors_in(text)
        for value in sorted(values, key=len, reverse=True):
            text = self._mask_value(text, value, found)
        return text

    def _mask_value(self, text: str, value: str, found: list[Masked]) -> str:
        """`text` with a placeholder for each `value` in it that is neither protected nor a piece of a longer word."""
        placeholder = KNOWN_NUMBER if any(map(str.isdigit, value)) else KNOWN_NAME
        pieces, begin = [], 0
        at = text.find(value)
        while at >= 0:
            end = at + len(value)
            if not _is_piece(text, at, end) and not self._is_protected(text, at, end):
                pieces += [text[begin:at], placeholder]
                found.append(Masked(KNOWN, value))
                begin = end
            at = text.find(value, end)
        pieces.append(text[begin:])
        return "".join(pieces)

    def _is_protected(self, text: str, begin: int, end: int) -> bool:
        """Whether a piece of a text overlaps something that is never masked, such as an eponym."""
        if self._protect is None:
            return False
        around = self._protect.finditer(text, max(begin - _LONGEST_PROTECTED, 0), end + _LONGEST_PROTECTED)
        return any(begin < match.end() and match.start() < end for match in around)

    def _doctors_in(self, text: str) -> set[str]:
        """The doctors whose names occur in a text. Chinese names are looked up piece by piece: there may be many."""
        names = {name for name in self._latin if name in text}
        for run in _HAN.findall(text) if self._lengths else ():
            for at in range(len(run) - 1):
                if run[at:at + 2] in self._beginnings:
                    names.update({run[at:at + length] for length in self._lengths} & self._doctors)
        return names


def _is_piece(text: str, begin: int, end: int) -> bool:
    """Whether letters or digits go on around a Latin name or a number: it is a piece of a longer one."""
    around = text[max(begin - 1, 0):begin] + text[end:end + 1]
    return text[begin:end].isascii() and any(c.isascii() and c.isalnum() for c in around)


def is_identifying(value: str) -> bool:
    """Whether the value of a column of identifiers is one: a name, or a number of some length, not `外科` or `无`."""
    return bool(_KNOWN_NAME.fullmatch(value) or _KNOWN_NUMBER.fullmatch(value))


def is_identity_card(text: str) -> bool:
    """Whether 18 characters are an identity card number whose last one is its check digit. Separators are ignored."""
    digits = re.sub(r"[^0-9Xx]", "", text).upper()
    if not re.fullmatch(r"\d{17}[\dX]", digits):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(digits[:17], _CARD_WEIGHTS, strict=True))
    return _CARD_DIGITS[total % 11] == digits[17]


def _identifier_span(match: re.Match[str]) -> tuple[int, int]:
    """Where the group `id` of the pattern that matched is, else all of the match."""
    for name in match.groupdict():
        if name.startswith("id_") and match[name] is not None:
            return match.span(name)
    return match.span()
