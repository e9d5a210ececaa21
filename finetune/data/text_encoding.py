"""Text files in whatever encoding a hospital's system wrote them: recognised by content, never guessed silently.

UTF-8 and UTF-16 prove themselves. GB18030 (GBK, GB2312) does not: it decodes almost any pair of bytes, so that Korean,
Japanese or accented Latin text becomes wrong Chinese characters. It is accepted where the bytes are built as Chinese
text is and the characters are those that Chinese uses most; anything else is refused with a line in each reading.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import expand, read_regular

_MAX_BYTES = 1 << 30  # a million reports of a kilobyte; parsed, they take several times as much memory
_MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\x84\x31\x95\x33", "gb18030"))
_CHINESE = re.compile("gb2312|gbk|gb18030|cp936|936|hz", re.IGNORECASE)
_SHOWN = 20  # characters of a text in a message: texts are private
_EXCERPT = 400  # bytes of a line that are tried in other encodings
_SAMPLE = 20_000  # bytes from which charset-normalizer names likely encodings
_LIKELY = 10  # at most so many of its guesses are looked at
_MAX_DAMAGE = 0.02  # share of broken characters in a file that is otherwise of one encoding
_FEW = 8  # characters that may look like UTF-8 by chance

# Bytes that accented Latin text does not have: three above ASCII in a row, or one that is no letter or beside none.
_NOT_ACCENTED = re.compile(rb"[\x80-\xff]{3}|[\x80-\xbf]|(?<![A-Za-z\x80-\xff])[\x80-\xff]+(?![A-Za-z\x80-\xff])")
_GB2312_PAIR = re.compile(rb"[\xa1-\xf7][\xa1-\xfe]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_MIN_COMMON = 0.5  # share of common characters; Chinese texts have about 0.8, wrong readings about 0.15
_MIN_GB2312 = 0.8  # share of characters that GB2312 has; the rest of GB18030 are rare names

# The characters that general Chinese text (by frequency) and pathology tables use most.
_COMMON = frozenset(
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
    "十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形"
    "相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题程展五"
    "果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运几九区强放决西被干做必战先回则任"
    "取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联认六共权收证改清己美再采转更单风切打白教速花带安"
    "场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米整空元况今集温传土许步群广石记需段研界林"
    "癌腺瘤浸润胞胃肠乳腔肝肺肾胰脾脏淋巴转移侵犯脉神阳阴膜层缘标镜肿炎息肉鳞状慢萎缩生纤维织血骨皮肤甲宫颈卵巢前列膀胱食管直窦贲"
    "幽断诊病号院姓性龄女男检查室医师送材活左右侧叶伴见未及灶低中高度型浆肌周累编住片断例者临床史日期时间电话身份证地址类项目"
    "申请备注意免疫组化审核登称近远端环形圆细小块枚颗粒灰白褐暗红")


def read_text(path: str | Path, encoding: str | None = None) -> str:
    """Read a text file as text, whichever encoding it has.

    Args:
        path: The file.
        encoding: Its encoding, such as gb18030 or cp1252; None recognises UTF-8, UTF-16, UTF-32 and GB18030.

    Raises:
        UserError: The file cannot be read, is not text in `encoding`, or may be in one of several encodings; the first
            line that reads differently is then shown in each.
    """
    path = expand(str(path))
    return decode(read_bytes(path), path, encoding)


def read_bytes(path: Path) -> bytes:
    """The content of a file of labels. Raises UserError if it cannot be read or is too large to be one."""
    try:
        # a features file given by mistake may have many gigabytes
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(path, f"{size / 1e9:.1f} GB is not a labels file", "give a table or JSON of texts")
        return read_regular(path)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "give the path of the labels file") from None


def decode(raw: bytes, path: Path, encoding: str | None = None) -> str:
    """Decode the content of a file; `path` is for messages. Otherwise as `read_text`."""
    if encoding is not None:
        return _decode_as(raw, path, encoding)
    marked = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    if marked is not None:
        return _decode_marked(raw, path, marked)
    for recognise in (_as_wide, _as_utf8, _as_gb18030):
        text = recognise(raw)
        if text is not None:
            return text
    raise _unknown_encoding(raw, path)


def _decode_as(raw: bytes, path: Path, encoding: str) -> str:
    # a file that is called GB2312 or GBK often holds characters that only its successor has
    name = "gb18030" if _CHINESE.fullmatch(encoding) else encoding
    try:
        return raw.decode(name).removeprefix("\ufeff")
    except (LookupError, ValueError) as error:
        if isinstance(error, UnicodeError):
            raise UserError(f"{path}:{_line_number(raw, error)}", f"not {encoding} ({_what(error)})",
                            "correct data.encoding, or set it to null") from None
        raise UserError("data.encoding", f"unknown encoding {encoding!r}",
                        "write gb18030, utf-8, utf-16, cp1252, big5 or another name that Python knows") from None


def _decode_marked(raw: bytes, path: Path, encoding: str) -> str:
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise UserError(f"{path}:{_line_number(raw, error)}",
                        f"begins with the mark of {encoding.removesuffix('-sig')}, but is not ({_what(error)})",
                        "copy the file again, or save it as UTF-8") from None


def _as_wide(raw: bytes) -> str | None:
    """The text of UTF-16 or UTF-32 without a mark; None unless exactly one reading is text.

    Only these have zero bytes: each character of ASCII has one. With the bytes of a pair exchanged, a line feed is
    U+0A00, which is not assigned.
    """
    if b"\0" not in raw:
        return None
    readings = [_as_text(raw, encoding) for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")]
    texts = [text for text in readings if text is not None]
    return texts[0] if len(texts) == 1 else None


def _as_text(raw: bytes, encoding: str) -> str | None:
    try:
        text = raw.decode(encoding)
    except UnicodeError:
        return None
    return text if all(map(_is_text_character, set(text))) else None


def _is_text_character(character: str) -> bool:
    return character in "\t\n\r" or unicodedata.category(character) not in ("Cc", "Cn", "Co", "Cs")


def _as_utf8(raw: bytes) -> str | None:
    """The text of valid UTF-8; None where it may be so by chance.

    Chance needs few characters, all of two bytes: a short table in GBK may read as Latin, Greek, Armenian and Hebrew
    letters side by side, scripts that no one mixes within a word.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    first = [match[0] for match in islice(_NOT_ASCII.finditer(text), _FEW + 1)]
    if not first or len(first) > _FEW or max(first) > "\u07ff":
        return text
    return None if _is_utf8_by_chance(text, raw) else text


def _is_utf8_by_chance(text: str, raw: bytes) -> bool:
    """Whether the few letters of a text, each two bytes of UTF-8, are likelier to be Chinese characters."""
    words = re.findall(r"[\x80-\u07ff]{2,}", text)
    if any(map(_may_be_gb2312, words)):
        return True
    # accented letters with no plain one beside them are no word of a Latin script
    isolated = re.findall(r"(?<![A-Za-z\x80-\u07ff])[\x80-\u07ff]{2,}(?![A-Za-z\x80-\u07ff])", text)
    if any(map(_are_gb2312_pairs, isolated)):
        return True
    return bool(words) and _as_gb18030(raw) is not None


def _may_be_gb2312(word: str) -> bool:
    """Whether letters, each two bytes of UTF-8, are likelier to be as many characters of GB2312."""
    scripts = {_script(letter) for letter in word}
    return len(scripts) > 1 or (_are_gb2312_pairs(word) and scripts != {"LATIN"})


def _are_gb2312_pairs(word: str) -> bool:
    return all(_GB2312_PAIR.fullmatch(letter.encode()) for letter in word)


def _as_gb18030(raw: bytes) -> str | None:
    """The text of GB18030 if it is certainly that, else None."""
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return None
    return text if _is_chinese(text) and _NOT_ACCENTED.search(raw) else None


def _is_chinese(text: str) -> bool:
    """Whether a text that was decoded as GB18030 is what Chinese text looks like."""
    counts = Counter(text)
    for character in [character for character in counts if character <= "\x7f"]:
        del counts[character]
    scripts = set(map(_script, counts))
    are_possible = all(map(_is_text_character, counts)) and not scripts & {"HIRAGANA", "KATAKANA"}
    return are_possible and _are_common(counts)


def _are_common(counts: Counter[str]) -> bool:
    """Whether characters are those of Chinese text: few that GB2312 lacks, which Latin and Big5 text turns into."""
    num_gb2312 = _total(counts, lambda character: _GB2312_PAIR.fullmatch(character.encode("gb18030")))
    num_hanzi = _total(counts, lambda character: _script(character) == "CJK")
    num_common = _total(counts, _COMMON.__contains__)
    is_common = num_common > _MIN_COMMON * num_hanzi or num_hanzi == 0
    return is_common and num_gb2312 >= _MIN_GB2312 * counts.total()


def _total(counts: Counter[str], test: Callable[[str], Any]) -> int:
    return sum(count for character, count in counts.items() if test(character))


def _script(character: str) -> str:
    """The first word of a character's name: LATIN, GREEK, CJK (also `CJK UNIFIED IDEOGRAPH`), HIRAGANA ..."""
    return unicodedata.name(character, "").partition(" ")[0]


def _unknown_encoding(raw: bytes, path: Path) -> UserError:
    """The error for a file of unknown encoding: a damaged one, or one that has several readings."""
    for encoding, name in (("utf-8", "UTF-8"), ("gb18030", "GB18030")):
        damage = _damage(raw, encoding)
        if damage:
            number, line = damage
            return UserError(f"{path}:{number}", f"{name} but for some bytes, such as in {line[:_SHOWN]!r}",
                             "correct that line, or save the file again as UTF-8")
    number, line = _first_other_line(raw)
    readings = [f"{encoding}: {text!r}" for encoding, text in _readings(raw, line)]
    return UserError(f"{path}:{number}", f"neither UTF-8 nor certainly GB18030; as {', '.join(readings)}",
                     "name the right one with data.encoding (on command lines --encoding)")


def _damage(raw: bytes, encoding: str) -> tuple[int, str] | None:
    """(line number, text from the first broken byte's line) if all but a few characters are of an encoding."""
    text = raw.decode(encoding, "replace")
    num_broken = text.count("\ufffd")
    if not 0 < num_broken <= _MAX_DAMAGE * len(_NOT_ASCII.findall(text)):
        return None
    if encoding == "gb18030" and not _is_chinese(text.replace("\ufffd", "")):
        return None
    lines = text[: text.index("\ufffd")].split("\n")
    return len(lines), lines[-1][-_SHOWN // 2:] + "\ufffd"


def _first_other_line(raw: bytes) -> tuple[int, bytes]:
    """(number, excerpt) of the first line that is not ASCII; the excerpt starts shortly before what is not."""
    at = next(i for i, byte in enumerate(raw) if byte > 0x7F or byte == 0)
    start = max(raw.rfind(b"\n", 0, at) + 1, at - _SHOWN // 2)
    return raw.count(b"\n", 0, at) + 1, raw[start:].split(b"\n", 1)[0][:_EXCERPT]


def _readings(raw: bytes, line: bytes) -> list[tuple[str, str]]:
    """Up to three (encoding, beginning of the line in it) that differ, the likely ones of charset-normalizer first."""
    from charset_normalizer import from_bytes  # torch-free, but it takes a while to load

    guesses = [match.encoding for match in from_bytes(raw[:_SAMPLE])][:_LIKELY]
    readings: dict[str, str] = {}
    for encoding in ("gb18030", "cp1252", *guesses):
        text = line.decode(encoding, "ignore")[:_SHOWN]
        if not encoding.startswith("utf"):  # those prove themselves, and this file did not
            readings.setdefault(text, encoding)
    return [(encoding, text) for text, encoding in readings.items()][:3]


def _line_number(raw: bytes, error: UnicodeError) -> int:
    return raw.count(b"\n", 0, getattr(error, "start", 0)) + 1


def _what(error: UnicodeError) -> str:
    return f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
