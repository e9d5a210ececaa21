"""Self-contained HTML pages: one file, no network, only our own scripts. Values are inserted as text, not markup.

Each page carries a Content-Security-Policy that allows exactly its own style and script, by their SHA-256, so that even
an escaping bug cannot run code. Control characters and those that change the direction of text are shown as escapes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..common.visible import visible, visible_values

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
    return _templates().get_template(template).render(style=Markup(style), script=Markup(script), policy=policy,
                                                      **values)


def packed(value: Any) -> str:
    """JSON, deflated and in base64: what page.js unpacks. Thousands of reports become a fraction of their size."""
    content = json.dumps(visible_values(value, keep="\n"), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(content.encode("utf-8", "replace"), 9)).decode()


def _finalize(value: Any) -> Any:
    """Each value that a template prints; markup is our own and stays."""
    return visible(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, finalize=_finalize)
    environment.filters["visible_values"] = partial(visible_values, keep="\n")
    return environment


@cache
def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
