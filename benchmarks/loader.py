"""Loading batches of cached slides without a model: ours, torch's DataLoader and plain `np.load`.

1024 slides of 513 x 1280 float16, as the slide cache keeps them, in batches of 32. The files have just been written, so
they come from the system's memory unless it is too small. All take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from finetune.common.device import keep_freed_memory
from finetune.data.batch import Sample
from finetune.data.loader import BatchLoader
from finetune.data.sampler import BatchOrder
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import SlideFile

from .common import Row, in_turn, ratio

_BATCH, _TOKENS = 32, 64
_WORKERS = 2
_STEP = 0.05  # seconds of a simulated training step on a device, in which the host has nothing to do
_ROUNDS = 3


@dataclass(frozen=True)
class _Files(Dataset):
    """The cached slides as torch's DataLoader takes them."""

    paths: list[Path]
    texts: torch.Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(np.load(self.paths[index])), self.texts[index]


def rows(small: bool = False) -> list[Row]:
    """Slides a second without a step, and seconds of a step of 50 ms with loading beside it."""
    keep_freed_memory(torch.device("cpu"))  # as a run does
    count, shape = (64, (9, 16)) if small else (1024, (513, 1280))
    with tempfile.TemporaryDirectory() as folder:
        cache = SlideCache(Path(folder), "benchmark", *shape, "float16")
        samples = _write(cache, count)
        return _throughput(cache, samples, 1 if small else _ROUNDS) + _beside_a_step(cache, samples, small)


def _write(cache: SlideCache, count: int) -> list[Sample]:
    """Random slides in the cache, with texts of 64 tokens."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((cache.tokens, cache.width), dtype=np.float32).astype(cache.dtype)
    samples = []
    for number in range(count):
        slide = SlideFile(f"slide_{number}", f"slide_{number}.h5", "embeddings", 1)
        cache.write((slide, None), np.roll(block, number))
        samples.append(Sample(slide, rng.integers(4, 100, _TOKENS + 1).tolist()))
    return samples


def ours(cache: SlideCache, samples: list[Sample]) -> Iterator[Any]:
    """An epoch of our batches."""
    order = BatchOrder([(0, sample.most_tokens) for sample in samples], _BATCH, 0, shuffle=True)
    loader = BatchLoader(samples, order, cache, 0, workers=_WORKERS)
    yield from loader.epoch(0)
    loader.close()


def torch_loader(cache: SlideCache, samples: list[Sample]) -> Iterable[Any]:
    """The same by torch's DataLoader, with as many processes as we have threads."""
    data = _Files([cache.path(sample.slide) for sample in samples], torch.tensor([s.token_ids for s in samples]))
    return DataLoader(data, _BATCH, shuffle=True, num_workers=_WORKERS)


def plain(cache: SlideCache, samples: list[Sample], *, stack: bool) -> Iterator[Any]:
    """The same by `np.load`, one after the other in this thread."""
    for start in range(0, len(samples), _BATCH):
        arrays = [np.load(cache.path(sample.slide)) for sample in samples[start:start + _BATCH]]
        yield np.stack(arrays) if stack else arrays


def _read_bytes(paths: list[Path]) -> None:
    """Read files into one buffer each thread, without anything else: what disk and memory give."""
    buffer = bytearray(paths[0].stat().st_size)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            file.readinto(buffer)


def _throughput(cache: SlideCache, samples: list[Sample], rounds: int) -> list[Row]:
    def all_of(batches: Callable[[], Iterable[Any]]) -> Callable[[], None]:
        return lambda: [None for _ in batches()] and None

    paths = [cache.path(sample.slide) for sample in samples]

    def floor() -> None:
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(_read_bytes, [paths[worker::_WORKERS] for worker in range(_WORKERS)]))

    works = {"ours": all_of(partial(ours, cache, samples)), "torch": all_of(partial(torch_loader, cache, samples)),
             "np.load": all_of(partial(plain, cache, samples, stack=False)),
             "np.load, np.stack": all_of(partial(plain, cache, samples, stack=True)), "floor": floor}
    times = in_turn(works, rounds)
    rates = {name: len(samples) / min(seconds) for name, seconds in times.items()}
    share = rates["ours"] / rates["floor"]
    return [Row(f"load {len(samples)} cached slides, batches of {_BATCH}", f"{rates['ours']:.0f} slides/s",
                f"{rates['torch']:.0f} slides/s, DataLoader", f"{ratio(times['torch'], times['ours']):.2f}x",
                f"{share:.0%} of {rates['floor']:.0f} slides/s, {_WORKERS} threads that only read",
                wanted="1600 slides/s, or what the disk gives"),
            Row("the same, np.load in one thread", "", f"{rates['np.load']:.0f} slides/s"),
            Row("the same, np.load and np.stack in one thread", "", f"{rates['np.load, np.stack']:.0f} slides/s")]


def _beside_a_step(cache: SlideCache, samples: list[Sample], small: bool) -> list[Row]:
    seconds = 0.001 if small else _STEP

    def run(batches: Callable[[], Iterable[Any]]) -> Callable[[], None]:
        def work() -> None:
            for _ in batches():
                time.sleep(seconds)
        return work

    works = {"ours": run(partial(ours, cache, samples)), "torch": run(partial(torch_loader, cache, samples))}
    times = in_turn(works, 1 if small else _ROUNDS)
    steps = len(samples) / _BATCH
    mine, other = (1e3 * min(times[name]) / steps for name in ("ours", "torch"))
    case = f"a step of {1e3 * seconds:.0f} ms with loading beside it"
    return [Row(case, f"{mine:.0f} ms", f"{other:.0f} ms, DataLoader",
                f"{ratio(times['torch'], times['ours']):.2f}x", wanted="as long as the step")]
