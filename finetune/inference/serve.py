"""A page on this machine to try a model: drop an H5, see caption, scores for texts, nearest training texts, tile map.

`inference.py --checkpoint C --serve`. It listens on 127.0.0.1 only and answers three requests: the page, a slide to
describe, and texts to score. What is sent is kept in a temporary file under a name of our own until it is answered; no
request names a file, so none can be reached. Requests that come through another site in the same browser are refused:
they carry another Host (DNS rebinding) or lack our header, which no foreign page may send.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError, printable, say
from ..common.log import logger
from ..config.schema import GenerationOptions
from ..pages.html import render
from .captioner import Captioner
from .explain import explain_slide, open_slide
from .run import RecordExtras
from .tile_maps import page_data

HOST, PORT = "127.0.0.1", 7860
_MOST_BYTES = 2 << 30  # of an uploaded file: 400 000 tiles in float16
_MOST_TEXTS, _MOST_CHARACTERS = 40, 200  # they come in a header, which may have 64 kB
_NEAREST = 5
_HEADER = "x-prism-coca"


def run_server(args: argparse.Namespace, options: GenerationOptions) -> int:
    """What `inference.py --serve` does: load the model, answer until Ctrl+C."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError("--serve", "starlette and uvicorn are not installed",
                        'python -m pip install ".[serve]"') from None
    port = _port(args.port)
    captioner = Captioner.of_flags(args, options)
    app = make_app(captioner, options, _training_texts(args, captioner))
    server = uvicorn.Server(uvicorn.Config(app, HOST, port, log_level="warning", server_header=False))
    say(f"open http://{HOST}:{port} in a browser on this machine; Ctrl+C ends it")
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise UserError("--port", f"{port} is in use or not allowed", "give another --port")
    return 0


def _training_texts(args: argparse.Namespace, captioner: Captioner) -> RecordExtras | None:
    """Those of the nearest.pt beside the checkpoint. Only with --nearest must there be one."""
    count = args.nearest or _NEAREST
    try:
        return RecordExtras.load(argparse.Namespace(**vars(args) | {"nearest": count}), captioner, None)
    except UserError as error:
        if args.nearest:
            raise
        logger.warning("the page will show no nearest training texts: %s", error.what)
        return None


def _port(text: str | None) -> int:
    if text is None:
        return PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise UserError("--port", f"is {text!r}", "it must be a number from 1 to 65535")
    return int(text)


def make_app(captioner: Captioner, options: GenerationOptions, training_texts: RecordExtras | None = None,
             most_bytes: int = _MOST_BYTES) -> Any:
    """The ASGI application. training_texts: where the nearest to a slide are looked for."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    page = render("serve.html", ("page.js", "tilemap.js", "serve.js"), connect="'self'", most_bytes=most_bytes,
                  nearest=training_texts is not None)

    one_at_a_time = asyncio.Lock()  # the model has one memory, and explaining listens to its layers

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})

    async def describe(request: Request) -> Response:
        if request.headers.get(_HEADER) != "1":
            return _refusal(403, UserError("request", "does not come from this page", "open the page itself"))
        with tempfile.TemporaryDirectory(prefix="prism_coca_") as folder:
            path, size = Path(folder) / "upload.h5", 0
            try:
                with open(path, "xb") as file:
                    async for part in request.stream():
                        if (size := size + len(part)) > most_bytes:
                            return _refusal(413, UserError("upload", f"is larger than {most_bytes / 1e9:.3g} GB",
                                                           "use inference.py --embeddings_file"))
                        file.write(part)
            except ClientDisconnect:  # nobody waits for an answer
                return Response(status_code=400)
            except OSError as error:
                return _refusal(507, UserError("upload", f"cannot be kept ({error.strerror})", "free some space"))
            try:
                texts = _texts(request.headers.get("x-texts", "[]"))
                async with one_at_a_time:
                    found = await run_in_threadpool(answer, captioner, path, texts, training_texts, options)
                return JSONResponse(found)
            except UserError as error:
                return _refusal(422, UserError(Path(error.where).name, error.what, error.fix))

    def _refusal(status: int, error: UserError) -> Response:
        return JSONResponse({"error": f"error: {error.line()}"}, status)

    return Starlette(routes=[Route("/", show), Route("/describe", describe, methods=["POST"])],
                     middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def answer(captioner: Captioner, path: Path, texts: list[str], training_texts: RecordExtras | None,
           options: GenerationOptions) -> dict[str, Any]:
    """Caption, scores, nearest training texts and tile map of one uploaded file. Raises UserError for a bad one."""
    slide = open_slide(captioner, path)
    vectors: dict[str, np.ndarray] = {}
    record = captioner.describe([slide], texts, options, vectors)[0]
    found = training_texts.nearest(vectors[slide.slide_id]) if training_texts else []
    nearest = [[f"{near['id']}: {near['texts'][0]}", near["similarity"]] for near in found]
    result = {"caption": record["caption"], "scores": list(record["similarity"].items()), "nearest": nearest}
    try:
        return result | {"map": page_data(*explain_slide(captioner, slide, record["caption"])), "why_no_map": None}
    except UserError as error:  # an empty caption, Prism's own decoder
        return result | {"map": None, "why_no_map": error.line()}


def _texts(header: str) -> list[str]:
    """Texts sent as JSON in ASCII. Raises UserError."""
    try:
        texts = json.loads(header)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError("texts", "are no list of texts", "send them from the page")
    texts = [text.strip() for text in texts if text.strip()]
    if len(texts) > _MOST_TEXTS or any(len(text) > _MOST_CHARACTERS for text in texts):
        raise UserError("texts", f"{len(texts)} texts, the longest of {max(map(len, texts))} characters",
                        f"give up to {_MOST_TEXTS} of {_MOST_CHARACTERS}")
    return list(dict.fromkeys(printable(text) for text in texts))
