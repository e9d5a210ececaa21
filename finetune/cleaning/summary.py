"""The summary of a cleaned table as Markdown, Chinese and English side by side.

Identifiers in its examples are blotted out unless the user asks for them; what the final check finds is shown as it is,
since it is in the labels too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..common.visible import visible
from ..data.near_duplicates import SIMILARITY_THRESHOLD
from ..data.tables import Table
from .dataset import Case, Layout, LeftOut, known_values
from .final_check import Suspect
from .report_text import CleanedText, Cleaner
from .rules import Rules
from .statistics import (
    Distribution,
    RuleCount,
    conflicts,
    count_rules,
    count_sections,
    distribution,
    near_duplicates,
    repeated_texts,
)

_MAX_TEXT = 90  # characters of an example in a table
_MAX_EXAMPLE = 600  # characters of a text before and after
_EXAMPLES = 3  # of each rule
_COMMONEST, _PAIRS, _BEFORE_AFTER = 10, 10, 8
_MAX_SUSPECTS = 500


@dataclass(frozen=True)
class Outcome:
    """All that the summary is made of.

    Attributes:
        cleaned: What became of each row of the table.
        cases: Those that are written.
        left_out: The rows and cases that are not.
        unused: Feature files that no case names; None if the features were not joined.
        hide: Masks the identifiers in examples; None shows them.
    """

    table: Table
    layout: Layout
    rules: Rules
    rules_file: str
    cleaned: Sequence[CleanedText]
    cases: Sequence[Case]
    left_out: Sequence[LeftOut]
    unused: Sequence[str] | None
    hide: Cleaner | None

    def suspects(self) -> list[tuple[str, Suspect]]:
        """(case id, what still looks like an identifier) of all texts that are written."""
        found = []
        for case in self.cases:
            for row in case.rows:
                found += [(case.case_id, suspect) for suspect in self.cleaned[row].suspects]
        return found


def render(outcome: Outcome) -> str:
    """The summary as Markdown."""
    texts = repeated_texts(outcome.cases)
    parts = [
        _head(outcome, texts),
        _columns(outcome),
        _rule_table("内容规则 / What the rules left out", outcome, "removed"),
        _rule_table("身份信息 / Identifiers", outcome, "masked"),
        _final_check(outcome),
        _before_after(outcome),
        _lengths(outcome),
        _commonest(outcome, texts),
        _pairs([text for text, _ in texts]),
        _conflicts(outcome.cases),
        _patients(outcome),
        _features(outcome),
        _left_out(outcome.left_out),
    ]
    return visible("\n\n".join("\n".join(part) for part in map(list, parts) if part), keep="\n") + "\n"


def _head(outcome: Outcome, texts: Sequence[tuple[str, int]]) -> Iterator[str]:
    yield f"# {_code(outcome.table.path.name)}"
    yield ""
    yield ("**本文件含病人数据，只在本机保存，不要提交或转发。** 规则找不全身份信息：发布前由人通读标签。"
           " / **Holds patients' data: keep it on this machine.** Rules miss some identifiers: a person must read the "
           "labels before they are passed on.")
    yield ""
    changed = [result for result in outcome.cleaned if result.text and result.text != result.before]
    yield from _table(["", "数 / number"], [
        ["表格的行 / rows of the table", len(outcome.table.rows)],
        ["写入的病例 / cases written", len(outcome.cases)],
        ["没有写入的行或病例（见末尾）/ rows or cases left out (listed below)", len(outcome.left_out)],
        ["被规则改动的文本 / texts changed by rules", len(changed)],
        ["去掉的身份信息 / identifiers taken out", sum(len(result.masked) for result in outcome.cleaned)],
        ["**仍像身份信息的（请核对）/ still like an identifier (look at each)**", len(outcome.suspects())],
        ["不同的文本 / different texts", len(texts)],
    ])


def _columns(outcome: Outcome) -> Iterator[str]:
    layout = outcome.layout
    yield "## 列与部分 / Columns and sections"
    yield ""
    yield f"- 规则 / rules: {_code(outcome.rules_file)}"
    yield f"- {_code(str(layout.columns), _MAX_EXAMPLE)}"
    for section, column in layout.texts:
        yield f"- 文本 / text: {_code(column)} → {section}"
    known = [*layout.patient, *layout.doctor]
    if known:
        yield f"- 其值在文本中一律换掉 / values masked wherever they occur in texts: {', '.join(map(_code, known))}"
    yield ""
    yield from _table(["部分 / section", "行 / rows", "保留 / kept", "例 / examples"], _section_rows(outcome))


def _section_rows(outcome: Outcome) -> Iterator[list[object]]:
    for name, count in count_sections(outcome.cleaned).most_common():
        yield [name, count, "✓", ""]
    others = count_rules([(part.section, part.text) for part in result.other_parts] for result in outcome.cleaned)
    for name, pieces in others.items():
        yield [name, pieces.rows, "", ", ".join(_examples(pieces, outcome))]


def _rule_table(title: str, outcome: Outcome, kind: str) -> Iterator[str]:
    """Counts and commonest pieces of each rule; `kind` is the field of CleanedText that holds them."""
    counts = count_rules([(piece.rule, piece.text) for piece in getattr(result, kind)] for result in outcome.cleaned)
    yield f"## {title}"
    yield ""
    yield from _table(["规则 / rule", "处 / pieces", "行 / rows", "例 / examples"],
                      [[name, count.pieces, count.rows, ", ".join(_examples(count, outcome, kind == "masked"))]
                       for name, count in counts.items()])
    if kind == "masked" and counts and outcome.hide:
        yield ""
        yield "例中的身份信息已遮盖，`--show_identifiers` 显示全文。/ Blotted out; `--show_identifiers` shows them."


def _examples(count: RuleCount, outcome: Outcome, is_identifier: bool = False) -> Iterator[str]:
    for text, number in count.texts.most_common(_EXAMPLES):
        shown = text
        if outcome.hide:
            known = known_values(outcome.table.rows[count.first_row[text]], outcome.layout.patient)
            shown = blotted(text) if is_identifier else outcome.hide.without_identifiers(text, known)
        yield _code(shown) + (f" ×{number}" if number > 1 else "")


def _final_check(outcome: Outcome) -> Iterator[str]:
    yield "## 仍像身份信息的 / What still looks like an identifier"
    yield ""
    found = outcome.suspects()
    if not found:
        yield "没有。/ None. 规则不能保证没有遗漏。/ Which is no guarantee."
        return
    by_kind = Counter(suspect.kind for _, suspect in found)
    yield ", ".join(f"{kind}: {count}" for kind, count in by_kind.most_common())
    yield ""
    yield from _table(["种类 / kind", "次 / times", "编号 / id", "上下文 / context"], _suspect_rows(found))


def _suspect_rows(found: Sequence[tuple[str, Suspect]]) -> list[list[object]]:
    """One row for each different suspect, with its first case."""
    times = Counter((suspect.kind, suspect.text) for _, suspect in found)
    first: dict[tuple[str, str], tuple[str, Suspect]] = {}
    for case_id, suspect in found:
        first.setdefault((suspect.kind, suspect.text), (case_id, suspect))
    rows: list[list[object]] = []
    for key, (case_id, suspect) in list(first.items())[:_MAX_SUSPECTS]:
        rows.append([suspect.kind, times[key], _code(case_id), _code(suspect.context)])
    if len(first) > _MAX_SUSPECTS:
        rows.append(["…", "", "", f"{len(first) - _MAX_SUSPECTS} more: --details lists all"])
    return rows


def _before_after(outcome: Outcome) -> Iterator[str]:
    yield "## 前后对照 / Before and after"
    shown_rules: set[str] = set()
    shown = 0
    for case in outcome.cases:
        result = outcome.cleaned[case.rows[0]]
        rules = {piece.rule for piece in (*result.removed, *result.masked)}
        if rules <= shown_rules or shown == _BEFORE_AFTER:
            continue
        shown_rules |= rules
        shown += 1
        before = _hide_masked(result) if outcome.hide else result.before
        yield ""
        yield f"- {_code(case.case_id)} ({', '.join(sorted(rules))})"
        yield f"  - 前 / before: {_code(before, _MAX_EXAMPLE)}"
        yield f"  - 后 / after: {_code(result.text, _MAX_EXAMPLE)}"
    if not shown:
        yield ""
        yield "规则没有改动任何文本。/ No text was changed by a rule."


def _lengths(outcome: Outcome) -> Iterator[str]:
    yield "## 长度（字符）/ Lengths in characters"
    yield ""
    before = distribution(len(outcome.cleaned[row].before) for case in outcome.cases for row in case.rows)
    after = distribution(len(text) for case in outcome.cases for text in case.texts)
    yield from _distributions({"前 / before": before, "后 / after": after})


def _commonest(outcome: Outcome, texts: Sequence[tuple[str, int]]) -> Iterator[str]:
    total = sum(count for _, count in texts)
    yield "## 最常见的文本 / Most common texts"
    yield ""
    yield from _table(["病例 / cases", "%", "文本 / text"],
                      [[count, f"{100 * count / total:.1f}", _code(text)] for text, count in texts[:_COMMONEST]])
    same = sum(count for _, count in texts if count > 1)
    yield ""
    yield f"与别的病例同文的病例 / cases that share their text with another: {same} / {total}"


def _pairs(texts: Sequence[str]) -> Iterator[str]:
    pairs = near_duplicates(texts)
    yield "## 几乎相同的文本 / Near duplicates"
    yield ""
    yield (f"{len(pairs)} / {len(texts)} 条不同的文本与更早的一条几乎相同"
           f"（字符三元组 Jaccard ≥ {SIMILARITY_THRESHOLD:g}） / different texts are nearly equal to an earlier one")
    if pairs:
        yield ""
        yield from _table(["文本 / text", "更早的 / earlier"],
                          [[_code(text), _code(earlier)] for text, earlier in pairs[:_PAIRS]])


def _conflicts(cases: Sequence[Case]) -> Iterator[str]:
    several = conflicts(cases)
    if not several:
        return
    yield "## 同一编号的不同文本 / Different texts of one id"
    yield ""
    yield "都写入，作为多条参考文本。/ All are written, as several reference texts."
    yield ""
    yield from _table(["编号 / id", "文本 / texts"],
                      [[_code(case.case_id), "<br>".join(map(_code, case.texts))] for case in several])


def _patients(outcome: Outcome) -> Iterator[str]:
    yield "## 分布 / Distribution"
    yield ""
    rows = {
        "每个病例的行 / rows per case": distribution(len(case.rows) for case in outcome.cases),
        "每个病例的切片 / slides per case": distribution(len(case.slides) or 1 for case in outcome.cases),
    }
    for column in outcome.layout.patient:
        rows[f"每个 / per {_code(column)}"] = _written_rows_per_value(outcome, column)
    yield from _distributions(rows)
    yield from _splits(outcome)


def _splits(outcome: Outcome) -> Iterator[str]:
    splits = Counter(case.split for case in outcome.cases)
    if None not in splits:
        yield ""
        yield f"划分 / splits: {', '.join(f'{name} {count}' for name, count in splits.items())}"


def _written_rows_per_value(outcome: Outcome, column: str) -> Distribution | None:
    """The distribution of written rows over the values of a column, such as the patients."""
    rows = [outcome.table.rows[row] for case in outcome.cases for row in case.rows]
    return distribution(Counter(row[column] for row in rows if row[column]).values())


def _features(outcome: Outcome) -> Iterator[str]:
    if outcome.unused is None:
        return
    yield "## 特征文件 / Feature files"
    yield ""
    yield f"没有标签的特征文件 / files without a label: {len(outcome.unused)}"
    if outcome.unused:
        yield ""
        yield ", ".join(map(_code, outcome.unused))


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    yield "## 没有写入的 / Left out"
    yield ""
    reasons = Counter(entry.reason.split(":")[0] for entry in left_out)
    if not left_out:
        yield "没有。/ None."
        return
    yield ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    yield ""
    yield from _table(["编号 / id", "位置 / row", "原因 / reason"],
                      [[_code(entry.case_id), entry.place, _code(entry.reason)] for entry in left_out])


def _distributions(rows: dict[str, Distribution | None]) -> Iterator[str]:
    yield from _table(["", "个数 / count", "最小 / min", "中位 / median", "95 %", "最大 / max", "平均 / mean"],
                      [[name, d.count, d.smallest, d.median, d.percentile_95, d.largest, f"{d.mean:.1f}"]
                       for name, d in rows.items() if d is not None])


def _hide_masked(result: CleanedText) -> str:
    """The text of a report before the rules, with what they masked blotted out."""
    text = result.before
    for piece in sorted(result.masked, key=lambda piece: -len(piece.text)):
        text = text.replace(piece.text, blotted(piece.text))
    return text


def blotted(text: str) -> str:
    """Letters and digits of `text` as `*`, but for the first one: enough to see what kind of thing it is."""
    return text[:1] + "".join("*" if c.isalnum() else c for c in text[1:])


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _code(text: str, most: int = _MAX_TEXT) -> str:
    """A text of the user as code, which Markdown takes as it is: one line, cut."""
    text = visible(text.replace("\n", " ⏎ ")).replace("`", "'").replace("|", "\\|")
    return f"`{text[:most - 1]}…`" if len(text) > most else f"`{text}`" if text else ""
