"""Findings in a report: present, absent, uncertain or not mentioned.

A rule-based reader of phrases in the manner of NegEx (Chapman et al. 2001, https://doi.org/10.1006/jbin.2001.1029) for
Chinese and English: a negation reaches the phrases of its own clause. A caption may share every token with its
reference and say the opposite; here that is counted.
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
_ENTRY_FORMAT = "write finding: {phrases: [...], negations: [...]}"
_GAP = "\0"  # stands for `…`, which NFKC would turn into three full stops
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
# An assertion: a negation after it does not reach back over it
_ASSERTED = re.compile(r"\+|阳性|可见|\b(?:present|positive|identified|seen)\b")


@dataclass(frozen=True)
class Finding:
    """A finding: the phrases that name it, and those that deny it outright, as `HER2(0)` does."""

    phrases: re.Pattern[str]
    negations: re.Pattern[str]


@dataclass(frozen=True)
class FindingDictionary:
    """Findings by name."""

    findings: dict[str, Finding]

    @classmethod
    def load(cls, names: Iterable[str]) -> FindingDictionary:
        """Read YAML files of {finding: {phrases: [...], negations: [...]}}.

        A finding that is in several files has the phrases of all. In a phrase a blank is any white space or colon or
        none, and `…` is up to 12 characters of the same clause.

        Args:
            names: Paths, or names of shipped dictionaries.

        Raises:
            UserError: For a missing or unusable file.
        """
        phrases: dict[str, list[str]] = {}
        negations: dict[str, list[str]] = {}
        for path in map(_dictionary_path, names):
            for finding, entry in _entries(load_plain_yaml(path), path):
                phrases.setdefault(finding, []).extend(entry["phrases"])
                negations.setdefault(finding, []).extend(entry.get("negations", []))
        return cls({finding: Finding(_pattern(phrases[finding]), _pattern(negations[finding])) for finding in phrases})

    def read(self, text: str) -> dict[str, str]:
        """{finding: present, absent or uncertain} of those a text mentions.

        An assertion in one clause outweighs negations in others: cancer in the stomach, none at its margin, is cancer.
        """
        result: dict[str, str] = {}
        for clause in _clauses(text):
            for name, finding in self.findings.items():
                for status in _statuses(clause, finding):
                    adds_nothing = status == UNCERTAIN and name in result
                    if result.get(name) != PRESENT and not adds_nothing:
                        result[name] = status
        return result


def finding_statistics(dictionary: FindingDictionary, captions: Sequence[str],
                       references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """Precision and recall of presence and of absence over all findings, and contradictions per slide: the caption
    asserts what the reference denies, or the reverse."""
    pairs = _read_pairs(dictionary, captions, references)
    scores: dict[str, Statistic] = {}
    for status, name in ((PRESENT, "presence"), (ABSENT, "absence")):
        agreed = [sum(c.get(finding) == status for finding, s in r.items() if s == status) for c, r in pairs]
        scores[f"finding_{name}_precision"] = _ratio(agreed, [_count(c, status) for c, _ in pairs])
        scores[f"finding_{name}_recall"] = _ratio(agreed, [_count(r, status) for _, r in pairs])
    scores["finding_contradictions"] = mean_of([_contradictions(c, r) for c, r in pairs])
    return scores


def findings_table(dictionary: FindingDictionary, captions: Sequence[str],
                   references: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Per finding that a caption or reference mentions: counts, precision, recall of its presence, contradictions."""
    pairs = _read_pairs(dictionary, captions, references)
    table = {}
    for name in dictionary.findings:
        statuses = [(caption.get(name), reference.get(name)) for caption, reference in pairs]
        if any(pair != (None, None) for pair in statuses):
            table[name] = _table_row(statuses)
    return table


def _table_row(statuses: Sequence[tuple[str | None, str | None]]) -> dict[str, Any]:
    """A row of the table from the statuses of one finding in (caption, reference) of each slide."""
    in_captions = [caption for caption, _ in statuses].count(PRESENT)
    in_references = [reference for _, reference in statuses].count(PRESENT)
    agreed = statuses.count((PRESENT, PRESENT))
    return {
        "present": in_references,
        "absent": [reference for _, reference in statuses].count(ABSENT),
        "precision": agreed / in_captions if in_captions else None,
        "recall": agreed / in_references if in_references else None,
        "contradictions": sum(contradicts(caption, reference) for caption, reference in statuses),
    }


def contradicts(caption: str | None, reference: str | None) -> bool:
    """Whether one asserts what the other denies."""
    return {caption, reference} == {PRESENT, ABSENT}


def _contradictions(caption: dict[str, str], reference: dict[str, str]) -> int:
    return sum(contradicts(status, reference.get(finding)) for finding, status in caption.items())


def _count(statuses: dict[str, str], status: str) -> int:
    return list(statuses.values()).count(status)


def _ratio(parts: Sequence[int], wholes: Sequence[int]) -> Statistic:
    """The sum of the parts over the sum of the wholes, one of each per slide; NaN where that is 0 over 0."""
    part, whole = np.array(parts, dtype=float), np.array(wholes, dtype=float)

    def ratio(indices: np.ndarray) -> float:
        total = whole[indices].sum()
        return float(part[indices].sum() / total) if total else math.nan

    return ratio


def _read_pairs(dictionary: FindingDictionary, captions: Sequence[str],
                references: Sequence[Sequence[str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """What the caption and the references of each slide say."""
    return [(dictionary.read(caption), dictionary.read("\n".join(texts)))
            for caption, texts in zip(captions, references, strict=True)]


def _clauses(text: str) -> Iterator[str]:
    """Clauses with full-width forms and case folded."""
    text = unicodedata.normalize("NFKC", text).casefold().translate({0x2212: "-", 0x2013: "-", 0x2014: "-"})
    text = _LIST.sub(lambda items: items[0].replace(",", "、"), text)
    begin = 0
    for end in _CLAUSE_END.finditer(text):
        if end[1]:  # not in brackets
            yield text[begin:end.start()]
            begin = end.end()
    yield text[begin:]


def _statuses(clause: str, finding: Finding) -> Iterator[str]:
    """What a clause says about a finding, once for each phrase it contains."""
    for denial in finding.negations.finditer(clause):
        yield ABSENT
        # blanked out at equal length: positions are kept, and its text is not matched again as a phrase
        clause = clause[:denial.start()] + " " * len(denial[0]) + clause[denial.end():]
    for phrase in finding.phrases.finditer(clause):
        yield _status(clause, phrase)


def _status(clause: str, phrase: re.Match[str]) -> str:
    """What a clause says about the finding that `phrase` in it names."""
    before = _TURN.split(clause[:phrase.start()])[-1]
    after = _TURN.split(clause[phrase.end():])[0]
    in_gaps = [gap for gap in phrase.groups() if gap]  # what stands for `…`
    if any(_UNSURE.search(part) for part in (before, *in_gaps, after)):
        return UNCERTAIN
    is_denied = any(_NO_BEFORE.search(part) for part in (before, *in_gaps))
    return ABSENT if is_denied or _denied_after(phrase[0], after) else PRESENT


def _denied_after(phrase: str, after: str) -> bool:
    """Whether what follows a phrase denies it: `necrosis is not seen`, `脉管癌栓(-)`. Not for a phrase with a sign of
    its own: in `ER(+) PR(-)` the minus is not of ER."""
    if _ASSERTED.search(phrase):
        return False
    denial = _NO_AFTER.search(after)
    return denial is not None and not _ASSERTED.search(after[:denial.start()])


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """One pattern of all phrases, the longest first; it matches nothing without phrases."""
    folded = {unicodedata.normalize("NFKC", phrase.replace("…", _GAP)).casefold() for phrase in phrases}
    patterns = [_phrase_pattern(phrase) for phrase in sorted(folded, key=len, reverse=True)]
    return re.compile("|".join(patterns) or "(?!)")


def _phrase_pattern(phrase: str) -> str:
    """The pattern of a folded phrase: a Latin word is matched whole, each `…` is a group."""
    text = re.sub(r"(?:\\ )+", r"[\\s:]*", re.escape(phrase)).replace(r"\(", r"[\s:]*\(\s*")
    text = text.replace(re.escape(_GAP), r"((?:\([^()]*\)|[^()]){0,12}?)")
    first, last = phrase[0], phrase[-1]
    if first.isascii() and first.isalnum():
        text = r"(?<![a-z0-9])" + text
    if last.isascii() and (last.isalnum() or last == "-"):
        text += r"(?![a-z0-9])"
    return text


def _dictionary_path(name: str) -> Path:
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if shipped.is_file() else expand(name)
    if not path.is_file():
        names = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
        raise UserError(name, "no such dictionary", f"give a YAML file or one of {', '.join(names)}")
    return path


def _entries(content: Any, path: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    if not isinstance(content, dict):
        raise UserError(path, "is not a dictionary of findings", _ENTRY_FORMAT)
    for finding, entry in content.items():
        if not _is_entry(entry):
            raise UserError(path, f"finding {finding!r} has no usable phrases", _ENTRY_FORMAT)
        yield finding, entry


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not entry.get("phrases") or not entry.keys() <= {"phrases", "negations"}:
        return False
    for phrases in entry.values():
        if not isinstance(phrases, list) or not all(isinstance(p, str) and p.strip() for p in phrases):
            return False
    return True
