"""The page to try a model, without a browser: sizes, texts, flags. With one: test_browser.py."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest

from finetune.config import GenerationOptions
from finetune.serve import _port, _texts, make_app

from .conftest import refused
from .test_explain import ROOT


def post(app, body: bytes, part: int = 1000) -> tuple[int, bytes]:
    """One request straight into the ASGI application, its body in parts and without a length."""
    sent, parts = [], [body[i:i + part] for i in range(0, len(body), part)]

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/describe", "raw_path": b"/describe", "query_string": b"", "http_version": "1.1",
             "headers": [(b"host", b"127.0.0.1"), (b"x-prism-coca", b"1")], "scheme": "http", "root_path": ""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_an_upload_over_the_limit_is_refused_before_it_is_read_to_its_end_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("starlette")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = make_app(SimpleNamespace(), GenerationOptions(), [], most_bytes=5000)
    status, body = post(app, b"x" * 50_000)
    assert status == 413 and b"error: upload: is larger than" in body and not list(tmp_path.iterdir())


@pytest.mark.parametrize("header", ["", "{}", "[1]", "[[]]", "[" * 10_000, '["' + "x" * 201 + '"]', str(["x"] * 41).replace("'", '"')])
def test_texts_that_are_none_are_refused(header):
    with refused("texts"):
        _texts(header)


def test_texts_lose_blanks_repeats_and_control_characters():
    assert _texts('[" a ", "", "a", "b\\u202e"]') == ["a", "b\\u202e"]


@pytest.mark.parametrize("text", ["0", "65536", "-1", "8o", "", "٣"])
def test_a_port_that_is_none_is_refused(text):
    with refused("--port"):
        _port(text)


def test_without_its_libraries_it_names_the_pip_command():
    code = ("import sys; sys.modules['uvicorn'] = None; sys.argv = ['inference.py', '--checkpoint', 'c.pth', '--serve'];"
            "import inference; from finetune.errors import run_script; run_script(inference.main)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install ".[serve]"' in done.stderr
