"""A page on this machine to try a model: drop slides, see captions, scores for texts, nearest texts, tile maps.

`inference.py --checkpoint C --serve`. It listens on 127.0.0.1 only and answers two requests: the page, and a slide to
describe with texts to score. An upload is kept in a temporary file under a name of ours until it is answered; no
request can name a file. Requests that come through another site in the same browser are refused:
they carry another Host (DNS rebinding) or lack our header, which no foreign page may send.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism import GenerationOptions

from ..common.errors import UserError, say
from ..common.log import logger
from ..common.visible import visible, visible_values
from ..data.slides import FORMATS
from ..models.training_texts import SlideVectors
from ..pages.chinese import fault_in_words, reasons_in_words
from ..pages.html import render
from .captioner import Captioner
from .explain import explain_slide, open_slide
from .model_facts import ModelFacts
from .nearest import TrainingSlides, judge_of
from .options import InferenceOptions
from .tile_maps import page_data
from .uploads import MAX_BYTES, MAX_CONNECTIONS, Uploads, impatient_protocol, require_small

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
_MAX_TEXTS, _MAX_CHARACTERS = 40, 200  # they come in a header, which may have 64 kB
_NEAREST = 5  # training slides shown


def run_server(options: InferenceOptions) -> int:
    """Load the model and answer requests until Ctrl+C; returns 0. Raises UserError."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError("--serve", "starlette and uvicorn are not installed",
                        'python -m pip install ".[serve]"') from None
    captioner = Captioner.from_options(options)
    training = load_training_slides(options, captioner)
    captioner.judge = judge_of(captioner, training)
    app = make_app(captioner, options.generation(captioner.trained_length), training, options.nearest or _NEAREST)
    server = uvicorn.Server(uvicorn.Config(app, HOST, options.port, log_level="warning", server_header=False,
                                           http=impatient_protocol(), limit_concurrency=MAX_CONNECTIONS))
    say(f"open http://{HOST}:{options.port} in a browser on this machine; Ctrl+C ends it")
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise UserError("--port", f"{options.port} is in use or not allowed", "give another --port")
    return 0


def load_training_slides(options: InferenceOptions, captioner: Captioner) -> TrainingSlides | None:
    """The nearest.pt beside the checkpoint; None with a warning if it cannot be used, an error only with --nearest."""
    try:
        return TrainingSlides.load(options.checkpoint, captioner, searchable=True)
    except UserError as error:
        if options.nearest:
            raise
        logger.warning("the page will show no nearest training texts: %s", error.what)
        return None


def make_app(captioner: Captioner, options: GenerationOptions, training: TrainingSlides | None = None,
             num_nearest: int = _NEAREST, uploads: Uploads | None = None) -> Any:
    """The ASGI application.

    Args:
        captioner: The model.
        options: How to decode.
        training: Where to look for the nearest training slides; None shows none.
        num_nearest: How many of them are shown.
        uploads: Where files are kept while they are answered.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    uploads = uploads or Uploads()
    model = ModelFacts.of(captioner)
    page = render("serve.html", ("page.js", "tilemap.js", "serve.js"), connect="'self'", most_bytes=uploads.max_bytes,
                  suffixes=",".join(FORMATS), model=model, banners=model.banners)
    model_lock = asyncio.Lock()  # one slide at a time: memory is for one, and explaining hooks into the layers

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})

    async def describe(request: Request) -> Response:
        try:
            with tempfile.TemporaryDirectory(prefix="prism_coca_") as folder:
                path = Path(folder) / f"upload{parse_suffix(request.headers.get('x-suffix', '.h5'))}"
                texts = parse_texts(request.headers.get("x-texts", "[]"))
                async with uploads.saved(request, path), model_lock:
                    result = await run_in_threadpool(answer, captioner, path, texts, options, training, num_nearest)
        except ClientDisconnect:  # nobody reads the answer
            return Response(status_code=400)
        except UserError as error:
            return JSONResponse({"error": fault_in_words(error.what)}, getattr(error, "status", 422))
        return JSONResponse(visible_values(result, keep="\n"))

    return Starlette(routes=[Route("/", show), Route("/describe", describe, methods=["POST"])],
                     middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def answer(captioner: Captioner, path: Path, texts: list[str], options: GenerationOptions,
           training: TrainingSlides | None, num_nearest: int = _NEAREST) -> dict[str, Any]:
    """Caption, scores, nearest training texts and tile map of one uploaded file. Raises UserError for a bad one."""
    slide = open_slide(captioner, path)
    require_small(slide, MAX_BYTES)
    vectors: dict[str, SlideVectors] = {}
    record = captioner.describe([slide], texts, options, vectors)[0]
    nearest = []
    if training:
        for neighbor in training.nearest(vectors[slide.slide_id].contrastive[0], num_nearest):
            nearest.append([f"{neighbor['id']}: {neighbor['texts'][0]}", neighbor["similarity"]])
    result = {"caption": record["caption"], "finished": record["finished"], "confidence": record["confidence"],
              "unusual": record.get("unusual"), "unusual_reason": record.get("unusual_reason"), "unusual_words": None,
              "fields": record.get("fields", {}), "scores": list(record["similarity"].items()), "nearest": nearest,
              "tiles": slide.num_tiles, "map": None, "why_no_map": None}
    if record.get("unusual"):
        result["unusual_words"] = reasons_in_words(record["unusual_reason"])
    try:
        result["map"] = page_data(*explain_slide(captioner, slide, record["caption"], record["finished"], training,
                                                 unusual=record.get("unusual", False)))
    except UserError as error:  # an empty caption
        result["why_no_map"] = fault_in_words(error.what)
    return result


def parse_suffix(header: str) -> str:
    """The ending of the uploaded file's name, which says its format. Raises UserError for another than ours."""
    suffix = header.lower()
    if suffix not in FORMATS:
        raise UserError("upload", f"its name ends in {visible(suffix[:20])!r}", f"give {', '.join(FORMATS)}")
    return suffix


def _parse_list(header: str) -> list[str]:
    try:
        values = json.loads(header)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError("texts", "are not a list of texts", "send them from the page")
    return values


def parse_texts(header: str) -> list[str]:
    """The texts to score, sent as a JSON list in ASCII: stripped, printable, without repeats. Raises UserError."""
    texts = [text.strip() for text in _parse_list(header) if text.strip()]
    longest = max(map(len, texts), default=0)
    if len(texts) > _MAX_TEXTS or longest > _MAX_CHARACTERS:
        raise UserError("texts", f"{len(texts)} texts, the longest of {longest} characters",
                        f"give up to {_MAX_TEXTS} of {_MAX_CHARACTERS}")
    return list(dict.fromkeys(visible(text) for text in texts))
