"""HTML pages that stand alone: one file, no network, no script but ours. What is put into them is text, not markup.

Templates lie in `pages/`. Each page carries a Content-Security-Policy that allows exactly its own style and script, by
their SHA-256, so that even a fault in the escaping runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

_PAGES = Path(__file__).resolve().parent / "templates"


def render(template: str, scripts: tuple[str, ...] = ("page.js",), connect: str = "'none'", **values: Any) -> str:
    """A page from a template of `pages/`. scripts: files put into it. connect: where its scripts may send requests."""
    style, script = _read("page.css"), "\n".join(_read(name) for name in scripts)
    policy = (f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
              f"connect-src {connect}; base-uri 'none'; form-action 'none'")
    return _templates().get_template(template).render(style=style, script=script, policy=policy, **values)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGES), autoescape=True, undefined=jinja2.StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)


@cache
def _read(name: str) -> str:
    return (_PAGES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
