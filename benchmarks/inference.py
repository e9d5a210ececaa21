"""A folder of slides through inference: as inference.py does it, against one slide after the other.

200 slides of 4000 tiles (`--slides` of this module for fewer), the published encoder, a captioner of dim 1024 with
6 + 6 layers and a vocabulary of 42384, captions of 100 tokens, bfloat16. One by one: each slide is read, encoded and
captioned before the next, as a script over `Captioner.describe` would; on fewer slides, as each takes as long.

The floor of a slide: the products of its encoding at the machine's GEMM rate, and the weights that a token needs read
once for all slides that are decoded together; both rates are measured in the same process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from coca_pytorch import CoCa
from finetune.common.device import resolve_device, resolve_precision
from finetune.config.schema import Config
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import find_files, inspect_slide
from finetune.data.tokenizer import VocabTokenizer
from finetune.inference.captioner import Captioner
from finetune.inference.interruption import StopSignals
from finetune.inference.job import Job
from finetune.inference.record_file import RecordFile, Source
from finetune.models.captioner import SlideCaptioner
from prism import GenerationOptions, load_prism

from .common import Row, gemm_rate, gigabytes, in_process, read_rate
from .encoder import flop
from .epochs import make_slides

_FULL = {"prism": "random", "slides": 200, "alone": 12, "tiles": 4000, "tokens": 100, "words": 42384,
         "model": {"dim": 1024, "unimodal_depth": 6, "multimodal_depth": 6, "dim_latents": 5120}}
_SMALL = {"prism": "random-tiny", "slides": 20, "alone": 4, "tiles": 8, "tokens": 8, "words": 50,
          "model": {"dim": 32, "unimodal_depth": 1, "multimodal_depth": 1, "dim_latents": 32}}


def rows(small: bool = False, slides: int | None = None) -> list[Row]:
    """The table. slides: fewer than 200, where 200 take too long."""
    case = dict(_SMALL if small else _FULL)
    if slides is not None:
        case |= {"slides": slides, "alone": min(case["alone"], slides)}
    found = in_process("benchmarks.inference", "--case", json.dumps(case))
    encode, decode = found["encode_floor"], found["decode_floor"]
    name = f"{case['slides']} slides x {case['tiles']} tiles, captions of {case['tokens']} tokens"
    result = []
    for label, key, floor in ((name, "first", encode + decode), ("the same again, encodings cached", "again", decode)):
        each = found[key] / case["slides"]
        alone = found["alone" if key == "first" else "alone_cached"] / case["alone"]
        peer = f"one by one {60 / alone:.1f} ({case['alone']} slides)"
        result.append(Row(label, f"{60 / each:.1f} slides a minute", peer, f"{alone / each:.2f}x",
                          f"{floor:.2f} s a slide: {floor / each:.0%}", gigabytes(found["peak"])))
    return result


def measure(prism: str, slides: int, alone: int, tiles: int, tokens: int, words: int,
            model: dict[str, int]) -> dict[str, Any]:
    """Seconds of a folder, of it again, and of some slides one by one; the floors; peak memory in bytes."""
    captioner = _captioner(prism, words, model)
    before = _floors(captioner, tiles, tokens)
    options = GenerationOptions(max_length=tokens + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "slides"
        folder.mkdir()
        make_slides(folder, slides, tiles)
        cases = {case_id: [paths] for case_id, paths in find_files(folder).items()}
        cache = SlideCache.of(Path(name) / "cache", captioner.model.prism.sha256, captioner.precision.name,
                              *captioner.model.image_tokens_shape)
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            found = {"first": _job(captioner, cases, options, cache, nowhere),
                     "again": _job(captioner, cases, options, cache, nowhere)}
        paths = [paths[0][0] for paths in list(cases.values())[:alone]]
        found |= _one_by_one(captioner, paths, options, cache)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    after = _floors(captioner, tiles, tokens)
    return found | {name: min(seconds, after[name]) for name, seconds in before.items()}


def _captioner(prism: str, words: int, model: dict[str, int]) -> Captioner:
    torch.manual_seed(0)
    device = resolve_device("auto")
    tokenizer = VocabTokenizer([f"w{i}" for i in range(words - 4)])  # beside four special tokens
    encoder = load_prism(prism)
    decoder = CoCa(num_tokens=len(tokenizer), image_dim=encoder.image_dim, **model)
    config = Config()
    config.data.image_dim = encoder.tile_dim
    captioner = SlideCaptioner(encoder, decoder, "latents").to(device).eval()
    return Captioner(captioner, tokenizer, config, resolve_precision("auto", device), {"val": [], "test": []})


def _job(captioner: Captioner, cases: dict[str, list[list[str]]], options: GenerationOptions, cache: SlideCache,
         nowhere: Any) -> float:
    """Seconds of all slides; their records are printed to `nowhere`."""
    with RecordFile(None) as file, StopSignals() as signals, contextlib.redirect_stdout(nowhere):
        file.begin(Source("model", "options"), dict.fromkeys(cases, ""), resume=False)
        start = time.perf_counter()
        Job(captioner, cases, [], options, cache, file, dict.fromkeys(cases, ""), lambda *_: None,
            keep_vectors=False).run(signals)
        seconds = time.perf_counter() - start
        assert all(record["error"] is None for record in file.records(cases))
    return seconds


def _one_by_one(captioner: Captioner, paths: list[str], options: GenerationOptions,
                cache: SlideCache) -> dict[str, float]:
    """Seconds of slides that wait for each other: all of it, and with image tokens from the cache."""
    data = captioner.config.data
    slides = [inspect_slide(path, data.h5_key, data.image_dim) for path in paths]
    start = time.perf_counter()
    for slide in slides:
        captioner.describe([slide], [], options)
    middle = time.perf_counter()
    for slide in slides:
        captioner.describe_encoded([slide.slide_id], cache.read(slide)[None], [], options)
    return {"alone": middle - start, "alone_cached": time.perf_counter() - middle}


def _floors(captioner: Captioner, tiles: int, tokens: int) -> dict[str, float]:
    """Seconds of a slide that its encoding and its share of a decoded batch take at least."""
    device, half = captioner.precision.device, captioner.precision.name != "fp32"
    config, decoder = captioner.model.prism.config, captioner.model.decoder
    products = flop(tiles, config.latent_seq + 1, config.latent_dim, config.context_dim)[0]
    layers = [*decoder.unimodal_layers.parameters(), *decoder.token_emb.parameters()]
    # keys and values of the image are computed once
    layers += [p for name, p in decoder.multimodal_layers.named_parameters() if "to_kv" not in name]
    weight_bytes = (2 if half else 4) * sum(p.numel() for p in layers)
    gemm = gemm_rate(torch.bfloat16 if half else torch.float32, device)
    return {"encode_floor": products / gemm, "decode_floor": tokens * weight_bytes / read_rate(device) / 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=json.loads, help="of another process: JSON of what to measure")
    parser.add_argument("--slides", type=int, default=_FULL["slides"], help="default 200")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(**args.case)))
        return
    for row in rows(slides=args.slides):
        print(row.line())


if __name__ == "__main__":
    main()
