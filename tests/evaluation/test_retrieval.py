"""Ranks of retrieval against a brute-force sort, and what they take for many slides."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from finetune.evaluation import retrieval
from finetune.evaluation.retrieval import Cosines, first_hit_ranks, retrieval_statistics


@pytest.mark.parametrize("rows", [1, 2, 1024])
def test_retrieval_ranks_by_brute_force_with_equal_texts_as_hits(rows, monkeypatch):
    monkeypatch.setattr(retrieval, "_ROWS", rows)
    rng = np.random.default_rng(0)
    references = [["a", "x"], ["b"], ["a"], ["c"], ["b"]]
    texts = ["a", "x", "b", "c"]
    similarity = rng.standard_normal((5, 4))
    scores = {k: s(np.arange(5)) for k, s in retrieval_statistics(Cosines(similarity, np.eye(4)), texts, references).items()}
    to_text = [min(sorted(range(4), key=lambda j: -similarity[i, j]).index(texts.index(t)) + 1 for t in references[i])
               for i in range(5)]
    to_image = []
    for several in references:
        order = sorted(range(5), key=lambda i: -similarity[i, texts.index(several[0])])
        to_image.append(next(rank for rank, i in enumerate(order, 1) if several[0] in references[i]))
    for way, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
        assert scores[f"{way}_r1"] == np.mean([r <= 1 for r in ranks])
        assert scores[f"{way}_r5"] == 1 and scores[f"{way}_median_rank"] == np.median(ranks)


def test_embeddings_that_are_all_equal_find_nothing():
    assert first_hit_ranks(Cosines(np.ones((2, 1)), np.ones((3, 1))), [[0], [1, 2]]).tolist() == [3, 2]


def test_no_matrix_of_all_slides_and_texts_is_made():
    rng = np.random.default_rng(0)
    slides = rng.standard_normal((6000, 4), dtype=np.float32)
    texts = [f"text {i}" for i in range(6000)]
    tracemalloc.start()
    statistics = retrieval_statistics(Cosines(slides, slides), texts, [[text] for text in texts])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(statistics) >= {"image_to_text_r1", "text_to_image_median_rank"}
    assert peak < 6000 * 6000 * 4, "the cosines alone would take as much"
