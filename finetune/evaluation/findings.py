"""What a report says of each finding: present, absent, uncertain, or nothing. By words, with the scope of negations.

A rule-based reader in the manner of NegEx (Chapman et al. 2001) for Chinese and English: a negation reaches the phrases
of its own clause. A caption may share every word with its reference and say the opposite; here that is counted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.files import expand
from ..config.yaml_file import load_plain_yaml
from .text_metrics import Statistic, mean_of

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
SHIPPED = Path(__file__).parent / "dictionaries"
FINDING_SCORES = ("finding_presence_precision", "finding_presence_recall", "finding_absence_precision",
                  "finding_absence_recall", "finding_contradictions")
# A clause ends here, but not inside brackets (`ER(+, 90%)`), at a decimal point, in `H. pylori`, or within a list of
# what is denied: `no A, B, or C`, `negative for A, B and C`; `淋巴结15枚,均未见癌转移` speaks of one thing.
_CLAUSE_END = re.compile(r"\([^()]*\)|(,(?!\s*[均皆])|[;。!?\n]|(?<!\b[b-hj-z])\.(?!\d))")
_VERBLESS = r"(?:(?!\b(?:present|positive|identified|seen|is|are|with)\b)[^;.。\n])*"
_LIST = re.compile(rf",{_VERBLESS}\b(?:or|nor)\b|\b(?:negative for|absence of|free of|without)\b{_VERBLESS}\band\b")
# ... and a negation reaches no further than a word like these
_TURN = re.compile(r"但|(?<!未)可见|见有|伴有?|而(?!且)|阳性|\(\+|\b(?:but|however|although|yet|except)\b")
_NO_BEFORE = re.compile(
    r"未(?:能)?(?:明确|明显)?(?:见|发现|查见|检见|检出|累及|侵及|侵犯|浸润|突破|找到|提示|显示|及|证实|示)"
    r"|没有|不伴|不见|否认|缺乏|(?<!有)无(?!法|定形|蒂)|除外|排除|[未不]$"
    r"|\b(?:no|not(?! only)|without|negative for|absence of|free of|den(?:y|ies|ied)|lack(?:s|ing)?|neither|nor|"
    r"excludes?|uninvolved by|clear of|rather than)\b|\bnon[- ]?$")
_NO_AFTER = re.compile(
    r"^[\s:]*(?:\(\s*(?:-|阴性|neg\w*|0)\s*[,)]|-(?!\w))|阴性|\(\s*0\s*/\s*\d+"
    r"|(?:未见|未查见|未发现|未检出|未累及|不存在|缺如|除外|排除|无)(?:明显|明确)?\s*$"
    r"|\b(?:not|never) (?:\w+ ){0,2}?(?:identified|seen|present|observed|found|detected|evident|noted|involved)\b"
    r"|\babsent\b|\bnegative\b(?! for)|\b(?:ruled out|excluded)\b")
_UNSURE = re.compile(
    r"不(?:能)?(?:完全)?(?:除外|排除)|无法(?:完全)?(?:除外|排除)|未(?:能)?(?:除外|排除)|待(?:排|除外|查)"
    r"|可疑|疑|考虑|倾向|可能|\?|\bsusp\w+|\bpossibl\w+|\bprobabl\w+|\bfavou?r\w*|\bequivocal|\bindeterminate"
    r"|\bquestionable|\b(?:can(?:not| not)|could not|not) (?:be )?(?:entirely |completely )?(?:exclude|rule)d?\b")
# ends what a negation behind a phrase reaches back to
_SAID = re.compile(r"\+|阳性|可见|\b(?:present|positive|identified|seen)\b")


@dataclass(frozen=True)
class Finding:
    """A finding: what asserts it, and what denies it outright, as `HER2(0)` does."""

    phrases: re.Pattern[str]
    negations: re.Pattern[str] | None


@dataclass(frozen=True)
class FindingDictionary:
    """Findings by name."""

    findings: dict[str, Finding]

    @classmethod
    def load(cls, names: Iterable[str]) -> FindingDictionary:
        """From YAML files, or by the name of a shipped one: {finding: {phrases: [...], negations: [...]}}. A name that
        stands in several has the phrases of all. In a phrase a blank is any white space or colon or none, and `…` is up
        to 12 characters of the same clause. Raises UserError."""
        merged: dict[str, dict[str, list[str]]] = {}
        for name in names:
            path = SHIPPED / f"{name}.yaml"
            path = path if path.is_file() else expand(name)
            if not path.is_file():
                raise UserError(name, "no such dictionary", "give a YAML file or one of "
                                + ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml"))))
            for finding, entry in _entries(load_plain_yaml(path), path):
                for kind, phrases in entry.items():
                    merged.setdefault(finding, {"phrases": [], "negations": []})[kind] += phrases
        return cls({name: Finding(_pattern(e["phrases"]), _pattern(e["negations"]) if e["negations"] else None)
                    for name, e in merged.items()})

    def read(self, text: str) -> dict[str, str]:
        """{finding: present, absent or uncertain} of those a text mentions. One clause that asserts outweighs others
        that deny: cancer in the stomach and none at its margin is cancer."""
        result: dict[str, str] = {}
        for clause in _clauses(text):
            for name, finding in self.findings.items():
                for status in _statuses(clause, finding):
                    if result.get(name) != PRESENT and not (status == UNCERTAIN and name in result):
                        result[name] = status
        return result


def finding_statistics(dictionary: FindingDictionary, captions: Sequence[str],
                       references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """Precision and recall of presence and of absence over all findings, and contradictions per slide: the caption
    asserts what the reference denies, or the reverse."""
    pairs = _read_pairs(dictionary, captions, references)
    rows = np.array([[sum(c.get(n) == r.get(n) == status for n in dictionary.findings) for status in (PRESENT, ABSENT)]
                     + [sum(v == status for v in said.values()) for said in (c, r) for status in (PRESENT, ABSENT)]
                     for c, r in pairs], dtype=float)

    def ratio(part: int, whole: int) -> Statistic:
        def of(indices: np.ndarray) -> float:
            sums = rows[indices].sum(0)
            return float(sums[part] / sums[whole]) if sums[whole] else math.nan
        return of

    scores = dict(zip(FINDING_SCORES, (ratio(0, 2), ratio(0, 4), ratio(1, 3), ratio(1, 5)), strict=False))
    return scores | {FINDING_SCORES[-1]: mean_of([sum(contradicts(c.get(n), r.get(n)) for n in dictionary.findings)
                                                  for c, r in pairs])}


def findings_table(dictionary: FindingDictionary, captions: Sequence[str],
                   references: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Per finding that a caption or reference mentions: counts, precision, recall of its presence, contradictions."""
    pairs = _read_pairs(dictionary, captions, references)
    table = {}
    for name in dictionary.findings:
        said = [(c.get(name), r.get(name)) for c, r in pairs]
        if all(pair == (None, None) for pair in said):
            continue
        right, claimed = sum(c == r == PRESENT for c, r in said), sum(c == PRESENT for c, _ in said)
        true = sum(r == PRESENT for _, r in said)
        table[name] = {"present": true, "absent": sum(r == ABSENT for _, r in said),
                       "precision": right / claimed if claimed else None, "recall": right / true if true else None,
                       "contradictions": sum(contradicts(c, r) for c, r in said)}
    return table


def contradicts(caption: str | None, reference: str | None) -> bool:
    return {caption, reference} == {PRESENT, ABSENT}


def _read_pairs(dictionary: FindingDictionary, captions: Sequence[str],
                references: Sequence[Sequence[str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    return [(dictionary.read(c), dictionary.read("\n".join(r))) for c, r in zip(captions, references, strict=True)]


def _clauses(text: str) -> Iterator[str]:
    """Clauses with full-width forms and case folded."""
    text = unicodedata.normalize("NFKC", text).casefold().translate({0x2212: "-", 0x2013: "-", 0x2014: "-"})
    text = _LIST.sub(lambda items: items[0].replace(",", "、"), text)
    begin = 0
    for end in _CLAUSE_END.finditer(text):
        if end[1]:
            yield text[begin:end.start()]
            begin = end.end()
    yield text[begin:]


def _statuses(clause: str, finding: Finding) -> Iterator[str]:
    """What a clause says of a finding, once for each phrase it has."""
    if finding.negations is not None:
        for denied in finding.negations.finditer(clause):
            yield ABSENT
            clause = clause[:denied.start()] + " " * len(denied[0]) + clause[denied.end():]
    for said in finding.phrases.finditer(clause):
        gaps = [g for g in said.groups() if g]
        before = [_TURN.split(clause[:said.start()])[-1], *gaps]
        after = _TURN.split(clause[said.end():])[0]
        if any(_UNSURE.search(part) for part in (*before, after)):
            yield UNCERTAIN
        elif any(_NO_BEFORE.search(part) for part in before) or _denied_behind(said[0], after):
            yield ABSENT
        else:
            yield PRESENT


def _denied_behind(phrase: str, after: str) -> bool:
    """Whether what follows a phrase denies it: `necrosis is not seen`, `脉管癌栓(-)`. Not for a phrase with a sign of
    its own: in `ER(+) PR(-)` the minus is not of ER."""
    denial = None if _SAID.search(phrase) else _NO_AFTER.search(after)
    return denial is not None and not _SAID.search(after[:denial.start()])


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """One pattern of all phrases, the longest first; a Latin word is matched whole, each `…` is a group."""
    parts = []
    for phrase in sorted({unicodedata.normalize("NFKC", p.replace("…", "\0")).casefold() for p in phrases}, key=len,
                         reverse=True):
        text = re.sub(r"(?:\\ )+", r"[\\s:]*", re.escape(phrase)).replace(r"\(", r"[\s:]*\(\s*")
        text = text.replace("\\\0", "\0").replace("\0", r"((?:\([^()]*\)|[^()]){0,12}?)")
        left, right = (r"(?<![a-z0-9])" * phrase[0].isascii(), r"(?![a-z0-9])" * phrase[-1].isascii())
        parts.append((left if phrase[0].isalnum() else "") + text + (right if phrase[-1].isalnum() or phrase[-1] == "-"
                                                                       else ""))
    return re.compile("|".join(parts))


def _entries(content: Any, path: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    if not isinstance(content, dict):
        raise UserError(path, "is no dictionary of findings", "write finding: {phrases: [...], negations: [...]}")
    for finding, entry in content.items():
        good = isinstance(entry, dict) and entry.keys() <= {"phrases", "negations"} and entry.get("phrases") and all(
            isinstance(v, list) and all(isinstance(p, str) and p.strip() for p in v) for v in entry.values())
        if not good:
            raise UserError(path, f"finding {finding!r} has no usable phrases",
                            "write finding: {phrases: [...], negations: [...]}")
        yield finding, entry
