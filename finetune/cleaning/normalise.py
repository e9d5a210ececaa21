"""One way of writing: white space, full-width letters and digits, leftovers of Excel and web pages, numbered lists.

Chinese punctuation is kept: `，。；：（）` belong to Chinese text, and the tokenizer has `data.normalize` for those who
want half-width forms. What changes:

- full-width letters, digits and signs such as ％ ＋ － ／ become half-width ones, square units (㎝ ㎜ ㎎) two letters,
  radicals and compatibility ideographs, which PDF files have in place of characters, the characters;
- zero-width, control and direction characters go; tabs, no-break and ideographic spaces become a space;
- line ends become \\n; `_x000D_` (Excel), `<br>`, `&nbsp;`, `&lt;` become what they stand for.

Kept: Ⅱ and other numerals, ×, ≥, μ, superscripts, ①, case, and every word.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

_SIGNS = "％＋－／＜＝＞～＃＆＊＠＿"


def _half_width() -> dict[int, str]:
    """{code point: what it becomes} of characters that NFKC may change without loss."""
    points = [*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B), *map(ord, _SIGNS),
              *range(0x338D, 0x33D4), *range(0x2E80, 0x2FE0), *range(0xF900, 0xFB00)]
    table: dict[int, str] = {point: unicodedata.normalize("NFKC", chr(point)) for point in points}
    blanks = dict.fromkeys(map(ord, "\t\v\f\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
                                    "\u202f\u205f\u3000"), " ")
    gone = dict.fromkeys([*range(9), *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD,
                          *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xFFFE], "")
    return table | blanks | gone | {0x85: "\n", 0x2028: "\n", 0x2029: "\n"}


_TABLE = _half_width()
_NEEDS_TABLE = re.compile("[" + re.escape("".join(map(chr, _TABLE))) + "]")
_LINE_END = re.compile(r"\r\n?|_x000[dD]_\n?|<br\s*/?>|</?p>", re.IGNORECASE)
_ENTITIES = {"nbsp": " ", "lt": "<", "gt": ">", "amp": "&", "quot": '"', "times": "×", "plusmn": "±", "#39": "'"}
_ENTITY = re.compile(f"&({'|'.join(_ENTITIES)});")
_FULL_STOP = re.compile(r"(?<=[0-9A-Za-z])．(?=[0-9A-Za-z])")
_BLANKS = re.compile(r" {2,}")
_AT_LINE = re.compile(r" ?\n ?")
_LINES = re.compile(r"\n{2,}")
_AT_MARK = re.compile(r" (?=[，。；：、）])|(?<=[，。；：、（]) ")  # a space there is a typing error
# At the beginning of a line or sentence; `1.5cm`, `3.5×2cm` and `12/15` are numbers
_ITEM = re.compile(r"(?:(?<=[\n。；;])|^)[ ]*(?:[(（](\d{1,2})[)）]|(\d{1,2})[.、)）．](?!\d)|([①-⑳]))[ ]*")


def normalise(text: str) -> str:
    """`text` in one way of writing, without white space around it."""
    text = _LINE_END.sub("\n", unicodedata.normalize("NFC", text))
    text = _ENTITY.sub(lambda entity: _ENTITIES[entity[1]], text)
    if _NEEDS_TABLE.search(text):
        text = text.translate(_TABLE)
    text = _FULL_STOP.sub(".", text)
    text = _AT_MARK.sub("", _BLANKS.sub(" ", text))
    text = _AT_LINE.sub("\n", text)
    return _LINES.sub("\n", text).strip()


def renumber(text: str) -> str:
    """A numbered list as `1. 2. 3.`, whatever marks and gaps it had; a single item loses its number."""
    items = list(_ITEM.finditer(text))
    if not _is_rising(list(map(_number, items))):
        return text  # two lists, or numbers that count something else
    if len(items) == 1:
        return text[items[0].end():] if items[0].start() == 0 else text

    numbers = itertools.count(1)
    return _ITEM.sub(lambda _: f"{next(numbers)}. ", text)


def _is_rising(numbers: list[int]) -> bool:
    """Whether there are numbers, each larger than the one before."""
    return bool(numbers) and all(one < other for one, other in itertools.pairwise(numbers))


def _number(item: re.Match[str]) -> int:
    digits = item[1] or item[2]
    return int(digits) if digits else int(unicodedata.numeric(item[3]))
