"""Texts looked up for new slides: by the contrastive space, by Prism's, by the probe."""

from __future__ import annotations

import numpy as np
import torch

from finetune.common.score_table import NEAREST_TEXT, PROBE_TEXT
from finetune.data.tokenizer import VocabTokenizer
from finetune.models.linear_probe import LinearProbe
from finetune.models.training_texts import SlideVectors, TrainingTexts
from tests.helpers.training import a_batch, tiny_model

LETTERS = VocabTokenizer(list("xyz"))


def index(slides: int = 40, **changes) -> dict:
    """Slides whose text is x or y, as the first number of the latents and the first of the embedding say."""
    signs = np.where(np.arange(slides) % 2, 1.0, -1.0)
    latents = np.random.default_rng(0).normal(size=(slides, 5)) + 3 * signs[:, None] * np.eye(5)[0]
    texts = ["x" if sign > 0 else "y" for sign in signs]
    probe = LinearProbe.fit(latents, [LETTERS.encode(text) for text in texts])
    offset = 100 + signs[:, None] * np.eye(5)[0]  # most of it is common to all
    return {"texts": [[text] for text in texts], "embeddings": None, "slide_embeddings": torch.tensor(offset),
            "probe": probe.to_dict()} | changes


def slides_of(sign: float) -> SlideVectors:
    return SlideVectors(np.array([[sign, 0.0]]), np.full((1, 5), 100) + sign * np.eye(5)[:1], 3 * sign * np.eye(5)[:1])


def test_prisms_space_and_the_probe_find_the_text():
    texts = TrainingTexts.of_index(index(), LETTERS, 9)
    assert texts.lookups(slides_of(1)) == {NEAREST_TEXT: ["x"], PROBE_TEXT: ["x"]}
    assert texts.lookups(slides_of(-1)) == {NEAREST_TEXT: ["y"], PROBE_TEXT: ["y"]}


def test_the_contrastive_space_comes_first_but_only_of_the_same_weights():
    turned = torch.tensor([[-1.0 if i % 2 else 1.0, 0.0] for i in range(40)])  # says the opposite
    for same, answer in ((True, "y"), (False, "x")):
        texts = TrainingTexts.of_index(index(embeddings=turned), LETTERS, 9, same_weights=same)
        assert texts.nearest(slides_of(1)) == [answer]


def test_an_index_of_an_older_version_gives_the_most_common_text_only():
    old = {"texts": [["x"], ["y"], ["y", "z"]], "embeddings": None}
    texts = TrainingTexts.of_index(old, LETTERS, 9)
    assert texts.common() == "y" and texts.lookups(slides_of(1)) == {}


def test_common_texts_are_preferred_where_the_probe_knows_nothing():
    state = index()["probe"]
    state["strength"] = torch.zeros_like(state["strength"])
    texts = TrainingTexts.of_index(index(probe=state, texts=[["x"]] * 3 + [["y"]] * 37), LETTERS, 9)
    assert texts.by_probe(slides_of(1)) == ["y"]


def test_the_vectors_of_a_slide_come_from_its_tokens():
    model, batch = tiny_model().eval(), a_batch(1, 3)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    vectors = SlideVectors.of(model.decoder, tokens)
    assert np.allclose(vectors.embedding, tokens[:, 0]) and np.allclose(vectors.latent_mean, tokens[:, 1:].mean(1), atol=1e-6)
    for joined, whole in zip(SlideVectors.join(vectors.rows()), vectors, strict=True):
        assert np.array_equal(joined, whole)
    only_embedding = SlideVectors.of(model.decoder, tokens[:, :1])
    assert np.allclose(only_embedding.latent_mean, tokens[:, 0], atol=1e-6)
