"""Draw docs/speed.svg, how many times as fast as the published code, from the tables in RESULTS.md.

    python -m benchmarks.chart
"""

from __future__ import annotations

import re
from html import escape

from .common import ROOT

_ROWS = {  # case in RESULTS.md -> label
    "encode 4000 tiles, fp32": "encode 4000 tiles, fp32",
    "encode 4000 tiles, bf16": "encode 4000 tiles, bf16",
    "encode 16000 tiles, bf16": "encode 16 000 tiles, bf16",
    "epoch 1, 16 slides of 4000 tiles": "first epoch (fills the slide cache)",
    "epoch 2, 16 slides of 4000 tiles": "every later epoch",
    "training step, 4 x 128 tokens, vocabulary 42384": "training step, vocabulary 42 384",
    "training step, 4 x 128 tokens, vocabulary 4000": "training step, vocabulary 4000",
    "greedy caption of 100 tokens, bf16": "greedy caption, 100 tokens",
    "the same for 8 slides at once": "greedy captions, 8 slides at once",
}
_WIDTH, _STEP, _FONT = 420, 30, 13
_LETTER = 0.6 * _FONT  # the mean width of a letter is no more than that in any common sans-serif font


def ratios() -> dict[str, float]:
    """{label: times as fast}."""
    found = {}
    for line in (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[1] in _ROWS and (match := re.fullmatch(r"([\d.]+)x", cells[4])):
            found[_ROWS[cells[1]]] = float(match[1])
    return {label: found[label] for label in _ROWS.values() if label in found}


def draw(values: dict[str, float]) -> str:
    """An SVG of bars; a bar far longer than all others is cut, or it would hide them."""
    longest = sorted(values.values())[-2] * 1.5
    texts = {label: f"{value:.1f}x{' (bar cut)' * (value > longest)}" for label, value in values.items()}
    lengths = {label: _WIDTH * min(value, longest) / longest for label, value in values.items()}
    left = 20 + _LETTER * max(map(len, values))
    width = left + max(lengths[label] + _LETTER * len(text) for label, text in texts.items()) + 16
    height = _STEP * len(values) + 50
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
             f'font-family="system-ui, sans-serif" font-size="{_FONT}" role="img" '
             f'aria-label="Times as fast as the published code">',
             f'<rect width="{width:.0f}" height="{height}" fill="#fafbfc"/>']
    for n, (label, length) in enumerate(lengths.items()):
        y = 15 + n * _STEP
        parts += [f'<text x="{left - 10:.0f}" y="{y + 15}" text-anchor="end" fill="#1b2733">{escape(label)}</text>',
                  f'<rect x="{left:.0f}" y="{y}" width="{length:.0f}" height="20" rx="3" fill="#4a7fb5"/>',
                  f'<text x="{left + length + 6:.0f}" y="{y + 15}" fill="#1b2733">{texts[label]}</text>']
    one = left + _WIDTH / longest
    parts += [f'<path d="M{one:.0f} 8 V{height - 32}" stroke="#b5533c" stroke-dasharray="4 3"/>',
              f'<text x="{one:.0f}" y="{height - 14}" text-anchor="middle" fill="#b5533c">published code = 1</text>',
              "</svg>"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "speed.svg").write_text(draw(ratios()), encoding="utf-8")
