"""A text as sentences of clauses, and what the drop rules leave of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .rules import DropRule

# A sentence does not end inside brackets, at a decimal point, in `H. pylori` or after an abbreviation
_BRACKETS = r"\([^()]*(?:\([^()]*\)[^()]*)*\)|（[^（）]*(?:（[^（）]*）[^（）]*)*）"
_ABBREVIATIONS = "".join(rf"(?<!\b{word})" for word in (
    "[A-Za-z]", "Dr", "Mr", "Ms", "Mrs", "vs", "No", "approx", r"e\.g", r"i\.e", "cf", "St", "Fig"))
_SENTENCE_END = rf"[。！!？?\n]+|{_ABBREVIATIONS}\.(?=\s|$)"
_ENDS = re.compile(rf"{_BRACKETS}|(?P<sentence>{_SENTENCE_END})|(?P<clause>[；;，]|,(?!\d\d\d\b))")
_BRACKET = re.compile(_BRACKETS)
_ITEM = re.compile(r"\s*(?:[(（]?\d{1,2}[.、)）．](?!\d)|[(（]\d{1,2}[)）]|[①-⑳]|[A-Z][.)](?=\s))\s*")
_EMPTY_ITEM = re.compile(rf"(?:^|(?<=[;；,，])){_ITEM.pattern}$")
_SEPARATORS = " ,，;；、:："
_CACHED = 1 << 16  # different sentences: reports repeat theirs


@dataclass(frozen=True)
class Removed:
    """A piece of a text that a rule left out."""

    rule: str
    text: str


@dataclass(frozen=True)
class _Clause:
    text: str
    end: str  # the punctuation after it


def drop(text: str, rules: Sequence[DropRule]) -> tuple[str, list[Removed]]:
    """`text` without what the rules leave out, and the pieces left out in their order.

    Sentences that lose their last clause keep their full stop; a text of which nothing is left is ''.
    """
    removed: list[Removed] = []
    kept: list[str] = []
    begin = 0
    for sentence in _sentences(text):
        cut = _first_match(sentence, rules, "to_end")
        if cut is not None:
            rule, at = cut
            sentence, rest = sentence[:at], text[begin + at:]
            kept.append(_judge(sentence, tuple(rules))[0])
            removed.append(Removed(rule, rest.strip()))
            break
        begin += len(sentence)
        remaining, pieces = _judge(sentence, tuple(rules))
        kept.append(remaining)
        removed += pieces
    return ("".join(kept).strip() if removed else text), removed


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text, each with its end; together they are the text."""
    begin = 0
    for match in _ENDS.finditer(text):
        if match["sentence"] and not _ITEM.fullmatch(text, begin, match.end()):
            yield text[begin:match.end()]
            begin = match.end()
    if begin < len(text):
        yield text[begin:]


@lru_cache(_CACHED)
def _judge(sentence: str, rules: tuple[DropRule, ...]) -> tuple[str, tuple[Removed, ...]]:
    """What the rules leave of a sentence with its end, and the rest."""
    removed: list[Removed] = []
    body, end = _split_end(sentence)
    body = _without_brackets(body, rules, removed)
    rule = _matching(rules, "sentence", body)
    if rule is not None:
        return "", (*removed, Removed(rule.name, (body + end).strip()))

    cut = _first_match(body, rules, "to_sentence_end")
    if cut is not None:
        rule_name, at = cut
        next_item = _next_item(body, at)
        removed.append(Removed(rule_name, (body[at:] + end if next_item is None else body[at:next_item]).strip()))
        body = body[:at] if next_item is None else _joined(body[:at], body[next_item - 1:])
    body = _kept_clauses(body, rules, removed)
    if not removed:
        return sentence, ()
    body = _EMPTY_ITEM.sub("", body).rstrip(_SEPARATORS)
    is_empty = not _without_item(body).strip(" .。,，;；、:：")
    return "" if is_empty else body + end, tuple(removed)


def _split_end(sentence: str) -> tuple[str, str]:
    body = sentence.rstrip("。！!？?\n. ")
    return body, sentence[len(body):]


def _kept_clauses(body: str, rules: tuple[DropRule, ...], removed: list[Removed]) -> str:
    kept = []
    for clause in _clauses(body):
        text = _cut_phrases(clause.text, rules, removed)
        if not text.strip(" :："):
            continue
        rule = _matching(rules, "clause", text)
        if rule is None:
            kept += [text, clause.end]
            continue
        removed.append(Removed(rule.name, text.strip()))
        item = _ITEM.match(text)
        if item:  # the number of its list item belongs to the clauses after it too
            kept.append(item[0])
    return "".join(kept)


def _joined(before: str, after: str) -> str:
    """The items of a list around a removed piece; `after` begins with the separator of its first item."""
    before = _EMPTY_ITEM.sub("", before).rstrip(_SEPARATORS)
    return before + after if before else after[1:]


def _next_item(body: str, at: int) -> int | None:
    """Where the item after the one at `at` begins in a list of several in one sentence; None if there is none."""
    begin, in_list = 0, False
    for clause in _clauses(body):
        is_item = _ITEM.match(clause.text) is not None
        if in_list and is_item and begin > at:
            return begin
        in_list = in_list or is_item
        begin += len(clause.text) + len(clause.end)
    return None


def _matching(rules: Sequence[DropRule], scope: str, text: str) -> DropRule | None:
    """The first rule that has a pattern of this scope that matches, `^` being the first word after an item's number."""
    text = _without_item(text)
    for rule in rules:
        if scope in rule.patterns and rule.patterns[scope].search(text):
            return rule
    return None


def _clauses(body: str) -> Iterator[_Clause]:
    begin = 0
    for match in _ENDS.finditer(body):
        if match["clause"]:
            yield _Clause(body[begin:match.start()], match[0])
            begin = match.end()
    yield _Clause(body[begin:], "")


def _cut_phrases(text: str, rules: tuple[DropRule, ...], removed: list[Removed]) -> str:
    for rule in rules:
        if "phrase" in rule.patterns:
            pieces = [match[0] for match in rule.patterns["phrase"].finditer(text)]
            if pieces:
                removed += [Removed(rule.name, piece.strip()) for piece in pieces]
                text = rule.patterns["phrase"].sub("", text)
    return text


def _first_match(body: str, rules: Sequence[DropRule], scope: str) -> tuple[str, int] | None:
    """(rule, where its match begins) of the first clause in which a pattern of this scope matches; None if there is
    none. `^` is the beginning of the clause, after the number of a list item."""
    begin = 0
    for clause in _clauses(body):
        text = _without_item(clause.text)
        at = begin + len(clause.text) - len(text)
        for rule in rules:
            match = rule.patterns[scope].search(text) if scope in rule.patterns else None
            if match:
                return rule.name, at + match.start()
        begin += len(clause.text) + len(clause.end)
    return None


def _without_brackets(text: str, rules: Sequence[DropRule], removed: list[Removed]) -> str:
    def judged(bracket: re.Match[str]) -> str:
        inside = bracket[0][1:-1]
        for rule in rules:
            if "bracket" in rule.patterns and rule.patterns["bracket"].search(inside):
                removed.append(Removed(rule.name, bracket[0]))
                return ""
        return _cut_bracket(bracket[0], rules, removed)

    return _BRACKET.sub(judged, text)


def _cut_bracket(bracket: str, rules: Sequence[DropRule], removed: list[Removed]) -> str:
    """A bracket without what reaches to the end of a sentence, which inside it ends with it."""
    inside = bracket[1:-1]
    cut = _first_match(inside, rules, "to_sentence_end")
    if cut is None:
        return bracket
    rule, at = cut
    removed.append(Removed(rule, inside[at:]))
    rest = inside[:at].rstrip(_SEPARATORS)
    num_open = sum(map(rest.count, "(（")) - sum(map(rest.count, ")）"))
    return f"{bracket[0]}{rest}{bracket[-1] * (num_open + 1)}" if rest else ""


def _without_item(clause: str) -> str:
    """A clause without the number of its list item."""
    item = _ITEM.match(clause)
    return clause[item.end():] if item else clause
