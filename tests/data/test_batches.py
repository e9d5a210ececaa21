"""Samples to batches, against plain loops; order and tile choice as pure functions; any number of loader processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.common.errors import UserError
from finetune.data import loader as batching
from finetune.data.batch import Batch, Collate, Sample, encode_text, pad_tiles
from finetune.data.loader import BatchLoader
from finetune.data.sampler import BatchOrder, split_for_rank
from finetune.data.slides import SlideFile, inspect_slide
from finetune.data.tile_reader import TileReader, choose_tiles
from finetune.data.tokenizer import VocabTokenizer
from tests.helpers.files import random_tiles, refused, write_h5
from tests.helpers.loader import hang

D, PAD = 5, 0


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """7 slides of 1 to 13 tiles in two types, with texts of 1 to 7 tokens."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(1)
    made = []
    for i in range(7):
        path = write_h5(folder / f"s{i}.h5", random_tiles(1 + 2 * i, D, i, "float16" if i % 2 else "float32"))
        made.append(Sample(inspect_slide(path, None, D), [1, *rng.integers(4, 30, 1 + i).tolist(), 2]))
    return made


def order_of(samples: list[Sample]) -> BatchOrder:
    return BatchOrder([(s.slide.num_tiles, len(s.token_ids) - 1) for s in samples], 2, 3, shuffle=True)


def batches_of(samples: list[Sample], workers: int = 0, read=TileReader(6, 3)) -> BatchLoader:  # noqa: B008
    return BatchLoader(samples, order_of(samples), read, PAD, workers=workers)


def same(left: Batch, right: Batch) -> bool:
    pairs = [(getattr(left, k), getattr(right, k)) for k in vars(left)]
    return all(a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def slide(count: int, slide_id: str = "s") -> SlideFile:
    return SlideFile(slide_id, f"{slide_id}.h5", "embeddings", count)


# --- texts -----------------------------------------------------------------------------------------------------------

def test_T02_a_long_text_is_cut_but_keeps_its_begin_and_end():
    tokenizer = VocabTokenizer.build(["abcd", "癌", "胃", "肠"])
    text = "癌胃肠癌胃"
    words = tokenizer.encode(text)
    assert encode_text(tokenizer, text, 7) == ([1, *words, 2], False)
    assert encode_text(tokenizer, text, 6) == ([1, *words[:4], 2], True)
    assert encode_text(tokenizer, text, 4) == ([1, *words[:2], 2], True)


# --- choice of tiles -------------------------------------------------------------------------------------------------

def test_all_tiles_are_used_unless_there_are_too_many():
    assert choose_tiles(slide(9), None, 0, 0) is None and choose_tiles(slide(9), 9, 0, 0) is None
    assert choose_tiles(slide(9), 10, 0, 0) is None and len(choose_tiles(slide(9), 8, 0, 0)) == 8


def test_H16_chosen_tiles_are_sorted_different_and_a_function_of_seed_epoch_and_id():
    seen = set()
    for seed in range(3):
        for epoch in range(3):
            for slide_id in ("a", "b", "切片"):
                rows = choose_tiles(slide(1000, slide_id), 50, seed, epoch)
                torch.manual_seed(epoch)
                np.random.seed(seed)
                assert np.array_equal(rows, choose_tiles(slide(1000, slide_id), 50, seed, epoch))
                assert len(rows) == 50 and np.all(np.diff(rows) > 0) and rows[0] >= 0 and rows[-1] < 1000
                seen.add(tuple(rows))
    assert len(seen) == 27


def test_chosen_tiles_never_change_between_versions():
    rng = np.random.default_rng([7, 2, zlib.crc32(b"s")])
    assert choose_tiles(slide(20), 4, 7, 2).tolist() == sorted(rng.choice(20, 4, replace=False)) == [2, 3, 10, 14], \
        "golden value: runs that were stopped must go on the same"


def test_every_tile_has_the_same_chance():
    counts = np.bincount(np.concatenate([choose_tiles(slide(10), 3, 0, epoch) for epoch in range(3000)]), minlength=10)
    assert np.all(np.abs(counts - 900) < 6 * np.sqrt(900 * 0.7))


# --- order -----------------------------------------------------------------------------------------------------------

def equal_sizes(count: int, batch_size: int, seed: int = 42, **changes) -> BatchOrder:
    return BatchOrder([(1, 9)] * count, batch_size, seed, **{"shuffle": True, **changes})


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (7, 2), (8, 4), (9, 4), (3, 5), (500, 7)])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("max_tokens", [None, 40])
def test_an_epoch_holds_every_sample_once(size, batch_size, shuffle, max_tokens):
    sizes = [(i % 5, 1 + i * 7 % 30) for i in range(size)]
    order = BatchOrder(sizes, batch_size, 42, shuffle=shuffle, max_tokens=max_tokens)
    for epoch in range(3):
        listed = order.epoch(epoch)
        flat = [i for batch in listed for i in batch]
        assert sorted(flat) == list(range(size)) and len(listed) == order.count(epoch)
        if max_tokens is None:
            assert sorted(map(len, listed))[1:] == [batch_size] * (len(listed) - 1)
        assert shuffle or flat == list(range(size))


@pytest.mark.parametrize("epochs", [1, 3, 12])
@pytest.mark.parametrize(("max_tokens", "drop_single"), [(None, False), (None, True), (40, False)])
def test_the_total_is_the_sum_over_the_epochs(epochs, max_tokens, drop_single):
    order = BatchOrder([(i % 5, 1 + i * 7 % 30) for i in range(29)], 4, 42, shuffle=True, max_tokens=max_tokens,
                       drop_single=drop_single)
    assert order.total(epochs) == sum(len(list(order.steps(epoch))) for epoch in range(epochs))


def test_A04_a_billion_epochs_are_counted_at_once():
    start = time.process_time()
    assert equal_sizes(29, 4).total(10**9) == 8 * 10**9
    sizes = [(1, 1 + i * 7 % 30) for i in range(9)]
    order = BatchOrder(sizes, 4, 42, shuffle=True, max_tokens=40)
    mean = sum(order.count(epoch) for epoch in range(300)) / 300
    assert order.total(10**9) == pytest.approx(mean * 10**9, rel=0.05)
    assert time.process_time() - start < 20


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = [equal_sizes(30, 4, seed).epoch(epoch) for seed in (0, 1, 42) for epoch in range(4)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_an_order_neither_reads_nor_moves_the_global_random_states():
    torch.manual_seed(0)
    np.random.seed(0)
    first = equal_sizes(30, 4).epoch(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert equal_sizes(30, 4).epoch(1) == first
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize(("max_tokens", "golden"), [(None, [[4, 6], [3, 0], [2, 1], [5]]), (24, [[6, 3], [0, 5, 2], [1, 4]])])
def test_an_order_never_changes_between_versions(max_tokens, golden):
    sizes = [(5, n) for n in (3, 9, 4, 12, 8, 3, 10)]
    assert BatchOrder(sizes, 2, 7, shuffle=True, max_tokens=max_tokens).epoch(1) == golden, "stopped runs must go on"


@pytest.mark.parametrize(("size", "kept"), [(8, 2), (9, 2), (10, 3), (1, 0), (2, 1), (4, 1), (5, 1)])
def test_N04_a_last_batch_of_one_is_left_out_if_asked(size, kept):
    order = equal_sizes(size, 4, drop_single=True)
    assert order.count(0) == kept == len(order.epoch(0)) and all(len(b) > 1 for b in order.epoch(0))


def test_sorting_by_rough_size_saves_most_of_the_padding():
    lengths = np.random.default_rng(0).integers(5, 120, 2000).tolist()
    sizes = [(0, n) for n in lengths]
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 8)
    assert 1 - shuffled.sum() / (shuffled.max(1).sum() * 8) > 0.4, "what plain shuffling wastes"
    for max_tokens, low, high in ((None, 0.4, 0.5), (800, 0.01, 0.1)):
        order = BatchOrder(sizes, 8, 0, shuffle=True, max_tokens=max_tokens)
        padded = sum(len(b) * max(lengths[i] for i in b) for b in order.epoch(0))
        assert order.padding(0) == pytest.approx(1 - sum(lengths) / padded) and low < order.padding(0) < high


def test_a_token_budget_holds_and_is_used():
    lengths = np.random.default_rng(0).integers(5, 120, 2000).tolist()
    batches = BatchOrder([(0, n) for n in lengths], 4, 0, shuffle=True, max_tokens=600).epoch(0)
    padded = [len(b) * max(lengths[i] for i in b) for b in batches]
    assert max(padded) <= 600 and np.mean(padded) > 500 and sorted(map(len, batches))[1] >= 2


def test_a_text_longer_than_the_budget_still_gets_a_negative():
    assert [len(b) for b in BatchOrder([(0, 50)] * 6, 4, 0, shuffle=True, max_tokens=20).epoch(0)] == [2, 2, 2]


# --- padding ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("dtypes", "wanted"), [(("f2", "f2"), torch.float16), (("f4", "f4"), torch.float32),
                                                (("f2", "f4"), torch.float32), (("f4", "f2"), torch.float32)])
def test_tiles_are_padded_with_zeros_in_the_widest_type(dtypes, wanted):
    tiles = [random_tiles(n, D, n, dtype) for n, dtype in zip((3, 1), dtypes, strict=True)]
    padded, mask = pad_tiles(tiles)
    assert padded.dtype is wanted and padded.shape == (2, 3, D)
    for b in range(2):
        for n in range(3):
            present = n < len(tiles[b])
            assert mask[b, n].item() is present
            assert padded[b, n].tolist() == (tiles[b][n].tolist() if present else [0.0] * D)


def test_a_batch_is_what_plain_loops_make(samples):
    chosen = [samples[4], samples[0], samples[6]]
    tiles = [random_tiles(s.slide.num_tiles, D) for s in chosen]
    batch = Collate(PAD)(list(zip(chosen, tiles, strict=True)))
    length = max(len(s.token_ids) for s in chosen) - 1
    assert batch.ids == ["s4", "s0", "s6"] and batch.tile_embeddings.shape == (3, 13, D)
    assert batch.text.dtype == batch.labels.dtype == torch.int64 and batch.text_mask.dtype == torch.bool
    for b, sample in enumerate(chosen):
        text, labels = sample.token_ids[:-1], sample.token_ids[1:]
        padding = [PAD] * (length - len(text))
        assert batch.text[b].tolist() == text + padding, "the end token is no input"
        assert batch.labels[b].tolist() == labels + padding, "the end token is a label"
        assert batch.text_mask[b].tolist() == [True] * len(text) + [False] * len(padding)


def test_a_batch_moves_with_all_its_tensors(samples):
    [batch] = next(batches_of(samples).epoch(0))
    assert same(batch.to(torch.device("cpu")), batch)
    moved = batch.to(torch.device("meta"))
    assert moved.tile_mask.device.type == "cpu", "the encoder reads it on the host"
    tensors = [v for k, v in vars(moved).items() if isinstance(v, torch.Tensor) and k != "tile_mask"]
    assert len(tensors) == 4 and all(v.device.type == "meta" for v in tensors)
    assert (moved.ids, moved.lengths, moved.draws) == (batch.ids, batch.lengths, batch.draws)


# --- reading ---------------------------------------------------------------------------------------------------------

def plain_epoch(samples: list[Sample], epoch: int, max_tiles: int = 6) -> list[Batch]:
    """The batches of `batches_of`, read with plain calls."""
    out = []
    for batch in order_of(samples).epoch(epoch):
        items = []
        for i in batch:
            path = samples[i].slide.path
            data = random_tiles(1 + 2 * i, D, i, "float16" if i % 2 else "float32")
            assert Path(path).stem == f"s{i}"
            rows = choose_tiles(samples[i].slide, max_tiles, 3, epoch)
            items.append((samples[i].at(epoch, 3), data if rows is None else data[rows]))
        out.append(Collate(PAD)(items))
    return out


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_H19_any_number_of_loader_processes_gives_the_same_bits(samples, workers):
    batches = batches_of(samples, workers=workers)
    for epoch, start in [(0, 0), (1, 0), (1, 2), (0, 3), (2, 4)]:
        got = [batch for step in batches.epoch(epoch, start) for batch in step]
        wanted = plain_epoch(samples, epoch)[start:]
        assert len(got) == len(wanted) and all(same(g, w) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_that_was_left_in_the_middle_does_not_disturb_the_next(samples, workers):
    batches = batches_of(samples, workers=workers)
    unfinished = batches.epoch(0)
    assert same(next(unfinished)[0], plain_epoch(samples, 0)[0])
    del unfinished
    assert all(same(g, w) for [g], w in zip(batches.epoch(1, 1), plain_epoch(samples, 1)[1:], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_does_not_move_the_global_random_states(samples, workers):
    torch.manual_seed(0)
    np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(batches_of(samples, workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_slide_is_the_same_error_line_from_any_process(tmp_path, samples, workers):
    data = random_tiles(4, D)
    data[2] = np.nan
    bad = Sample(inspect_slide(write_h5(tmp_path / "bad.h5", data), None, D), [1, 4, 2])
    with refused(tmp_path / "bad.h5", "NaN or infinity in 1 of 4 tiles"):
        list(batches_of([*samples, bad], workers=workers).epoch(0))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_R01_a_loader_process_that_was_killed_ends_the_run_with_advice(samples):
    batches = batches_of(samples * 20, workers=1)
    running = batches.epoch(0)
    next(running)
    os.kill(next(iter(batches._pool._processes)), signal.SIGKILL)
    with refused("training.workers", "a loader process died", "lower training.workers"):
        list(running)
    assert batches._pool is None
    assert len(list(batches.epoch(0))) == batches.count(0), "a new epoch starts new workers"




def test_R02_a_loader_process_that_hangs_ends_the_run(samples, monkeypatch):
    monkeypatch.setattr(batching, "_READ_TIMEOUT", 1)
    batches = batches_of(samples, workers=1, read=hang)
    with refused("training.workers", "reading a slide took more than 1 s"):
        list(batches.epoch(0))


def test_loader_processes_import_no_torch(samples):
    batches = batches_of(samples, workers=1)
    next(batches.epoch(0))
    has_torch = batches._pool.submit(eval, "'torch' in __import__('sys').modules").result(60)
    batches.close()
    assert not has_torch, "they start in a fraction of a second"


def broken(slide: SlideFile, epoch: int) -> np.ndarray:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_loader_process_stays_a_bug(samples, workers):
    with pytest.raises(RuntimeError, match="a bug") as caught:
        list(batches_of(samples, workers=workers, read=broken).epoch(0))
    assert not isinstance(caught.value, UserError)


ORPHAN = """
import sys, time
from finetune.data.batch import Sample
from finetune.data.loader import BatchLoader
from finetune.data.sampler import BatchOrder
from finetune.data.slides import SlideFile
from tests.helpers.loader import hang
if __name__ == "__main__":
    batches = BatchLoader([Sample(SlideFile("a", "a", "k", 1), [1, 2])] * 4, BatchOrder([(1, 1)] * 4, 2, 0, shuffle=False),
                      hang, 0, workers=1)
    waiting = batches._request(hang, batches.samples[0].slide, 0)
    print(next(iter(batches._pool._processes)), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_R01_loader_processes_do_not_outlive_a_killed_trainer(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=env) as trainer:
        worker = int(trainer.stdout.readline())
        time.sleep(2)  # time to start
        assert Path(f"/proc/{worker}").exists()
        trainer.kill()
        deadline = time.monotonic() + 10
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- steps of several micro-batches, shared by several processes -----------------------------------------------------

@pytest.mark.parametrize("max_tokens", [None, 40])
@pytest.mark.parametrize(("count", "batch_size", "micro_batches"), [(23, 2, 3), (24, 2, 4), (7, 4, 4), (3, 1, 2), (40, 4, 1)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_each_step_falls_to_the_processes_without_loss_or_repetition(count, batch_size, micro_batches, max_tokens, world_size):
    sizes = [(1, 1 + i * 7 % 30) for i in range(count)]
    order = BatchOrder(sizes, batch_size, 1, shuffle=True, max_tokens=max_tokens, micro_batches=micro_batches)
    steps = order.steps(2)
    assert len(steps) == order.count(2) and sorted(i for s in steps for b in s for i in b) == list(range(count))
    for step in steps:
        assert len(step) <= micro_batches
        shares = [split_for_rank(step, rank, world_size) for rank in range(world_size)]
        assert sorted(i for share in shares for b in share for i in b) == sorted(i for b in step for i in b)
        largest = max(len(b) for b in step)
        assert all(0 < len(b) <= largest for share in shares for b in share)
        samples = sum(map(len, step))
        assert sum(bool(share) for share in shares) == min(world_size, samples), "none idle that could work"


@pytest.mark.parametrize("max_tokens", [None, 60])
def test_a_step_is_the_same_however_it_is_divided(max_tokens):
    sizes = [(1, 1 + i * 7 % 30) for i in range(41)]
    layouts = [(12, 1), (4, 3), (2, 6)] if max_tokens is None else [(1, 4), (9, 4)]
    epochs = [BatchOrder(sizes, size, 5, shuffle=True, max_tokens=max_tokens, micro_batches=n).steps(1) for size, n in layouts]
    flat = [[[i for b in step for i in b] for step in epoch] for epoch in epochs]
    assert all(f == flat[0] for f in flat)


def test_N04_a_last_step_of_one_slide_is_left_out_but_not_a_last_micro_batch_of_one():
    assert [len(s) for s in equal_sizes(9, 2, micro_batches=4, drop_single=True).steps(0)] == [4]
    assert sorted(sorted(map(len, s)) for s in equal_sizes(11, 2, micro_batches=4, drop_single=True).steps(0)) == [[1, 2], [2] * 4]


def test_processes_read_their_own_slides_alone(samples):
    order = BatchOrder([(s.slide.num_tiles, len(s.token_ids) - 1) for s in samples], 2, 3, shuffle=True, micro_batches=2)
    read: list[set[str]] = []
    for rank in range(2):
        seen: set[str] = set()
        reader = TileReader(None, 3)
        batches = BatchLoader(samples, order, lambda s, e, r=reader, n=seen: (n.add(s.slide_id), r(s, e))[1], PAD, rank=rank,
                          world_size=2)
        ids = {i for step in batches.epoch(0) for batch in step for i in batch.ids}
        assert ids == seen
        read.append(seen)
    assert not read[0] & read[1] and read[0] | read[1] == {s.slide.slide_id for s in samples}
