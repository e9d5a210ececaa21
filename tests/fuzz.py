"""Mutated files and what reads them, for tests/scripts/test_fuzz.py: slides, tables, configs, checkpoints, exported folders,
tokenizers, and what a run derives from its inputs (slide cache, index of headers, nearest.pt).

Inputs are read in a process of their own: a library in C that crashes, hangs or takes all memory on one of them must
end the child, not the tests. The n-th input of a kind is always the same, unless PRISM_COCA_FUZZ_SEED is set.
"""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import openpyxl
import torch
import torch._dynamo  # see kill_runs

from finetune.checkpoints.format import Checkpoint, RunDescription, read_pth
from finetune.checkpoints.hf_folder import WEIGHTS, write_folder
from finetune.common.errors import BadSlide, UserError
from finetune.common.visible import json_text
from finetune.config.schema import Config, from_dict
from finetune.config.yaml_file import load_yaml
from finetune.data.header_cache import read_headers, write_headers
from finetune.data.labels import load_labels
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import SlideFile, find_files, inspect_slide
from finetune.data.tile_facts import TileFacts
from finetune.data.tile_reader import read_coords, read_tiles
from finetune.data.tokenizer import build_tokenizer, tokenizer_from_dict
from finetune.inference.captioner import Captioner
from finetune.inference.nearest import TrainingSlides
from finetune.models.captioner import SlideCaptioner
from finetune.models.training_texts import SlideVectors
from finetune.training.optim import build_optimizer
from finetune.training.resume import check_same_run, restore, saved_state
from tests.helpers.files import ROOT

GOLDEN = ROOT / "tests" / "golden" / "checkpoint_v1.pth"
SECONDS, MEGABYTES = 10, 2000  # limits of the issue: one input may not take longer, nor the process more memory
_NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
_JSON_WORDS = [b'"', b"{", b"}", b"[" * 3000, b'{"a":' * 3000, b"\\ud800", b"\\u0000", b"1e999", b"NaN", b"null", b",", b":",
               b"9" * 5000, b"\xef\xbb\xbf", b"\xff\xfe", b'"s0": "x",', b"../", b"\x00", "癌".encode("gbk")]
_YAML_WORDS = [b"&a ", b"*a", b"!!python/object/apply:os.getcwd []", b"<<: *a", b"- ", b"? ", b": ", b"| ", b"> ", b"%TAG ! x",
               b"---\n", b"...\n", b"\t", b"{", b"[", b"[" * 2000, b"#", b"'", b'"', b"\x00", b"\x85", b"1e-4", b".nan", b"0o7",
               b"training:\n", b"  seed: 1\n", b"\xff", "癌".encode("gbk"), b"a: " * 500]


def mutate(raw: bytes, rng: random.Random, words: list[bytes] | None = None) -> bytes:
    """`raw` with 1 to 6 bytes, numbers or pieces changed, moved, cut out or put in."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7 if words else 6)
        if kind == 0:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            width = rng.choice([1, 2, 4, 8])
            number = rng.choice(_NUMBERS) % 2**(8 * width)
            data[at:at + width] = number.to_bytes(width, rng.choice(["little", "big"]))
        elif kind == 2:
            del data[at:at + rng.randrange(64)]
        elif kind == 3:
            source = rng.randrange(len(data) + 1)
            data[at:at] = data[source:source + rng.randrange(64)]
        elif kind == 4 and rng.random() < 0.3:
            del data[at:]
        elif kind == 5 and data:
            data[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 6:
            data[at:at] = rng.choice(words)
    return bytes(data)


# --- one kind after the other: bytes of an input, and what reads it --------------------------------------------------

@functools.cache
def _slides() -> list[bytes]:
    files = []
    data = np.random.default_rng(0).standard_normal((30, 8)).astype("f4")
    for shape, options in (((30, 8), {}), ((1, 30, 8), {"chunks": (1, 10, 8), "compression": "gzip"}),
                           ((30, 8), {"chunks": (7, 8), "maxshape": (None, 8), "fletcher32": True, "shuffle": True})):
        memory = io.BytesIO()
        with h5py.File(memory, "w", libver=("earliest", "latest")[len(files) % 2]) as file:
            file.create_dataset("features", data=data.reshape(shape), **options)
            file["coords"] = np.zeros((30, 2), "i8")
        files.append(memory.getvalue())
    return files


def h5_input(rng: random.Random) -> bytes:
    return mutate(rng.choice(_slides()), rng)


def h5_read(path: Path) -> None:
    slide = inspect_slide(path, None, 8)
    tiles = read_tiles(slide)
    assert tiles.shape == (slide.num_tiles, 8) and np.isfinite(tiles).all()


def json_input(rng: random.Random) -> bytes:
    forms = ['"胃腺癌，{}级。\\n"', '["胃腺癌", "癌{}"]', '{{"text": "癌", "slides": ["a{}.h5", "b"], "split": "val"}}']
    text = "{" + ",\n".join(f'"s{i}.h5": {rng.choice(forms).format(i)}' for i in range(rng.randint(1, 9))) + "}"
    if rng.random() < 0.2:
        text = '{"train": [{"id": "a", "report": "癌", "image_path": ["x/a.pt"]}], "test": [{"id": "b", "report": ["c"]}]}'
    return mutate(text.encode(), rng, _JSON_WORDS)


def json_read(path: Path) -> None:
    table_read(path)


_HEADER = ["病理号", "病理诊断", "切片号", "split", "备注"]
_CSV_WORDS = [b'"', b",", b";", b"\t", b"\r\n", b"\n\n", b'""', b"=\"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xa1\xa1", b"sep=", b"," * 300,
              b'"' * 301, b"../x", b"D:\\a\\", "癌".encode("gbk"), "癌".encode("utf-16-le"), b"1e999", b"text,text"]
_XML_WORDS = [b"<c>", b"</c>", b"<v></v>", b"<f>1+1</f>", b'r="XFD1048576"', b'r="A99999999999"', b't="s"', b't="inlineStr"', b"&#0;", b"&a;", b"<is><t>",
              b'<mergeCell ref="A1:XFD1048576"/>', b"999999999", b'"', b"<!DOCTYPE a [<!ENTITY a 'x'>]>", b"<!--", b"_x0000_"]


def _table(rng: random.Random) -> list[list[str]]:
    words = ["胃癌", "a.svs", "train", "x,y", 'q"q', "第一行\n第二行", "", "123.0", "D:\\w\\b.kfb", "é"]
    return [_HEADER[: rng.randint(2, 5)], *([f"n{i}", *rng.choices(words, k=4)] for i in range(rng.randint(1, 9)))]


def csv_input(rng: random.Random) -> bytes:
    rows = _table(rng)
    memory = io.StringIO()
    csv.writer(memory, delimiter=rng.choice(",;\t|")).writerows(row[: len(rows[0])] for row in rows)
    return mutate(memory.getvalue().encode(rng.choice(["utf-8", "gb18030", "utf-16", "utf-16-le"]), "replace"), rng, _CSV_WORDS)


def jsonl_input(rng: random.Random) -> bytes:
    header, *rows = _table(rng)
    lines = [json.dumps({key: rng.choice([cell, [cell, cell], 5, None]) for key, cell in zip(header, row, strict=False)}, ensure_ascii=False) for row in rows]
    return mutate("\n".join(lines).encode(), rng, _JSON_WORDS)


def xlsx_input(rng: random.Random) -> bytes:
    """A changed archive, or one whole in which the XML of a part is changed."""
    book = openpyxl.Workbook()
    header, *rows = _table(rng)
    book.active.append(header)
    for row in rows:
        book.active.append([rng.choice([cell, i, i / 7, None]) for i, cell in enumerate(row)])
    if rng.random() < 0.3:
        book.active.merge_cells(rng.choice(["A1:C1", "A2:A4", "B2:C3"]))
    memory, changed = io.BytesIO(), io.BytesIO()
    book.save(memory)
    if rng.random() < 0.3:
        return mutate(memory.getvalue(), rng)
    with zipfile.ZipFile(memory) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target:
        part = rng.choice([e.filename for e in source.infolist()] + ["xl/worksheets/sheet1.xml"] * 5)
        for entry in source.infolist():
            raw = source.read(entry)
            target.writestr(entry.filename, mutate(raw, rng, _XML_WORDS) if entry.filename == part else raw)
    return changed.getvalue()


def table_read(path: Path) -> None:
    labels, _ = load_labels(path)
    assert all(label.text.strip() and not any(".." in name.split("/") for name in label.slides) for label in labels.values())


def npy_input(rng: random.Random) -> bytes:
    data, memory = np.random.default_rng(0).standard_normal((30, 8)), io.BytesIO()
    np.save(memory, np.asarray(data.astype(rng.choice(["<f4", "<f2", ">f8"])), order=rng.choice("CF")))
    return mutate(memory.getvalue(), rng, [b"}", b"'shape': (", b"9" * 30, b"\x93NUMPY", b"|O", b"<f4", b"True", b"(" * 500])


def npz_input(rng: random.Random) -> bytes:
    data, memory = np.random.default_rng(0).standard_normal((30, 8)).astype("f4"), io.BytesIO()
    rng.choice([np.savez, np.savez_compressed])(memory, **rng.choice([{"features": data, "coords": data[:, :2]}, {"arr_0": data}]))
    return mutate(memory.getvalue(), rng)


@functools.cache
def _groups() -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for i, name in enumerate("AB"):
            file.create_dataset(f"{name}/features", data=np.random.default_rng(i).standard_normal((30, 8)).astype("f4"), chunks=(7, 8))
            file[f"{name}/coords"] = np.zeros((30, 2), "i8")
    return memory.getvalue()


def groups_input(rng: random.Random) -> bytes:
    return mutate(_groups(), rng)


def groups_read(path: Path) -> None:
    """One file with a group for each slide: each of them, and its coordinates."""
    renamed = path.rename(path.with_suffix(".h5"))
    for locations in find_files(renamed).values():
        slide = inspect_slide(locations[0], None, 8)
        tiles = read_tiles(slide)
        assert tiles.shape == (slide.num_tiles, 8) and np.isfinite(tiles).all()
        read_coords(slide)


def yaml_input(rng: random.Random) -> bytes:
    return mutate((ROOT / "config.yaml").read_bytes()[: rng.choice([300, 2000, 10**6])], rng, _YAML_WORDS)


def yaml_read(path: Path) -> None:
    from_dict(load_yaml(path, Config()).to_dict(), "again")


@functools.cache
def _golden() -> dict:
    return read_pth(GOLDEN)


def _hostile(rng: random.Random) -> object:
    return rng.choice([
        None, True, -1, 0, 2**40, 2**70, float("nan"), float("inf"), "", "x" * 5000, "\x1b[2J\n", [], {}, [[]], {"a": {}}, (), 0.5,
        torch.zeros(1).expand(10**9), torch.zeros(3), torch.tensor(float("nan")), torch.zeros(0, 10**6), torch.zeros(2).half(),
        torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64), torch.zeros(4, dtype=torch.uint8)])


def _damaged(content: dict, rng: random.Random) -> dict:
    """A copy in which one to three values, at any depth, are others, gone, or under another name."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        place: object = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and rng.random() < 0.85:
                place = inner
                continue
            if isinstance(place, dict) and rng.random() < 0.2:
                del place[key]
            elif isinstance(place, dict) and rng.random() < 0.1:
                place[rng.choice(["x", "", 7, -1, key])] = place.pop(key)
            else:
                place[key] = _hostile(rng)
            break
    return content


def pth_input(rng: random.Random) -> bytes:
    way = rng.randrange(4)
    if way == 0:
        return mutate(GOLDEN.read_bytes(), rng)
    memory = io.BytesIO()
    if way == 1:  # a changed pickle, with the right checksum
        with zipfile.ZipFile(GOLDEN) as source, zipfile.ZipFile(memory, "w") as target:
            for entry in source.infolist():
                raw = source.read(entry)
                target.writestr(entry.filename, mutate(raw, rng) if entry.filename.endswith("data.pkl") else raw)
    else:
        torch.save(_damaged(_golden(), rng), memory)
    return memory.getvalue()


@functools.cache
def _model() -> tuple[SlideCaptioner, Config]:
    captioner = Captioner.load(GOLDEN, device="cpu")
    return captioner.model, captioner.config


def pth_read(path: Path) -> None:
    """Inference from the file, and resuming from it."""
    with_errors: list[UserError] = []
    try:
        Captioner.load(path, device="cpu")
    except UserError as error:
        with_errors.append(error)
    checkpoint = Checkpoint.load(path)
    model, config = _model()
    model.prism.unfreeze()
    restore(checkpoint, model, build_optimizer(model.named_parameters(), 1e-3, 0.1), torch.amp.GradScaler("cpu", enabled=False))
    saved_state(checkpoint)
    sections = {name: _golden()[name] for name in ("tokenizer", "prism", "data", "versions")}
    check_same_run(checkpoint, RunDescription(config=config.to_dict(), **sections))
    assert all(e.line().isprintable() for e in with_errors)


@functools.cache
def _index() -> dict:
    """A nearest.pt of the golden model."""
    captioner = Captioner.load(GOLDEN, device="cpu")
    width, (count, image_dim) = captioner.model.decoder.dim_latents, (6, captioner.config.model.image_dim)
    rng = torch.Generator().manual_seed(0)
    probe = {name: torch.rand(shape, generator=rng) * 0.5 + 0.2 for name, shape in (
        ("mean", image_dim), ("std", image_dim), ("weight", (image_dim, 2)), ("frequency", 2), ("strength", 2), ("noise", 2))}
    about = {"format_version": 2, "fingerprint": captioner.checkpoint.data["fingerprint"], "step": captioner.checkpoint.progress["step"]}
    vectors = torch.nn.functional.normalize(torch.randn(count, width, generator=rng), dim=1)
    return about | {"ids": [f"s{i}" for i in range(count)], "texts": [["胃腺癌。"]] * count, "embeddings": vectors,
                    "slide_embeddings": torch.randn(count, image_dim, generator=rng).half(),
                    "probe": probe | {"token_ids": torch.tensor([4, 5])},
                    "unusual": {"least_tiles": 20, "prism_median": 0.3, "prism_limit": 0.5, "contrastive_median": 0.1, "contrastive_limit": 0.4},
                    "confidence": {"bias": 1.5, "likelihood": 1.0, "probe": 2.0, "auroc": 0.8}}


def nearest_input(rng: random.Random) -> bytes:
    memory = io.BytesIO()
    torch.save(_index() if rng.random() < 0.2 else _damaged(_index(), rng), memory)
    return mutate(memory.getvalue(), rng) if rng.random() < 0.1 else memory.getvalue()


@functools.cache
def _captioner() -> Captioner:
    return Captioner.load(GOLDEN, device="cpu")


def nearest_read(path: Path) -> None:
    """What is loaded is looked up in, by vectors and by the probe."""
    captioner = _captioner()
    shutil.copyfile(GOLDEN, path.with_name("best_model.pth"))
    path = path.rename(path.with_name("nearest.pt"))
    training = TrainingSlides.load(str(path.with_name("best_model.pth")), captioner, searchable=False)
    if training is None:
        return
    width, image_dim = captioner.model.decoder.dim_latents, captioner.config.model.image_dim
    one = np.full((1, width), width ** -0.5, "f4")
    if training.texts.contrastive is not None:
        found = training.nearest(one[0], 3)
        assert all(isinstance(n["id"], str) and -1.02 < n["similarity"] < 1.02 for n in found)
    image = np.full((1, image_dim), 0.1, "f4")
    answers = training.texts.lookups(SlideVectors(one, image, image))
    json.loads(json_text([str(answer) for answer in answers.values()]))
    if training.judge:
        record = {"caption": "胃", "confidence": 0.5}
        if training.judge.confidence:
            found = training.judge.probabilities(["胃"], [[4]], np.array([-1.0]), SlideVectors(one, image, image))
            assert 0 <= found[0] <= 1
        training.judge.judge_slides([record], SlideVectors(one, image, image), [TileFacts(30, False, False)])
        assert isinstance(record["unusual"], bool) and json.loads(json_text(record)) == record


@functools.cache
def _tokenizers() -> list[dict]:
    """One of each kind that needs no download."""
    texts = ["胃体小弯低分化腺癌，浸润至浆膜层。", "Gastric adenocarcinoma, Grade II.\n", "乳腺浸润性癌，ER（+），Ki-67约30%。"] * 3
    return [build_tokenizer(kind, texts, normalize).to_dict() for kind in ("vocab", "bpe:300") for normalize in (True, False)]


def _damaged_json(text: str, rng: random.Random) -> str:
    """JSON text in which values at any depth are others, or in which bytes are."""
    if rng.random() < 0.5:
        return mutate(text.encode(), rng, _JSON_WORDS).decode("utf-8", "replace")
    return json.dumps(_damaged(json.loads(text), rng), default=lambda value: str(type(value)))


def tokenizer_input(rng: random.Random) -> bytes:
    """The tokenizer of a checkpoint; that of the library is JSON within it."""
    content = dict(rng.choice(_tokenizers()))
    if "json" in content and rng.random() < 0.8:
        content["json"] = _damaged_json(content["json"], rng)
        return json.dumps(content).encode()
    return _damaged_json(json.dumps(content), rng).encode()


def tokenizer_read(path: Path) -> None:
    """What is accepted encodes and decodes reports, and can be saved again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict):
        return
    tokenizer = tokenizer_from_dict(content, str(path))
    for text in ("", "胃癌。", "Grade II <unk> [PAD]\n\u202e", "癌" * 2000):
        ids = tokenizer.encode(text)
        assert len(ids) < 64 * (len(text.encode()) + 10) and isinstance(tokenizer.decode(ids), str)
    json.dumps(tokenizer.to_dict())


_SHAPE = (4, 16)


@functools.cache
def _encodings() -> list[tuple[SlideFile, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(SlideFile(f"s{i}", f"/nowhere/s{i}.h5", "features", 9, 8, tile_sum=7 + i), rng.standard_normal(_SHAPE, "f4")) for i in range(2)]


@functools.cache
def _cached() -> list[bytes]:
    """The files of two slides, and one as versions before checksums wrote it."""
    with tempfile.TemporaryDirectory() as folder:
        cache = SlideCache(Path(folder), "key", *_SHAPE, "float32")
        for slide, tokens in _encodings():
            cache.write((slide, None), tokens)
        files = [cache.path(slide).read_bytes() for slide, _ in _encodings()]
    memory = io.BytesIO()
    np.save(memory, _encodings()[0][1])
    return [*files, memory.getvalue()]


def cache_input(rng: random.Random) -> bytes:
    raw = bytearray(_cached()[rng.choice([0, 0, 0, 0, 1, 2])])
    way = rng.randrange(5)
    if way == 0:
        at = rng.randrange(len(raw))
        raw[at:at + 64] = bytes(len(raw[at:at + 64]))
    elif way == 1:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw) if way < 2 else mutate(bytes(raw), rng)


def cache_read(path: Path) -> None:
    """What is believed is what was written, to the last bit; a file without a sum only has to hold numbers."""
    [slide, tokens], _ = _encodings()
    cache = SlideCache(path.parent / "cache", "key", *_SHAPE, "float32")
    place, has_sum = cache.path(slide), path.stat().st_size != len(_cached()[2])
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, place)
    read = cache.read(slide)
    assert np.isfinite(read).all() and (np.array_equal(read, tokens) or not has_sum)


def index_input(rng: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        slides = [SlideFile(f"s{i}", str(GOLDEN), "features", 9, 8, "<f4", None, GOLDEN.stat().st_size, GOLDEN.stat().st_mtime_ns) for i in range(3)]
        write_headers(Path(folder) / "index.json", None, 8, None, slides)
        raw = (Path(folder) / "index.json").read_bytes()
    if rng.random() < 0.5:
        return mutate(raw, rng, _JSON_WORDS)
    rows = _damaged_json(raw.partition(b"\n")[2].decode(), rng).encode()
    return json.dumps({"made_for": [2, None, 8, None], "crc32": zlib.crc32(rows)}).encode() + b"\n" + rows


def index_read(path: Path) -> None:
    """Only types are looked at where the sum was made right again."""
    for location, slide in read_headers(path, None, 8, None).items():
        assert location == slide.location and isinstance(slide.num_tiles, int) and isinstance(slide.key, str)


@functools.cache
def _exported() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_folder(GOLDEN, Path(folder) / "exported")
        return {path.name: path.read_bytes() for path in (Path(folder) / "exported").iterdir()}


def folder_input(rng: random.Random) -> bytes:
    """An exported folder in which one file is damaged, as an archive."""
    files = dict(_exported())
    name = rng.choice(["config.json", "config.json", "tokenizer.json", "tokenizer.json", "model.safetensors", "model.safetensors", "config.yaml"])
    if name.endswith("json"):
        files[name] = _damaged_json(files[name].decode(), rng).encode()
    elif rng.random() < 0.1:
        del files[name]
    else:
        head = int.from_bytes(files[name][:8], "little") + 8 if name == WEIGHTS else len(files[name])
        at = head if rng.random() < 0.8 else len(files[name])  # else the header would hardly ever be met
        files[name] = mutate(files[name][:at], rng, _JSON_WORDS) + files[name][at:]
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return memory.getvalue()


def folder_read(path: Path) -> None:
    folder = path.with_name("exported")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            (folder / name).write_bytes(archive.read(name))
    captioner = Captioner.load(folder, device="cpu")
    json.loads(json_text(captioner.checkpoint.data))


KINDS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[Path], None]]] = {
    "h5": (h5_input, h5_read), "groups": (groups_input, groups_read), "npy": (npy_input, h5_read), "npz": (npz_input, h5_read),
    "json": (json_input, json_read), "csv": (csv_input, table_read), "jsonl": (jsonl_input, table_read), "xlsx": (xlsx_input, table_read),
    "yaml": (yaml_input, yaml_read), "pth": (pth_input, pth_read),
    "nearest": (nearest_input, nearest_read), "tokenizer": (tokenizer_input, tokenizer_read), "cache": (cache_input, cache_read),
    "index": (index_input, index_read), "folder": (folder_input, folder_read)}


def work(kind: str, first: int, seconds: float, most: int, folder: str) -> None:
    """Read inputs `first`.. of a kind until time or number is up. `folder`/done holds how far it came, `bad` what failed."""
    sys.stderr = sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    torch.set_num_threads(1)
    make, read = KINDS[kind]
    seed = os.environ.get("PRISM_COCA_FUZZ_SEED", "")
    path, until = Path(folder) / f"input.{kind}", time.monotonic() + seconds
    with open(Path(folder) / "done", "w", encoding="utf-8") as done, open(Path(folder) / "bad", "a", encoding="utf-8") as bad:
        for n in range(first, first + most):
            if time.monotonic() > until:
                break
            path.write_bytes(make(random.Random(f"{seed}{kind} {n}")))
            signal.alarm(SECONDS)
            try:
                read(path)
            except (UserError, BadSlide) as error:
                if "\n" in str(error):
                    bad.write(f"{kind} {n}: error of several lines\n")
            except BaseException as error:
                bad.write(f"{kind} {n}: {type(error).__name__}: {str(error)[:200]!r}\n")
            signal.alarm(0)
            done.seek(0)
            done.write(f"{n - first + 1}")
            done.flush()
        if (used := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000) > MEGABYTES:
            bad.write(f"{kind}: {used:.0f} MB\n")
    os._exit(0)
