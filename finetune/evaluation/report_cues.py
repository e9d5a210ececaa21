"""The words and signs of a pathology report that deny, doubt or assert, in Chinese and English, and where clauses end.

The idea is NegEx's (Chapman et al. 2001, https://doi.org/10.1006/jbin.2001.1029), the terms are those of pathology
reports, synoptic ones (CAP's `Lymphovascular invasion: Not identified`) among them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterator
from enum import Enum
from typing import NamedTuple


class Cue(Enum):
    """What a piece of text does to the findings around it."""

    FIXED = "a term that contains a negation word and denies nothing"
    OPEN = "a bracket opens"
    CLOSE = "a bracket closes"
    END = "a clause ends"
    COMMA = "a clause ends, unless the comma is one of a list"
    COLON = "an answer follows"
    DASH = "a dash between blanks: a colon or a minus sign"
    EITHER = "a double negation"
    UNKNOWN = "what precedes is left open"
    DOUBTED = "what follows is left open"
    DENIED = "what precedes is denied"
    DENIES_ALL = "what follows is denied, a list with `and` too"
    DENIES = "what follows is denied"
    DENIES_NEXT = "the term right behind it is denied"
    ASSERTED = "what precedes is asserted"
    TURN = "a negation reaches no further"
    VERB = "what precedes is no list of things denied"
    IS = "a copula"
    PLACE = "a preposition: what follows says where, and is not itself denied"
    OR = "a list goes on, also one that is denied"
    AND = "a list goes on"
    NUMBER = "a count of a total, or a percentage"
    ZERO = "none, where a number is the answer"
    MINUS = "denied, where a sign is the answer"
    PLUS = "asserted, where a sign is the answer"
    YES = "asserted, where a word is the answer"
    NO = "denied, where a word is the answer"
    QUESTION = "a question mark"


class Mark(NamedTuple):
    """A cue and its place in the folded text."""

    start: int
    end: int
    cue: Cue


_SEEN = ("identified|seen|present|observed|found|detected|evident|noted|involved|appreciated|demonstrated|"
         "recogni[sz]ed|visible|visuali[sz]ed|amplified|expressed|apparent|encountered")
_NOT_DONE = ("assessed|evaluated|determined|performed|applicable|tested|done|submitted|reported|specified|stated|"
             "provided|available|received|sampled|known|included|examined|assessable|evaluable|determinable|given|mentioned")
_FULLY = "(?:(?:be|been|entirely|completely|definitely|definitively|absolutely) )?"

# In the order in which they are tried at a place: (cue, Latin words, other text); a Latin word is matched whole.
_CUES: list[tuple[Cue, list[str], list[str]]] = [
    (Cue.FIXED,
     ["no special(?: histologic(?:al)?)? types?", "no specific types?", "no specific features",
      "not otherwise specified", "non[- ]?(?:small|special|specific|hodgkin'?s?|keratini[sz]ing|neoplastic)",
      "not only", "no more than", "not (?:less|more) than", r"no\.(?= ?(?:\d|of ))", "no longer",
      "i\\.e\\.", "e\\.g\\."],
     ["非特殊(?:类型|型)?", "非特指", "非霍奇金", "非小细胞", "非角化", "非肿瘤",
      "无(?:蒂|定形|痛|性细胞|功能|色素|黑色素|关|论|菌|名|张力|症状)", "未(?:分化|成熟|定型|特指|分型|来)",
      "不(?:典型|规则|全|完全|成熟|等|均|一|清|同|良|可逆)", "而且", "与否", "有无"]),
    (Cue.EITHER,
     ["not without", "not devoid of", "no (?:lack|absence) of", "not (?:entirely |completely |totally )?absent",
      "not negative"],
     ["(?:并非|不是|并不是|并不)(?:没有|无)", "非阴性", "不无"]),
    (Cue.UNKNOWN,
     [f"(?:(?:can(?: ?not|'t)|could not) be|not(?: yet)?) {_FULLY}(?:excluded|ruled out)",
      f"(?:can(?: ?not|'t)|could not) be (?:[a-z]+ ){{0,2}}?(?:{_NOT_DONE})",
      "(?:unable to|can(?: ?not|'t)) (?:assess|determine|evaluate)",
      f"not (?:been |be )?(?:[a-z]+ )?(?:{_NOT_DONE})", "n/a", "pending", "unknown", "undetermined", "indeterminate",
      "equivocal", "not (?:definite|definitive|certain|clear)", "uncertain", "favou?red", "unlikely",
      "to be determined", "inconclusive"],
     ["待(?:排|除外|查|定|检|排除)", "难以?(?:判断|评估|确定|明确|评价|判定)",
      "(?:无法|不能|不易|不便|不宜)(?:准确|明确|完全)?(?:评估|判断|确定|评价|判定|明确(?!见))",
      "未(?:评估|检测|做|查(?!见|到)|送检?|提及|提供|行|知|明(?!确|显))", "不(?:明确|确定|肯定|详)", 
      "可能性[大小]", "意义不明"]),
    (Cue.DOUBTED,
     [f"(?:(?:can(?: ?not|'t)|could not|(?:do|does|did) not)) {_FULLY}(?:exclude|rule out)",
      "suspicious(?: for| of)?", "suspected", "suspicion (?:of|for)",
      "suggest(?:s|ive|ing)?(?: of)?", "concerning for", "concern for",
      "worrisome for", "possibl[ey]", "probabl[ey]", "likely", "presumed", "presumably", "presumptive",
      "questionable", "equivocal for", "indeterminate for",
      "favou?r(?:s|ing)?", "(?:may|might|could)(?: also)? (?:be|represent|indicate|have|reflect)", "rule out", "r/o",
      "to exclude", "differential(?: diagnosis)?", "versus", "vs"],
     ["不(?:能|可)?(?:完全)?(?:除外|排除)", "(?:无法|难以?|未能?)(?:完全)?(?:除外|排除)",
      "(?:待|需|请|应|建议|必要时|注意)[^,;。\\n()]{0,12}?(?:除外|排除|明确|证实|确认)",
      "可疑", "(?<!未)(?<!不)考虑", "倾向于?", "疑似|疑[为有]|怀疑|(?<!可)疑", "可能(?:为|是|有|存在)?",
      "(?<![相类近])似(?:有|为|见)"]),
    (Cue.DENIED,
     [f"(?:not|never|cannot be) (?:[a-z]+ ){{0,3}}?(?:{_SEEN})", "absent", "none", "nil", "negative(?! for)",
      "neg(?! for)", "ruled out", "excluded", "uninvolved(?! by)", "free(?! of)", "clear(?! of| cell)",
      "non[- ]?amplified", "unamplified"],
     ["阴性", "缺如", "不存在"]),
    (Cue.DENIES_ALL,
     ["(?:negative|neg) for", "absence of", "free of", "without(?: (?:any )?evidence of)?",
      "no (?:[a-z]+ )?(?:evidence|signs?|features?) of", "uninvolved by", "clear of"], []),
    (Cue.DENIES,
     ["no", "not(?: involve)?", "den(?:y|ies|ied)", "lack(?:s|ing)?(?: of)?", "neither", "excludes?", "rather than",
      "fail(?:s|ed)? to (?:show|reveal|demonstrate|identify)", "never", "none of"],
     ["[未无](?:能)?(?:再)?(?:明确|明显|肯定|确切|确定)?(?:的)?(?:见|发现|查见|检见|检出|查到|见到|累及|侵及|侵犯|"
      "侵至|侵透|浸润|突破|穿透|找到|提示|显示|及|证实|示|到达|出现|形成|观察到|发生|扩增|表达|伴)",
      "没有|没见|不伴有?|不见|不含|不支持|不符合|不考虑|未考虑|否认|缺乏", "(?<!有)无", "除外|排除"]),
    (Cue.DENIES_NEXT, [], ["(?<![a-z0-9])non[- ]?", "[未不非]"]),
    (Cue.ASSERTED,
     [f"(?:{_SEEN})", "positive", "pos"], ["弱?阳性", "受累", "受侵", "见癌", "扩增"]),
    (Cue.TURN,
     ["but", "however", "although", "though", "yet", "except(?: for)?", "apart from", "whereas", "while"],
     ["但", "可见", "伴有?", "而", "(?<![未不少罕常意])见有?"]),
    (Cue.IS, ["is", "are", "was", "were", "be", "been"], ["[均皆都]"]),
    (Cue.VERB, ["with", "shows?", "showing", "ha[sd](?! been)", "have(?! been)", "contains?",
     "demonstrates?", "reveals?"], []),
    (Cue.PLACE,
     ["in(?! situ)", "within", "of", "by", "at", "from", "into", "around", "near", "involving", "surrounding",
      "adjacent to", "associated with"], []),
    (Cue.OR, ["or", "nor", "and/or"], ["或者?"]),
    (Cue.AND, ["and", "as well as", "plus"], ["[、/&]", "以及|(?<![累侵触波涉])及|[和与]"]),
    (Cue.YES, ["yes", "y"], ["有", "是"]),
    (Cue.NO, ["n"], ["否"]),
]
# A full stop ends no clause at a decimal point or after an initial (`H. pylori`)
_SIGNS = [
    (Cue.OPEN, r"\("), (Cue.CLOSE, r"\)"), (Cue.QUESTION, r"\?"),
    (Cue.END, r"[;。!\n]|(?<![^a-z0-9][b-hj-z])\.(?![0-9])"), (Cue.COMMA, ","), (Cue.COLON, ":"),
    (Cue.DASH, r"(?<= )-+(?= )"),
    (Cue.NUMBER, r"[<>≤≥]?(?<![a-z0-9.])[0-9]+(?:\.[0-9]+)?(?: ?/ ?[0-9]+(?![0-9.])| ?%|(?: out)? of [0-9]+)"),
    (Cue.ZERO, r"(?<![a-z0-9.])0(?![0-9./%+])"), (Cue.MINUS, r"-(?![a-z0-9一-龥])"), (Cue.PLUS, r"\++"),
]


def cue_pattern(without: Container[Cue] = ()) -> re.Pattern[str]:
    """One pattern of all cues but some, each a group of the cue's name."""
    latin = "|".join(f"(?P<{cue.name}_LATIN>{'|'.join(words)})" 
                     for cue, words, _ in _CUES if words and cue not in without)
    other = [(cue, "|".join(texts)) for cue, _, texts in _CUES if texts]
    named = [f"(?P<{cue.name}>{pattern})" for cue, pattern in [*other, *_SIGNS] if cue not in without]
    return re.compile("|".join([rf"(?<![a-z0-9])(?=[a-z])(?:{latin})(?![a-z])", *named]))


_PATTERN = cue_pattern()


def marks(text: str, start: int = 0, end: int | None = None) -> Iterator[Mark]:
    """The cues of a folded text from left to right."""
    for match in _PATTERN.finditer(text, start, len(text) if end is None else end):
        yield Mark(match.start(), match.end(), Cue[match.lastgroup.removesuffix("_LATIN")])


_DASHES = {0x2212: "-", 0x2013: "-", 0x2014: "-", 0x2236: ":", **dict.fromkeys(map(ord, "[{【〔〖"), "("),
           **dict.fromkeys(map(ord, "]}】〕〗"), ")")}
# A line goes on in the next one if that begins in the middle of a sentence, is the answer to its label, or stands alone
# below it; `脉管癌栓:` above another label has no answer
_ITEM = re.compile(r"(?<!\s)[^\S\n]{2,}(?=\(?\d{1,2}[.)])|[①-⑳⑴-⒇]")  # an item of a list within a line
_WRAPPED = re.compile(r"(?<=[a-z,]) *\n *(?=[a-z(])")
_ANSWER_BELOW = re.compile(r": *\n\s*(?=[^:\n]*(?:\n|$))")
_HEADING = re.compile(r"^([^\n:]{3,60})\n+(?=\1 ?:)", re.MULTILINE)  # the same words as the label below
_BARE_ANSWER = re.compile(
    r"(?<=[a-z\u4e00-\u9fff)]) *\n *(?=(?:not (?:identified|seen|present|involved)|absent|none|negative|"
    r"present|positive|uninvolved|未见|阴性|阳性) *(?:[.。;,(\n]|$))", re.IGNORECASE)


def folded(text: str) -> str:
    """A report in the form that cues and terms are looked for in: full-width forms and case folded, one kind of bracket
    and dash, lines joined that belong together. Newlines are the only white space but blanks."""
    text = _ITEM.sub(";", text)
    text = _WRAPPED.sub(" ", _one_blank(text))  # where a sentence goes on shows in its case
    text = _HEADING.sub("", _one_blank(folded_term(text)))
    return _BARE_ANSWER.sub(": ", _ANSWER_BELOW.sub(": ", text))


def folded_term(term: str) -> str:
    """`folded` for a piece of text whose white space stays as it is."""
    return unicodedata.normalize("NFKC", term).casefold().translate(_DASHES)


def _one_blank(text: str) -> str:
    return re.sub(r"[^\S\n]+", " ", text.replace("\r\n", "\n").replace("\r", "\n"))
