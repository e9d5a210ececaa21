"""Batches for a GPU: pinned, copied while the step before runs, and waited for by the device only. On a CPU with a fake stream;
with a real one where there is a GPU."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import torch

from finetune.data import batch as batch_module
from finetune.data.batch import Sample
from finetune.data.loader import BatchLoader
from finetune.data.sampler import BatchOrder
from finetune.data.slide_cache import SlideCache, ViewReader
from finetune.data.slides import SlideFile, inspect_slide
from finetune.data.tile_reader import TileReader
from tests.helpers.files import random_tiles, refused, write_h5

GPU = torch.device("cuda", 0)
N, D = 3, 4


@pytest.fixture(params=["tokens", "views", "tiles"])
def source(request, tmp_path):
    """(samples, reader) of 9 slides."""
    samples, cache = [], SlideCache(tmp_path / "cache", "k", N, D, "float16")
    for i in range(9):
        slide = inspect_slide(write_h5(tmp_path / f"s{i}.h5", random_tiles(2 + i, D, i)), None, D)
        samples.append(Sample(slide, [1, *range(4, 5 + i % 3), 2]))
        for view in [None, *(device_copy_view(number) for number in (1, 2))]:
            path = cache.path(slide, view)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, random_tiles(N, D, 100 * i + (view.number if view else 0), "float16"))
    return samples, {"tokens": cache, "views": ViewReader(cache, 3, 42), "tiles": TileReader(4, 42)}[request.param]


def device_copy_view(number: int):
    from finetune.data.views import View

    return View(number, 42)


def loader_of(source, workers: int, device: torch.device | None = None) -> BatchLoader:
    samples, read = source
    order = BatchOrder([(0, s.most_tokens) for s in samples], 2, 7, shuffle=True, micro_batches=2)
    return BatchLoader(samples, order, read, 0, workers=workers, device=device)


def contents(batch) -> list:
    return [batch.ids, batch.lengths, *(None if not isinstance(v, torch.Tensor) else (v.dtype, v.cpu().tolist())
                                        for k, v in vars(batch).items() if k not in ("ids", "lengths"))]


@pytest.fixture
def fake_gpu(monkeypatch) -> list[tuple]:
    """What is done with a GPU that is not there, in order: pinned memory, copies, waits."""
    events: list[tuple] = []

    class Stream:
        def __init__(self, *_):
            self.name = f"stream {threading.get_ident()}"

        def wait_stream(self, other):
            events.append(("device waits",))

    def empty(*shape, pin_memory=False, **options):
        tensor = torch_empty(*shape, **options)
        if pin_memory:
            pinned.add(tensor.data_ptr())
        return tensor

    def pin(tensor):
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    def to(self, device):
        tensors = [v for k, v in vars(self).items() if isinstance(v, torch.Tensor) and k != "tile_mask"]
        assert all(t.data_ptr() in pinned for t in tensors if t.numel()), "a copy of pageable memory waits"
        assert current[-1] == "side", "a copy on the stream of the step would wait for the step"
        events.append(("copy", tuple(self.ids)))
        return self

    @contextlib.contextmanager
    def side_stream(_):
        current.append("side")
        yield
        current.pop()

    torch_empty, pinned, current = torch.empty, set(), ["step"]
    monkeypatch.setattr(batch_module.torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.data_ptr() in pinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(batch_module.Batch, "to", to)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", side_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return events


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_gpu_are_pinned_and_hold_the_same_numbers(source, fake_gpu, workers):
    plain = [[contents(b) for b in step] for step in loader_of(source, workers).epoch(1)]
    loader = loader_of(source, workers, GPU)
    assert [[contents(b) for b in step] for step in loader.epoch(1)] == plain
    assert len([e for e in fake_gpu if e[0] == "copy"]) == 5 and fake_gpu.count(("device waits",)) == 3
    loader.close()


def test_the_next_step_is_copied_before_a_step_begins_and_waited_for_when_its_turn_comes(source, fake_gpu):
    loader = loader_of(source, 2, GPU)
    ids, running = [], loader.epoch(0)
    for _ in range(3):
        step = next(running)
        ids.append([tuple(b.ids) for b in step])
        for pending in running.gi_frame.f_locals["pending"]:  # so that the test does not depend on the speed of reading
            for future in pending._futures:
                future.result(60)
        fake_gpu.append(("step", len(ids)))
    copies = [[("copy", batch) for batch in step] for step in ids]
    wait = [("device waits",)]
    after_first = fake_gpu.index(("step", 1))
    assert [e for e in fake_gpu[:after_first] if e[0] != "copy"] == wait and fake_gpu[:len(copies[0])] == copies[0]
    # copied before step 2 begins: step 2 itself (if it was not read in time for step 1) and step 3
    between = fake_gpu[after_first + 1:fake_gpu.index(("step", 2))]
    assert between[-len(copies[2]):] == copies[2] and ("device waits",) in between
    assert between.index(("device waits",)) < between.index(copies[2][0]), "or step 2 would wait for the batches of step 3"
    assert fake_gpu[fake_gpu.index(("step", 2)) + 1:] == [*wait, ("step", 3)], "nothing is copied twice"
    loader.close()


def test_a_step_does_not_wait_for_the_next_one_to_be_read(tmp_path, fake_gpu, monkeypatch):
    released = threading.Event()
    cache = SlideCache(tmp_path, "k", N, D, "float16")

    def slow(self, row, slide, epoch):
        if slide.slide_id not in ("0", "1"):
            assert released.wait(60)
        row[:] = 0

    monkeypatch.setattr(SlideCache, "into", slow)
    samples = [Sample(SlideFile(str(i), f"{i}.h5", "x", 1), [1, 4, 2]) for i in range(6)]
    loader = BatchLoader(samples, BatchOrder([(0, 2)] * 6, 2, 0, shuffle=False), cache, 0, workers=2, device=GPU)
    running = loader.epoch(0)
    assert next(running)[0].ids == ["0", "1"]
    assert [e for e in fake_gpu if e[0] == "copy"] == [("copy", ("0", "1"))]
    released.set()
    assert [b.ids for [b] in running] == [["2", "3"], ["4", "5"]]
    loader.close()


def test_without_a_gpu_nothing_is_pinned_or_copied(source, fake_gpu):
    for device in (None, torch.device("cpu")):
        list(loader_of(source, 0, device).epoch(0))
    assert not fake_gpu


@pytest.mark.parametrize("workers", [0, 2])
def test_each_slide_lies_in_its_row(source, workers):
    samples, read = source
    by_id = {s.slide.slide_id: s for s in samples}
    for step in loader_of(source, workers).epoch(2):
        for batch in step:
            for row, slide_id in enumerate(batch.ids):
                wanted = torch.from_numpy(np.array(read(by_id[slide_id].slide, 2)))
                got = batch.image_tokens[row] if batch.image_tokens is not None else batch.tile_embeddings[row][:len(wanted)]
                assert torch.equal(got, wanted)
            assert batch.num_tokens == int(batch.text_mask.sum()) == sum(b.num_tokens for b in batch.split(1))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", "cut", "other", "gone", "fortran"])
def test_a_damaged_cached_slide_is_an_error_with_its_name(tmp_path, content):
    cache, slide = SlideCache(tmp_path, "k", N, D, "float16"), SlideFile("s1", "s1.h5", "x", 1)
    path = cache.path(slide)
    path.parent.mkdir(parents=True)
    np.save(path, np.asfortranarray(random_tiles(N, D, 0, "float16")) if content == "fortran" else random_tiles(*((2, D, 0, "float32") if content == "other" else (N, D, 0, "float16"))))
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif content == "gone":
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    loader = BatchLoader([Sample(slide, [1, 2])] * 2, BatchOrder([(0, 1)] * 2, 2, 0, shuffle=False), cache, 0, workers=1)
    with refused(path, "the cached slide s1 cannot be read", "start again"):
        list(loader.epoch(0))
    loader.close()


@pytest.mark.gpu
def test_a_gpu_gets_the_same_numbers_while_steps_run(source):
    plain = [[contents(b) for b in step] for step in loader_of(source, 2).epoch(1)]
    busy = torch.randn(2000, 2000, device=GPU)
    got = []
    for step in loader_of(source, 2, GPU).epoch(1):
        for _ in range(20):
            busy = busy @ busy * 1e-2
        got.append([contents(b) for b in step])
        assert all(v.device == GPU for b in step for k, v in vars(b).items() if isinstance(v, torch.Tensor) and k != "tile_mask")
    assert got == plain
