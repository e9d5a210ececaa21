"""What a report says of the findings it names: a pass over cues and mentions from left to right.

Time is linear in the length of the text: each event is looked at once, and no look around reaches further than 40
characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, zip_longest

from .finding_terms import Kind, Mention
from .report_cues import Cue, Mark, marks
from .report_lists import Event, with_lists
from .report_scope import ABSENT, PRESENT, UNCERTAIN, VERY_NEAR, Scope, Statement, names_disease

_OWN_STATUS = {Kind.DENIAL: ABSENT, Kind.DOUBT: UNCERTAIN}
_BACK = {Cue.DENIED: ABSENT, Cue.UNKNOWN: UNCERTAIN, Cue.ASSERTED: PRESENT, Cue.EITHER: PRESENT}
_AHEAD = {Cue.DENIES: ABSENT, Cue.DENIES_ALL: ABSENT, Cue.DOUBTED: UNCERTAIN}
_SIGNS = {Cue.YES: PRESENT, Cue.NO: ABSENT, Cue.ZERO: ABSENT, Cue.PLUS: PRESENT, Cue.MINUS: ABSENT}
_BEHIND_DASH = {*_BACK, *_AHEAD, Cue.NUMBER, Cue.YES, Cue.NO, Cue.OPEN}
_IN_GAPS = {Cue.DENIED: ABSENT, Cue.UNKNOWN: UNCERTAIN, Cue.DENIES_NEXT: ABSENT, **_AHEAD}
_COUNT_INSIDE = {Cue.OPEN, Cue.CLOSE, Cue.ASSERTED, Cue.PLUS}  # cues that count within a name too
_OF_DISEASE = re.compile(r"pos|involved|弱?阳性|受|见癌|扩增|amplified")  # `found` may be a node
_ASKED = re.compile(r" ?:(?! ?[1-9])")  # `nodes involved: 0`
_PER_FIELD = re.compile(r" ?(?:hpf|per|mm|/|个?高倍)")
_LEADING_NUMBER = re.compile(r"[0-9.]+")


def statements(text: str, found: Sequence[Mention]) -> list[Statement]:
    """What a folded text says of the mentions in it, in their order."""
    events = _events(text, found)
    is_disease = [isinstance(event, Mention) and names_disease(text[event.start:event.end]) for event in events]
    reader = _Reader(text)
    reader.read(with_lists(text, events, is_disease))
    return [statement for statement in reader.statements if statement.status is not None]


class _Reader:
    """Goes through the events of a text once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.statements: list[Statement] = []
        self.scope = Scope()
        self.outer: list[Scope] = []  # of the brackets that are open
        self.handlers: dict[Cue, Callable[[Mark], None]] = {
            Cue.OPEN: self._open_bracket, Cue.CLOSE: self._close_bracket, Cue.END: self._boundary,
            Cue.COMMA: self._boundary, Cue.TURN: self._turn, Cue.NUMBER: self._number,
            Cue.QUESTION: self._question_mark, Cue.COLON: self._colon, Cue.DENIES_NEXT: self._deny_next,
            Cue.AND: self._link, Cue.OR: self._link, Cue.PLACE: self._place}
        self.handlers |= dict.fromkeys(_BACK, self._answer) | dict.fromkeys(_AHEAD, self._look_ahead)
        self.handlers |= dict.fromkeys(_SIGNS, self._sign)

    def read(self, events: Sequence[Event]) -> None:
        for event, following in zip_longest(events, events[1:]):
            if isinstance(event, Mention):
                self._mention(event)
            elif event.cue == Cue.DASH:
                self._dash(event, following)
            elif event.cue in self.handlers:
                self.handlers[event.cue](event)
        self._end_clause(len(self.text))

    # Mentions

    def _mention(self, mention: Mention) -> None:
        self._answer_before_label(mention)
        statement = Statement(mention, self.text[mention.start:mention.end], self._first_status(mention))
        self.statements.append(statement)
        self.scope.take(statement)

    def _answer_before_label(self, mention: Mention) -> None:
        """Let an answer end where the next label or question begins: `神经侵犯:未见脉管癌栓:未见`."""
        pending = self.scope.pending
        if not pending:
            return
        is_label = pending.is_answer and self.text.startswith((":", " :"), mention.end)
        if is_label or mention.kind == Kind.QUESTION:
            self.scope.settle(self.text, mention.start)
            self.scope.ahead = None if is_label else self.scope.ahead

    def _first_status(self, mention: Mention) -> str | None:
        """What the mention itself and the text before it say."""
        in_gaps = self._status_in_gaps(mention)
        own = _OWN_STATUS.get(mention.kind) or in_gaps
        if own:
            return in_gaps if in_gaps == UNCERTAIN else own  # `margins likely negative`
        if mention.kind == Kind.QUESTION:
            return self.scope.answer_before(self.text, mention)
        return self.scope.status_at(mention.start)

    def _status_in_gaps(self, mention: Mention) -> str | None:
        """What a cue in place of `…` says; it may go on behind the gap, as in `切缘[未]见癌`."""
        for start, end in mention.gaps:
            for mark in marks(self.text, start, mention.end):
                status = self._status_in_gap(mark, end)
                if status:
                    return status
        return None

    def _status_in_gap(self, mark: Mark, end: int) -> str | None:
        if mark.start >= end or (mark.cue == Cue.DENIES_NEXT and mark.end != end):
            return None
        return _IN_GAPS.get(mark.cue)

    # Answers behind what they answer

    def _answer(self, mark: Mark) -> None:
        scope, status = self.scope, _BACK[mark.cue]
        if mark.cue == Cue.ASSERTED and _ASKED.match(self.text, mark.end):
            return
        ahead = None if scope.group else self._ahead_of_answer(mark, status)
        self._answer_group(mark, status)
        is_in_name = bool(scope.group) and mark.start < scope.group_end()
        if not is_in_name:  # after `positive lymph nodes` may come 0/12
            scope.end_answer(ahead)

    def _answer_group(self, mark: Mark, status: str) -> None:
        pending = self.scope.pending
        if pending and (status == PRESENT or pending.status == UNCERTAIN):
            self.scope.settle(self.text, mark.start)  # `no tumour seen`, `可疑阳性`
        else:
            self.scope.answer(self.text, mark, self._unless_denied(mark, status))

    def _unless_denied(self, mark: Mark, status: str) -> str | None:
        """ABSENT for `no nodes are positive`, None for `no nodes are found`, and else the status."""
        ahead = self.scope.ahead
        if status != PRESENT or not ahead or ahead[1] != ABSENT:
            return status
        return ABSENT if _OF_DISEASE.match(self.text, mark.start) else None

    def _ahead_of_answer(self, mark: Mark, status: str) -> tuple[Mark, str] | None:
        """What an answer that nothing precedes says of all that follows: `cannot assess LVI`, `absent: LVI`,
        `positive for ER and PR`. Of a mention right behind it every answer speaks: `free margins`."""
        self.scope.before = (mark, status)
        is_label = mark.cue == Cue.DENIED and self.text.startswith((":", " :"), mark.end)
        is_for = mark.cue == Cue.ASSERTED and self.text.startswith(" for", mark.end)
        return (mark, status) if is_label or is_for or mark.cue == Cue.UNKNOWN else None

    def _question_mark(self, mark: Mark) -> None:
        self.scope.answer(self.text, mark, UNCERTAIN)
        self.scope.group = []

    def _number(self, mark: Mark) -> None:
        scope, status = self.scope, self._number_status(mark)
        scope.answer(self.text, mark, status)
        if status and not scope.group:
            scope.before = (mark, status)

    def _number_status(self, mark: Mark) -> str | None:
        """PRESENT for 3/12 or 40%, ABSENT for 0/12, 0% or <1%, None for counts of mitoses."""
        if _PER_FIELD.match(self.text, mark.end):
            return None
        value = float(_LEADING_NUMBER.search(self.text, mark.start)[0])
        is_below = self.text[mark.start] in "<≤" and value <= 1
        return ABSENT if value == 0 or is_below else PRESENT

    def _sign(self, mark: Mark) -> None:
        scope = self.scope
        if scope.group and (scope.is_label(self.text, mark.start) or scope.is_beside(self.text, mark)):
            scope.answer(self.text, mark, _SIGNS[mark.cue])
            scope.group = []

    def _dash(self, mark: Mark, following: Event | None) -> None:
        """A dash between blanks is a colon before an answer, a minus sign behind a test, and else ends a clause."""
        scope = self.scope
        touches = following is not None and following.start - mark.end <= 1
        if touches and isinstance(following, Mark) and following.cue in _BEHIND_DASH:
            scope.label_end = mark.end
        elif touches and self._is_minus(mark):
            scope.answer(self.text, mark, ABSENT)
            scope.group = []
        else:
            self._next_clause(mark.start)

    def _is_minus(self, dash: Mark) -> bool:
        """Whether a dash stands right behind the name of a test."""
        group = self.scope.group
        return bool(group) and group[-1].is_question and dash.start - self.scope.group_end() <= 1

    # Cues that reach ahead, and what limits them

    def _look_ahead(self, mark: Mark) -> None:
        scope, status = self.scope, _AHEAD[mark.cue]
        if self._is_denied_doubt(mark):
            return
        scope.settle(self.text, mark.start)
        is_answer = scope.is_label(self.text, mark.start) and self.text[scope.label_end - 1] in ":-"
        if is_answer and self._is_chinese_word(mark):
            scope.answer(self.text, mark, status)  # `脉管癌栓:无 神经侵犯:有`
            scope.ahead, scope.group = None, []
        else:
            scope.look_ahead(mark, status, is_answer)

    def _is_denied_doubt(self, mark: Mark) -> bool:
        """Whether a doubt, or one more denial, belongs to a denial, as in `no suspicious calcification`."""
        scope = self.scope
        if scope.ahead is None or scope.has_mention or mark.start - scope.ahead[0].end > VERY_NEAR:
            return False
        return scope.ahead[1] == ABSENT

    def _is_chinese_word(self, mark: Mark) -> bool:
        """Whether a cue is Chinese and a blank ends it."""
        return self.text[mark.end - 1] > "z" and self.text.startswith(" ", mark.end)

    def _colon(self, mark: Mark) -> None:
        self.scope.label_end = mark.end

    def _deny_next(self, mark: Mark) -> None:
        self.scope.denied_at = mark.end

    def _link(self, mark: Mark) -> None:
        self.scope.is_linked, self.scope.in_place = True, False

    def _place(self, mark: Mark) -> None:
        scope = self.scope
        scope.in_place = True
        if self.text.startswith(("in ", "within "), mark.start):  # `no response in the carcinoma`
            scope.has_mention = True

    def _turn(self, mark: Mark) -> None:
        scope = self.scope
        scope.settle(self.text, mark.start)
        scope.group, scope.ahead, scope.is_linked, scope.in_place = [], None, False, False

    # Clauses and brackets

    def _boundary(self, mark: Mark) -> None:
        if self.outer and self.text[mark.start] != "\n":
            self._next_clause(mark.start)
        else:
            self._end_clause(mark.start)

    def _open_bracket(self, mark: Mark) -> None:
        self.outer.append(self.scope)
        self.scope = Scope(ahead=self.scope.ahead, group=self.scope.group, label_end=mark.end)

    def _close_bracket(self, mark: Mark) -> None:
        if not self.outer:  # `1) ... 2) ...`
            self._end_clause(mark.start)
            return
        self.scope.settle(self.text, mark.start)
        inner, self.scope = self.scope, self.outer.pop()
        if not self.scope.group and self.text.startswith((":", " :"), mark.end):  # `MVI (microvascular invasion): no`
            self.scope.group = inner.group
        else:
            self.scope.join_bracket(inner.group)

    def _next_clause(self, at: int) -> None:
        """Begin a clause within a bracket, or behind a dash."""
        self.scope.settle(self.text, at)
        outer = self.outer[-1] if self.outer else Scope()
        self.scope = Scope(ahead=outer.ahead, group=outer.group)

    def _end_clause(self, at: int) -> None:
        scope = self.scope
        scope.settle(self.text, at)
        if scope.is_label(self.text, at):
            for statement in filter(lambda statement: statement.is_name, scope.group):
                statement.status = None  # a label without an answer says nothing
        self.scope, self.outer = Scope(), []


def _events(text: str, found: Sequence[Mention]) -> list[Event]:
    """Cues and mentions by place, without the cues that are part of a name (`三阴性`)."""
    names: list[tuple[int, int]] = []
    events: list[Event] = []
    for mention in found:
        if mention.kind in (Kind.NAME, Kind.IGNORED):
            names += _fixed_parts(mention)
        if mention.kind != Kind.IGNORED:
            events.append(mention)
    events += _outside(sorted(names), marks(text))
    return sorted(events, key=lambda event: (event.start, isinstance(event, Mention)))


def _outside(parts: Sequence[tuple[int, int]], cues: Iterable[Mark]) -> Iterator[Mark]:
    """The cues that do not begin in one of the parts of a text, which are sorted."""
    begins = [begin for begin, _ in parts]
    ends = list(accumulate((end for _, end in parts), max))  # the furthest end of the parts up to each
    for mark in cues:
        place = bisect_right(begins, mark.start) - 1
        if place < 0 or mark.start >= ends[place] or mark.cue in _COUNT_INSIDE:
            yield mark


def _fixed_parts(mention: Mention) -> list[tuple[int, int]]:
    """The parts of a mention that are no gaps."""
    begins = [mention.start, *(end for _, end in mention.gaps)]
    ends = [*(start for start, _ in mention.gaps), mention.end]
    return list(zip(begins, ends, strict=True))
