"""What takes away the meaning of scores is said from what checkpoints and run folders hold."""

from __future__ import annotations

import pytest

from finetune.common.caveats import caveats


@pytest.mark.parametrize(("source", "texts", "words"), [
    ("paige-ai/Prism", {"validation": 8, "also_in_training": 8}, ["All 8"]), ("random", {"validation": 8, "also_in_training": 4}, ["random (random)", "4 of 8"]),
    ("random-tiny", {"validation": 8, "also_in_training": 3}, ["random (random-tiny)"]), ("/x/Prism", {"validation": 0, "also_in_training": 0}, []),
    ("x", None, []), (None, {"validation": "8", "also_in_training": 8}, []), (None, {"also_in_training": 8}, []), (None, [8, 8], [])])
def test_only_what_is_known_and_grave_is_said(source, texts, words):
    found = caveats(source, texts)
    assert len(found) == len(words) and all(word in english for word, (_, english) in zip(words, found, strict=True))
    assert all(any("\u4e00" <= c <= "\u9fff" for c in chinese) for chinese, _ in found)
