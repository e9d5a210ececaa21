"""Commas that do not end a clause, because what stands behind them is a further item of a list, or an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .finding_terms import Kind, Mention
from .report_cues import Cue, Mark

Event = Mark | Mention

_ENDS_LIST = {Cue.IS, Cue.VERB, Cue.ASSERTED, Cue.END, Cue.DENIED, Cue.UNKNOWN, Cue.DOUBTED, Cue.TURN, Cue.QUESTION,
              Cue.EITHER}
_ENDS_SUBJECT = {Cue.VERB, Cue.ASSERTED, Cue.END, Cue.DOUBTED, Cue.TURN, Cue.QUESTION, Cue.EITHER, Cue.DENIES,
                 Cue.DENIES_ALL, Cue.COLON, Cue.NUMBER}
_ANSWERS = {Cue.DENIED, Cue.UNKNOWN}
_QUESTION_ANSWERS = {*_ANSWERS, Cue.ASSERTED, Cue.NUMBER, Cue.DENIES, Cue.DENIES_ALL, Cue.DOUBTED}
_COUNT = re.compile(r"[ (]*(?:[共各] ?)?(?:\d+ ?[枚个只]?)?[ )]*")
_LONGEST_COUNT = 16  # characters
_LONGEST_LIST = 20  # items
_SHARED_PREDICATE = re.compile(r", ?(?:[均皆都亦也]|其中)")


def with_lists(text: str, events: Sequence[Event], is_disease: Sequence[bool]) -> list[Event]:
    """The events with the commas of lists as links.

    Args:
        text: The folded text.
        events: Cues and mentions in the order of the text.
        is_disease: Whether an event is a mention that names a disease: that is never one of a list of things denied
            behind it, as in `carcinoma, necrosis, and ulceration are absent`.
    """
    items, subjects = _DeniedItems(), _DeniedSubjects(text, events)
    for place, event in enumerate(events):
        if isinstance(event, Mention):
            subjects.has_disease |= is_disease[place]
        else:
            items.see(place, event.cue)
            subjects.see(place, event.cue)
    items.end()
    joined = {*items.joined, *subjects.joined, *_before_answers(text, events)}
    return [Mark(e.start, e.end, Cue.AND) if place in joined else e for place, e in enumerate(events)]


def _before_answers(text: str, events: Sequence[Event]) -> list[int]:
    commas = [place for place, event in enumerate(events) if isinstance(event, Mark) and event.cue == Cue.COMMA]
    return [comma for comma in commas if _is_answered(text, events, comma)]


class _DeniedItems:
    """Commas in `no A, B or C` and `negative for A, B and C`, where no verb stands before the last item."""

    def __init__(self) -> None:
        self.joined: list[int] = []
        self.denial: Cue | None = None
        self.commas: list[int] = []
        self.by_and: list[int] = []  # joined by "and" if no verb follows: `negative for A, and B is present`

    def see(self, place: int, cue: Cue) -> None:
        if cue in (Cue.DENIES, Cue.DENIES_ALL):
            self.denial, self.commas, self.by_and = cue, [], []
        elif cue == Cue.END:
            self.end()
        elif cue in _ENDS_LIST:
            self.denial = None
        elif self.denial:
            self._see_in_list(place, cue)

    def _see_in_list(self, place: int, cue: Cue) -> None:
        if cue == Cue.COMMA:
            self._join(self.by_and)
            self.commas.append(place)
        elif cue == Cue.OR:
            self._join(self.commas)
        elif cue == Cue.AND and self.denial == Cue.DENIES_ALL:
            self.by_and += self.commas
            self.commas = []

    def end(self) -> None:
        if self.denial:
            self._join(self.by_and)
        self.denial = None

    def _join(self, commas: list[int]) -> None:
        self.joined += commas
        commas.clear()


class _DeniedSubjects:
    """Commas in `A, B, and C are not identified`."""

    def __init__(self, text: str, events: Sequence[Event]) -> None:
        self.text, self.events = text, events
        self.joined: list[int] = []
        self.has_disease = False  # since the last comma
        self._begin()

    def _begin(self) -> None:
        self.commas: list[int] = []
        self.is_closed = False  # by an "and" right behind the last comma

    def see(self, place: int, cue: Cue) -> None:
        if cue == Cue.COMMA:
            self.commas = [] if self.has_disease else [*self.commas[-_LONGEST_LIST:], place]
            self.is_closed = self.has_disease = False
        elif cue in (Cue.AND, Cue.OR) and self.commas:
            self.is_closed |= _touches(self.text, self.events[place - 1], self.events[place])
        elif cue in _ANSWERS:
            self.joined += self.commas if self.is_closed else []
            self._begin()
        elif cue in _ENDS_SUBJECT:
            self._begin()


def _is_answered(text: str, events: Sequence[Event], comma: int) -> bool:
    """Whether a comma is one of `necrosis, absent`, `ER, PR: negative`, `lymph nodes (15), negative`, `15枚,均未见`."""
    if _SHARED_PREDICATE.match(text, events[comma].start):
        return True
    before = _mention_before(text, events, comma)
    after = events[comma + 1] if comma + 1 < len(events) else None
    if before is None or after is None or not _touches(text, events[comma], after):
        return False
    return _is_answer(before, after) and (before.kind == Kind.QUESTION or _ends_there(events, comma + 1))


def _is_answer(before: Mention, after: Event) -> bool:
    """Whether what stands behind a comma answers the mention before it, or is a further one with the same answer."""
    if isinstance(after, Mention):
        return before.kind == after.kind == Kind.QUESTION
    return after.cue in (_QUESTION_ANSWERS if before.kind == Kind.QUESTION else _ANSWERS)


def _ends_there(events: Sequence[Event], place: int) -> bool:
    """Whether no mention follows in the clause."""
    following = events[place + 1] if place + 1 < len(events) else None
    return following is None or (isinstance(following, Mark) and following.cue in (Cue.COMMA, Cue.END))


def _mention_before(text: str, events: Sequence[Event], comma: int) -> Mention | None:
    """The mention that ends where a comma stands, with a number between them or not: `淋巴结3枚,`, `nodes (15),`."""
    before = [event for event in events[max(0, comma - 3):comma] if isinstance(event, Mention)]
    if not before or events[comma].start - before[-1].end > _LONGEST_COUNT:
        return None
    return before[-1] if _COUNT.fullmatch(text, before[-1].end, events[comma].start) else None


def _touches(text: str, first: Event, second: Event) -> bool:
    return second.start - first.end <= 1 and not text[first.end:second.start].strip()
