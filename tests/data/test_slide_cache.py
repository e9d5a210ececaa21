"""The slide cache. Truth: the encoder itself, called for one slide at a time."""

from __future__ import annotations

import os
import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.common.distributed import World
from finetune.common.files import temporary_name
from finetune.data import encoding_groups
from finetune.data import slide_cache as latents
from finetune.data.batch import Sample
from finetune.data.loader import BatchLoader
from finetune.data.sampler import BatchOrder
from finetune.data.slide_cache import SlideCache
from finetune.data.slides import SlideFile, inspect_slide
from prism import PerceiverConfig, PrismSlideEncoder
from tests.helpers.files import random_tiles, refused, write_h5

D, TOKENS, WIDTH = 8, 4, 16


@pytest.fixture(scope="module")
def encoder() -> PrismSlideEncoder:
    torch.manual_seed(0)
    return PrismSlideEncoder(PerceiverConfig(latent_seq=TOKENS - 1, latent_dim=WIDTH, context_dim=D, mhsa_heads=2,
                                             perceiver_depth=2, transformer_depth=1)).freeze()


@pytest.fixture
def slides(tmp_path) -> list[SlideFile]:
    return [inspect_slide(write_h5(tmp_path / f"s{i}.h5", random_tiles(1 + 5 * i, D, i, "f2")), None, D)
            for i in range(7)]


def encode_with(encoder: PrismSlideEncoder, calls: list[int] | None = None):
    @torch.no_grad()
    def encode(tiles, mask):
        if calls is not None:
            calls.append(len(tiles))
        out = encoder.slide_representations(tiles.float(), mask)
        return torch.cat([out["image_embedding"].unsqueeze(1), out["image_latents"]], dim=1)

    return encode


def a_cache(folder: Path, sha256: str = "a" * 64, precision: str = "fp32") -> SlideCache:
    return SlideCache.of(folder / "cache", sha256, precision, TOKENS, WIDTH)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-3), ("fp16", 2e-3)])
def test_the_cache_holds_what_the_encoder_gives_for_each_slide_alone(tmp_path, slides, encoder, precision, tolerance):
    cache = a_cache(tmp_path, precision=precision)
    assert cache.fill(slides, encode_with(encoder)) == 7
    for i, slide in enumerate(slides):
        alone = encode_with(encoder)(torch.from_numpy(random_tiles(1 + 5 * i, D, i, "f2"))[None], None)[0]
        tokens = cache(slide)
        assert tokens.dtype == ("float32" if precision == "fp32" else "float16")
        assert isinstance(np.load(cache.path(slide), mmap_mode="r", allow_pickle=False), np.memmap)
        np.testing.assert_allclose(np.asarray(tokens, "f4"), alone.numpy(), atol=tolerance)


def test_slides_are_encoded_once_and_only_what_is_missing_is_written(tmp_path, slides, encoder):
    cache, calls = a_cache(tmp_path), []
    cache.fill(slides[:5], encode_with(encoder, calls))
    assert sum(calls) == 5
    before = {s.slide_id: cache.path(s).stat().st_mtime_ns for s in slides[:5]}
    assert cache.fill(slides, encode_with(encoder)) == 2
    assert {s.slide_id: cache.path(s).stat().st_mtime_ns for s in slides[:5]} == before
    calls.clear()
    assert cache.fill(slides, encode_with(encoder, calls)) == 0 and calls == []


def test_other_weights_precision_or_files_never_meet_old_latents(tmp_path, slides):
    paths = {a_cache(tmp_path, **changes).path(slides[0])
             for changes in ({}, {"sha256": "b" * 64}, {"precision": "bf16"}, {"precision": "fp16"})}
    cache, path = a_cache(tmp_path), Path(slides[0].path)
    paths |= {cache.path(slides[1]), SlideCache.of(tmp_path / "cache", "a" * 64, "fp32", 1, WIDTH).path(slides[0])}
    write_h5(path, random_tiles(1, D, seed=99, dtype="f2"))  # of the same size
    paths.add(cache.path(inspect_slide(path, None, D)))
    shutil.copy2(path, tmp_path / "other.h5")  # of the same size and time
    paths.add(cache.path(inspect_slide(tmp_path / "other.h5", None, D)))
    assert len(paths) == 8


def test_an_interrupted_fill_resumes_and_ends_with_the_same_bits(tmp_path, slides, encoder, monkeypatch):
    monkeypatch.setattr(encoding_groups, "_GROUP_SLIDES", 3)
    whole, resumed = a_cache(tmp_path / "whole"), a_cache(tmp_path / "resumed")
    whole.fill(slides, encode_with(encoder))
    calls: list[int] = []

    def dies_in_the_second_group(tiles, mask):
        if calls:
            raise KeyboardInterrupt
        return encode_with(encoder, calls)(tiles, mask)

    with pytest.raises(KeyboardInterrupt):
        resumed.fill(slides, dies_in_the_second_group)
    resumed.path(slides[1]).unlink(missing_ok=True)  # as if killed before this one of its group was written
    assert 0 < sum(map(resumed.has, slides)) < len(slides)
    resumed.fill(slides, encode_with(encoder))
    assert all(np.array_equal(whole(s), resumed(s)) for s in slides)
    assert not list(tmp_path.rglob("*.tmp"))


def test_A01_what_killed_fills_have_left_goes_with_the_next_fill_and_files_of_others_stay(tmp_path, slides, encoder):
    cache = a_cache(tmp_path)
    cache.fill(slides[:2], encode_with(encoder))
    folder = cache.path(slides[0]).parent
    left, mine = temporary_name(folder / "slide_of_another_job.npy"), folder / "notes.tmp"
    for path in (left, mine):
        path.write_text("x", encoding="utf-8")
    cache.fill(slides[:2], encode_with(encoder))
    assert left.exists(), "nothing is missing: the folders are not listed"
    cache.fill(slides, encode_with(encoder))
    assert not left.exists() and mine.exists()


@pytest.fixture
def filled(tmp_path, slides, encoder) -> tuple[list[SlideFile], list[np.ndarray]]:
    """The slides, in a cache of `tmp_path`, and their encodings."""
    cache = a_cache(tmp_path)
    cache.fill(slides, encode_with(encoder))
    return slides, [cache(slide).copy() for slide in slides]


def damage(cache: SlideCache, slides: list[SlideFile], how: str) -> None:
    """Change the file of slide 2."""
    path = cache.path(slides[2])
    raw = bytearray(path.read_bytes())
    start = len(raw) - 28 - 4 * TOKENS * WIDTH  # of the numbers
    match how:
        case "other slide":
            raw = cache.path(slides[3]).read_bytes()
        case "zeros":
            raw[start + 64:start + 128] = bytes(64)
        case "gone":
            path.unlink()
            return
        case _ if how.startswith("cut"):
            del raw[int(how.split()[1]):]
        case _ if how.startswith("flip"):
            at = {"header": 70, "numbers": start + 9, "last number": len(raw) - 29}.get(how[5:]) or len(raw) - int(how[5:])
            raw[at] ^= 4
    path.write_bytes(raw)


DAMAGES = ["other slide", "zeros", "gone", "cut 0", "cut 100", "cut -1", "cut -28", "flip header", "flip numbers", "flip last number",
           "flip 1", "flip 10", "flip 24"]


@pytest.mark.parametrize(("damaged", "workers"), [("before", 0), ("after", 2)])
@pytest.mark.parametrize("how", DAMAGES)
def test_A07_a_damaged_file_is_encoded_again_with_one_warning_and_the_same_bits(tmp_path, filled, encoder, how, damaged,
                                                                                workers, log_lines):
    slides, whole = filled
    cache = a_cache(tmp_path)
    if damaged == "before":  # the fill notices what the size tells
        damage(cache, slides, how)
    cache.fill(slides, encode_with(encoder))
    if damaged == "after":
        damage(cache, slides, how)
    order = BatchOrder([(0, 1)] * len(slides), 3, 0, shuffle=False)
    loader = BatchLoader([Sample(slide, [1, 2]) for slide in slides], order, cache, 0, workers=workers)
    for _ in range(2):
        read = torch.cat([batch.image_tokens for [batch] in loader.epoch(0)]).numpy()
        assert np.array_equal(read, np.stack(whole))
    loader.close()
    warnings = [line for line in log_lines if "encoded again" in line]
    assert len(warnings) == ((how, damaged) != ("gone", "before")) and all(cache.path(slides[2]).name in line for line in warnings)


def test_A07_a_file_that_another_process_damages_after_it_was_read_is_noticed(tmp_path, filled):
    slides, whole = filled
    cache = a_cache(tmp_path)
    assert np.array_equal(cache(slides[2]), whole[2])
    damage(cache, slides, "flip numbers")
    with refused(cache.path(slides[2]).name, "s2", "wrong checksum", "start again"):
        cache(slides[2])


def test_A07_a_bit_that_flips_in_place_under_a_restored_time_is_noticed(tmp_path, filled):
    slides, whole = filled
    cache = a_cache(tmp_path)
    assert np.array_equal(cache(slides[2]), whole[2])
    before = cache.path(slides[2]).stat()
    time.sleep(0.02)  # a tick of the file system's clock
    with open(cache.path(slides[2]), "r+b") as file:
        file.seek(before.st_size - 29)
        last = file.read(1)[0]
        file.seek(before.st_size - 29)
        file.write(bytes([last ^ 4]))
    os.utime(cache.path(slides[2]), ns=(before.st_atime_ns, before.st_mtime_ns))
    with refused(cache.path(slides[2]).name, "s2", "wrong checksum"):
        cache(slides[2])


@pytest.mark.parametrize("content", ["notes of someone", None])
def test_A07_a_folder_in_the_place_of_a_file_is_named_before_the_work_and_stays(tmp_path, filled, content):
    slides, _ = filled
    cache = a_cache(tmp_path)
    path = cache.path(slides[2])
    path.unlink()
    path.mkdir()
    if content:
        (path / "notes.txt").write_text(content, encoding="utf-8")
    with refused(path.name, "is a folder, and the file of a cached slide belongs there", "move or delete it"):
        cache.fill(slides, lambda *_: pytest.fail("nothing must be encoded"))
    with refused(path.name, "is a folder", "move or delete it"):
        cache.write((slides[2], None), np.zeros((TOKENS, WIDTH), "f4"))
    assert path.is_dir() and (not content or (path / "notes.txt").read_text(encoding="utf-8") == content)


def test_A07_a_file_in_the_place_of_a_folder_is_named(tmp_path, filled, encoder):
    slides, _ = filled
    cache = a_cache(tmp_path)
    shutil.rmtree(cache.path(slides[2]).parent)
    cache.path(slides[2]).parent.touch()
    with refused(cache.path(slides[2]).parent.name, "is a file, and a folder of the slide cache belongs there", "move or delete it"):
        cache.fill(slides, encode_with(encoder))


def test_A07_damage_that_comes_back_ends_the_run(tmp_path, filled, encoder, monkeypatch):
    slides, _ = filled
    cache = a_cache(tmp_path)
    cache.fill(slides, encode_with(encoder))
    damage(cache, slides, "flip numbers")
    monkeypatch.setattr(SlideCache, "write", lambda *_: None)
    with refused("s2", "wrong checksum"):
        cache(slides[2])
    with refused("s2", "after it was encoded again", "failing"):
        cache(slides[2])


def test_A07_other_tiles_at_the_same_place_size_and_time_are_not_met_by_their_former_encoding(tmp_path, filled):
    slides, _ = filled
    path = Path(slides[2].path)
    write_h5(path, random_tiles(11, D, seed=99, dtype="f2"))
    os.utime(path, ns=(slides[2].mtime_ns, slides[2].mtime_ns))
    other = inspect_slide(path, None, D)
    cache = a_cache(tmp_path)
    assert cache.path(other) == cache.path(slides[2])
    with refused("s2", "is the encoding of other tiles"):
        cache(other)


def test_A07_files_of_before_there_was_a_checksum_are_used_and_counted(tmp_path, filled, encoder, log_lines):
    slides, whole = filled
    cache = a_cache(tmp_path)
    for slide, tokens in zip(slides[:3], whole, strict=False):
        np.save(cache.path(slide), tokens)
    assert cache.fill(slides, encode_with(encoder)) == 0
    assert sum("3 files of an earlier version have no checksum" in line for line in log_lines) == 1
    assert all(np.array_equal(cache(slide), tokens) for slide, tokens in zip(slides, whole, strict=True))
    np.save(cache.path(slides[0]), np.full_like(whole[0], np.nan))
    assert np.array_equal(cache(slides[0]), whole[0]), "NaN is refused all the same"


def test_A07_files_of_the_version_that_wrote_a_sum_after_the_old_header_are_compared_with_it(tmp_path, filled, encoder,
                                                                                             log_lines):
    slides, whole = filled
    cache = a_cache(tmp_path)
    for slide, tokens in zip(slides[:2], whole, strict=False):
        np.save(tmp_path / "plain.npy", tokens)  # its header is of version 1.0
        content = (tmp_path / "plain.npy").read_bytes()
        identity = cache.path(slide).read_bytes()[-20:-4]
        assert cache.path(slide).read_bytes()[:8] == b"\x93NUMPY\x02\x00" and content[:8] == b"\x93NUMPY\x01\x00"
        cache.path(slide).write_bytes(content + b"prismsum" + identity + zlib.crc32(content + identity).to_bytes(4, "little"))
    assert cache.fill(slides, encode_with(encoder)) == 0 and not any("no checksum" in line for line in log_lines)
    assert all(np.array_equal(cache(slide), tokens) for slide, tokens in zip(slides, whole, strict=True))
    damage(cache, slides[1:2] * 3, "flip numbers")
    assert np.array_equal(cache(slides[1]), whole[1]) and any("wrong checksum" in line for line in log_lines)


def test_H09_a_bad_tile_is_named_before_anything_of_its_slide_is_stored(tmp_path, slides, encoder):
    data = random_tiles(9, D)
    data[3, 1] = np.nan
    bad = inspect_slide(write_h5(tmp_path / "bad.h5", data), None, D)
    cache = a_cache(tmp_path)
    with refused("bad.h5", "NaN or infinity in 1 of 9 tiles"):
        cache.fill([*slides, bad], encode_with(encoder))
    assert not cache.has(bad)


def test_H11_output_beyond_half_precision_is_an_error_not_infinity(tmp_path, slides):
    with refused("s0.h5", "not finite", "fp32"):
        a_cache(tmp_path, precision="bf16").fill(slides, lambda tiles, mask: torch.full((len(tiles), TOKENS, WIDTH), 1e5))


def test_C11_a_disk_that_is_too_small_is_reported_before_the_work(tmp_path, slides, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 500))
    with refused("cache", "needs 0.0 GB", "data.latents_cache"):
        a_cache(tmp_path).fill(slides, lambda *_: pytest.fail("nothing must be encoded"))


def test_K15_a_file_that_cannot_be_written_ends_the_fill_in_one_line(tmp_path, slides, encoder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latents.os, "replace", full)
    with refused("No space left", "data.latents_cache"):
        a_cache(tmp_path).fill(slides, encode_with(encoder))
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.tmp"))


def test_groups_hold_neighbours_in_size_and_keep_their_limits(monkeypatch):
    monkeypatch.setattr(encoding_groups, "_GROUP_TILES", 100)
    sizes = np.random.default_rng(0).integers(1, 150, 60).tolist()
    groups = encoding_groups._groups([SlideFile(str(i), "", "", n) for i, n in enumerate(sizes)])
    assert sorted(int(s.slide_id) for g in groups for s in g) == list(range(60))
    for group in groups:
        assert len(group) <= 16 and (len(group) == 1 or len(group) * max(s.num_tiles for s in group) <= 100)
    assert [s.num_tiles for g in groups for s in g] == sorted(sizes)


class Thread(World):
    """One of two ranks that run as threads of this process and synchronize in collectives."""

    def __init__(self, rank: int, barrier: threading.Barrier) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "barrier", barrier)

    def any(self, flag: bool) -> bool:
        self.barrier.wait(20)
        return True


@pytest.mark.parametrize("there", [0, 3])
def test_ranks_share_the_work_and_all_return_when_everything_is_there(tmp_path, slides, encoder, there, monkeypatch):
    monkeypatch.setattr(encoding_groups, "_GROUP_SLIDES", 2)
    alone, cache, barrier = a_cache(tmp_path / "alone"), a_cache(tmp_path), threading.Barrier(2)
    alone.fill(slides, encode_with(encoder))
    cache.fill(slides[:there], encode_with(encoder))
    calls: list[list[int]] = [[], []]
    with ThreadPoolExecutor(2) as pool:
        encoded = [pool.submit(cache.fill, slides, encode_with(encoder, calls[rank]), 1, Thread(rank, barrier))
                   for rank in range(2)]
        assert [e.result(60) for e in encoded] == [7 - there] * 2
    assert all(cache.has(s) for s in slides) and all(calls) and sum(map(sum, calls)) <= 7
    assert all(np.array_equal(cache(s), alone(s)) for s in slides[there:]), "the same bits, whoever encoded them"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_slide_that_another_machine_should_have_written_is_waited_for_and_then_missed(tmp_path, slides, encoder,
                                                                                        monkeypatch):
    monkeypatch.setattr(encoding_groups, "_GROUP_SLIDES", 2)
    monkeypatch.setattr(latents, "_WAIT_SECONDS", 0.2)
    with refused("is not there, nor are", "all of them share"):
        a_cache(tmp_path).fill(slides, encode_with(encoder), 1, Thread(0, threading.Barrier(1)))


def test_a_group_that_does_not_fit_into_memory_is_halved_down_to_the_slide_that_is_named(tmp_path, slides, encoder, log_lines):
    def small_memory(limit: int):
        def encode(tiles, mask):
            if tiles.shape[0] * tiles.shape[1] > limit:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory")
            return encode_with(encoder)(tiles, mask)

        return encode

    whole, halved = (a_cache(tmp_path / name) for name in "ab")
    whole.fill(slides, encode_with(encoder))
    halved.fill(slides, small_memory(max(slide.num_tiles for slide in slides)))
    assert any("out of memory" in line for line in log_lines)
    for slide in slides:
        np.testing.assert_allclose(halved.read(slide), whole.read(slide), rtol=1e-4, atol=1e-5)
    largest = max(slides, key=lambda slide: slide.num_tiles)
    with refused(largest.path, f"out of memory while its {largest.num_tiles} tiles are encoded", "data.max_tiles"):
        a_cache(tmp_path / "c").fill(slides, small_memory(largest.num_tiles - 1))
