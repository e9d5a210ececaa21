"""What is drawn and written on the pages can be seen: contrast by WCAG 2.2, light and dark, computed from the style sheet."""

from __future__ import annotations

import re

import pytest

from tests.helpers.files import ROOT

CSS = (ROOT / "finetune" / "pages" / "templates" / "page.css").read_text(encoding="utf-8")
NUM_SERIES = 8


def colours(scheme: str) -> dict[str, str]:
    """The custom properties of a scheme, those of the light one where the dark one keeps them."""
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.S)[:2]
    found = dict(re.findall(r"--([\w-]+): ([^;]+);", light))
    return found | (dict(re.findall(r"--([\w-]+): ([^;]+);", dark)) if scheme == "dark" else {})


def channels(colour: str) -> list[float]:
    """Of `#rrggbb`, `#rgb` or `r, g, b`, 0 to 1."""
    if "," in colour:
        return [int(part) / 255 for part in colour.split(",")]
    digits = colour.strip().lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_formula_gives_the_known_extremes_and_a_known_pair():
    assert contrast("#000", "#ffffff") == pytest.approx(21) and contrast("#777", "#777") == 1
    assert contrast("#767676", "#fff") == pytest.approx(4.54, abs=0.01), "the lightest grey for text on white"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_of_charts_and_edges_of_fields_have_three_to_one(scheme):
    of = colours(scheme)
    drawn = [*(f"s{i}" for i in range(NUM_SERIES)), "edge", "accent", "warn-line", "hot", "soft"]
    low = {(name, ground): round(contrast(of[name], of[ground]), 2) for name in drawn for ground in ("paper", "card")
           if contrast(of[name], of[ground]) < 3}
    assert not low


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_four_and_a_half_to_one(scheme):
    of = colours(scheme)
    pairs = [("ink", ground) for ground in ("paper", "card", "own", "warn", "miss", "extra")]
    pairs += [(name, ground) for name in ("soft", "accent", "alert") for ground in ("paper", "card", "own")]
    low = {pair: round(contrast(of[pair[0]], of[pair[1]]), 2) for pair in [*pairs, ("paper", "accent")]
           if contrast(of[pair[0]], of[pair[1]]) < 4.5}
    assert not low


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_counts_in_the_shaded_cells_of_a_confusion_table_can_be_read(scheme):
    of = colours(scheme)
    templates = [path.read_text(encoding="utf-8") for path in (ROOT / "finetune" / "pages" / "templates").glob("*.html")]
    darkest, = (int(found) for text in templates for found in re.findall(r"'h%d'\|format\((\d) \* count / total\)", text))
    for shade, alpha in re.findall(r"\.h(\d) \{ background: rgba\(var\(--hot\), (\.\d+)\)", CSS)[:darkest + 1]:
        mixed = [round(255 * (float(alpha) * hot + (1 - float(alpha)) * paper))
                 for hot, paper in zip(channels(of["hot"]), channels(of["paper"]), strict=True)]
        assert contrast(of["ink"], ",".join(map(str, mixed))) >= 4.5, shade


def test_every_series_has_its_colour_of_the_scheme_and_no_rule_one_of_its_own():
    assert dict(re.findall(r"\.(s\d) \{ stroke: var\(--(\w+)\);", CSS)) == {f"s{i}": f"s{i}" for i in range(NUM_SERIES)}
    rules = re.sub(r":root \{.*?\}", "", CSS, flags=re.S)
    assert not re.findall(r"#[0-9a-fA-F]{3,6}\b(?=[;, )])", rules)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_of_one_chart_differ(scheme):
    of = colours(scheme)
    series = [channels(of[f"s{i}"]) for i in range(NUM_SERIES)]
    nearest = min(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
                  for n, one in enumerate(series) for other in series[:n])
    assert nearest > 0.2
