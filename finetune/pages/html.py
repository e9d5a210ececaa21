"""Self-contained HTML pages: one file, no network, only our own scripts. Values are inserted as text, not markup.

Each page carries a Content-Security-Policy that allows exactly its own style and script, by their SHA-256, so that even
an escaping bug cannot run code.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, scripts: tuple[str, ...] = ("page.js",), connect: str = "'none'", **values: Any) -> str:
    """A page from a template.

    Args:
        template: Its file in `templates/`.
        scripts: Files of `templates/` that are put into the page.
        connect: Where its scripts may send requests, as in a Content-Security-Policy.
        values: Variables of the template.
    """
    style, script = _read("page.css"), "\n".join(_read(name) for name in scripts)
    policy = (f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
              f"connect-src {connect}; base-uri 'none'; form-action 'none'")
    return _templates().get_template(template).render(style=style, script=script, policy=policy, **values)


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)


@cache
def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
