"""What is known at a place in a clause of a report: the cue that reaches it, and the mentions an answer speaks of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .finding_terms import Kind, Mention
from .report_cues import Cue, Mark

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
NEAR, VERY_NEAR = 40, 16  # characters: how far an answer may stand from what it answers
_LONGEST_LIST = 20  # mentions
# What "no carcinoma at the margin" may name without taking the denial away from the margin
_DISEASE = re.compile(r"癌|瘤|转移|[dl]cis|carcinoma|tumou?r|malignan|metasta|cancer|neoplas|sarcoma|lymphoma|melanoma")
_SIGNED = re.compile(r"\+|阳性|(?<![a-z])positive")
_BETWEEN_NAME_AND_SIGN = re.compile(r"[ :(弱中强约<>%0-9]*")


@dataclass
class Statement:
    """A mention, and what is said of it so far; None for a question without an answer.

    Attributes:
        mention: Where and what.
        text: Its part of the folded text.
        status: PRESENT, ABSENT, UNCERTAIN or None.
    """

    mention: Mention
    text: str
    status: str | None = None

    @property
    def is_question(self) -> bool:
        return self.mention.kind == Kind.QUESTION

    @property
    def is_name(self) -> bool:
        return self.mention.kind == Kind.NAME

    def answer(self, status: str, cue: Cue, is_direct: bool) -> None:
        """Take an answer that stands behind the mention. The first one to a question counts.

        Args:
            status: What it says.
            cue: What kind of answer it is.
            is_direct: Whether it stands right behind the colon or in the bracket.
        """
        if self.is_question:
            self.status = self.status or status
        if not self.is_name or status == PRESENT:
            return
        has_own_sign = bool(_SIGNED.search(self.text))  # in `ER(+) PR(-)` the minus is not of ER
        if is_direct or cue in (Cue.NUMBER, Cue.ZERO) or not has_own_sign:
            self.status = status


def names_disease(text: str) -> bool:
    """Whether a piece of folded text names a tumour or a metastasis."""
    return bool(_DISEASE.search(text))


class Pending(NamedTuple):
    """A cue that speaks of what follows, or, if nothing follows, of the group before it."""

    mark: Mark
    status: str
    group: list[Statement]
    is_answer: bool

    def names(self, finding: str) -> bool:
        """Whether a mention before the cue is of a finding."""
        return any(statement.mention.finding == finding for statement in self.group)

    def goes_on_at(self, statement: Statement) -> bool:
        """Whether a mention behind the cue is part of the answer to what stands before it: `margins: no carcinoma`."""
        if self.names(statement.mention.finding):
            return True
        return names_disease(statement.text) and all(other.is_question for other in self.group)


@dataclass
class Scope:
    """What is known at a place in a clause.

    Attributes:
        ahead: The cue that speaks of what follows and its status, or None.
        has_mention: Whether anything was mentioned since that cue.
        in_place: Whether a preposition stands between that cue and what follows.
        denied_at: Where `non-` or the like ends.
        group: The mentions an answer would speak of: the last one, and those it is joined to.
        is_linked: Whether "and" or the like joins the next mention to the group.
        label_end: Where the last colon or opening bracket ends: an answer may follow.
        pending: A cue that has found nothing ahead of it yet.
        before: An answer that stands before its question: `0/12 lymph nodes`, `negative margins`.
    """

    ahead: tuple[Mark, str] | None = None
    has_mention: bool = False
    in_place: bool = False
    denied_at: int = -1
    group: list[Statement] = field(default_factory=list)
    is_linked: bool = False
    label_end: int = -1
    pending: Pending | None = None
    before: tuple[Mark, str] | None = None

    @property
    def is_out_of_reach(self) -> bool:
        """Whether what follows says where something is, or is not: `no necrosis in the DCIS`."""
        return self.in_place and self.has_mention

    def status_at(self, place: int) -> str:
        """What the text before a place says of a finding that is named there."""
        if place == self.denied_at:
            return ABSENT
        if self.before and place - self.before[0].end <= 1:  # `absent LVI`
            return self.before[1]
        return PRESENT if self.is_out_of_reach or not self.ahead else self.ahead[1]

    def group_end(self) -> int:
        """Where the last mention of the group ends."""
        return self.group[-1].mention.end

    def take(self, statement: Statement) -> None:
        """Go past a mention."""
        if self.pending and not self.pending.goes_on_at(statement):
            self.pending = None
        if self.group and self._joins(statement):
            self.group = [*self.group[-_LONGEST_LIST:], statement]
        elif statement.is_question or not self.is_out_of_reach:
            self.group = [statement]
        self.is_linked, self.has_mention, self.label_end, self.before = False, True, -1, None

    def end_answer(self, ahead: tuple[Mark, str] | None) -> None:
        """Go past an answer and what it speaks of."""
        self.group, self.is_linked, self.in_place, self.pending, self.ahead = [], False, False, None, ahead

    def join_bracket(self, inner: list[Statement]) -> None:
        """Go past a bracket that ends with a group: one that was answered in it, or `lymphovascular invasion (LVI)`."""
        if inner is self.group:
            return
        own = {statement.mention.finding for statement in self.group}
        same = [statement for statement in inner if statement.mention.finding in own]
        self.group = [*self.group, *same] if inner else []

    def _joins(self, statement: Statement) -> bool:
        """Whether a mention shares the answer of the group before it."""
        distance = statement.mention.start - self.group_end()
        if distance < 0:  # `lymphovascular or perineural invasion`
            return True
        if statement.mention.finding == self.group[-1].mention.finding and self.label_end >= self.group_end():
            return True  # `nodes involved: nodes not submitted`
        if self.is_linked:
            return distance <= NEAR
        return distance <= 1 and statement.is_question and self.group[-1].is_question  # `ER PR阳性`

    def look_ahead(self, mark: Mark, status: str, is_answer: bool) -> None:
        """Go past a cue that speaks of what follows."""
        self.pending = Pending(mark, status, self.group, is_answer) if self.group else None
        self.ahead, self.has_mention, self.in_place, self.is_linked = (mark, status), False, False, False

    def is_label(self, text: str, at: int) -> bool:
        """Whether nothing stands between the last colon or opening bracket and a place."""
        begin = self.label_end
        return begin >= 0 and at - begin <= NEAR and not text[begin:at].strip()

    def answer(self, text: str, mark: Mark, status: str | None) -> None:
        """Let a cue answer the group; None says nothing."""
        if status:
            answer_all(self.group, status, mark.cue, self.is_label(text, mark.start))

    def settle(self, text: str, at: int) -> None:
        """Let a cue that found nothing ahead of it up to a place speak of what stands before it."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        end = pending.mark.end
        is_last = at - end <= NEAR and not text[end:at].strip()
        group = [s for s in pending.group if s.is_question or is_last or pending.is_answer]
        answer_all(group, pending.status, pending.mark.cue, pending.is_answer)

    def answer_before(self, text: str, question: Mention) -> str | None:
        """The answer of `0/12 lymph nodes`, `negative margins`, `no carcinoma at the margin`, `positive for ER`."""
        if self.before and question.start - self.before[0].end <= VERY_NEAR:
            return self.before[1]
        if not self.ahead:
            return None
        mark, status = self.ahead
        is_of_questions = status == PRESENT or self.in_place or text.startswith(("neg", "not involve"), mark.start)
        return status if is_of_questions else None

    def is_beside(self, text: str, mark: Mark) -> bool:
        """Whether a sign stands right behind the group, or a word alone does (`脉管癌栓 否`)."""
        begin = self.group_end()
        if mark.start - begin > VERY_NEAR:
            return False
        if mark.cue in (Cue.PLUS, Cue.MINUS):
            return bool(_BETWEEN_NAME_AND_SIGN.fullmatch(text, begin, mark.start))
        is_alone = text[begin:mark.start] == " " and not text[mark.end:mark.end + 1].isalnum()
        return is_alone and mark.cue in (Cue.YES, Cue.NO)


def answer_all(group: Sequence[Statement], status: str, cue: Cue, is_direct: bool) -> None:
    """Give an answer to each of a group."""
    for statement in group:
        statement.answer(status, cue, is_direct)
