"""Re-ranking against a plain sum of log probabilities, and what it may put in place of a caption."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from finetune.models.linear_probe import LinearProbe
from finetune.models.rerank import log_probabilities, rerank
from finetune.models.training_texts import SlideVectors, TrainingTexts
from tests.helpers.training import TOKENIZER, a_batch, tiny_model

TEXTS = ["甲乙", "丙丁", "戊己庚"]


@torch.no_grad()
def test_log_probabilities_are_sums_over_the_tokens_of_each_text_alone():
    model, batch = tiny_model().eval(), a_batch(1, 1)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    texts = [[1, 5, 6, 2], [1, 2], [1, 4, 4, 4, 4, 9, 2]]
    found = log_probabilities(model.decoder, tokens, texts, 0)
    for text, value in zip(texts, found, strict=True):
        cache = model.decoder.start_decoding(model.decoder.embed_image(image_tokens=tokens)[1])
        steps = [model.decoder.decode_step(torch.tensor([[a]]), cache).log_softmax(-1)[0, b].item()
                 for a, b in itertools.pairwise(text)]
        assert value == pytest.approx(sum(steps), abs=1e-4)


def training_texts(strength: float) -> TrainingTexts:
    """Features that say which of the texts it is. strength: what the evidence is multiplied with."""
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 3
    features = rng.normal(size=(60, 16)) + 5 * np.eye(16)[kind]
    probe = LinearProbe.fit(features, [TOKENIZER.encode(TEXTS[k]) for k in kind]).to_dict()
    probe["strength"] *= strength
    index = {"texts": [[TEXTS[k]] for k in kind], "embeddings": None, "probe": probe}
    return TrainingTexts.of_index(index, TOKENIZER, 9)


@torch.no_grad()
@pytest.mark.parametrize(("max_length", "replaced"), [(9, [*TEXTS[:2], None]), (4, [*TEXTS[:2], None]), (3, [None] * 3)])
def test_a_sure_probe_puts_its_text_in_place_of_the_caption(max_length, replaced):
    model, batch = tiny_model().eval(), a_batch(1, 3)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    slides = SlideVectors.of(model.decoder, tokens)._replace(latent_mean=5 * np.eye(16, dtype="f4")[:3])
    own = [[], [], TOKENIZER.encode(TEXTS[2])]  # the last one says what the probe says
    assert rerank(model.decoder, tokens, own, slides, training_texts(3.0), max_length) == replaced


@torch.no_grad()
def test_without_evidence_the_captioner_decides():
    model, batch = tiny_model().eval(), a_batch(1, 2)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    slides = SlideVectors.of(model.decoder, tokens)
    training = training_texts(0.0)
    ids = [[1, *TOKENIZER.encode(text), 2] for text in TEXTS]
    likeliest = [int(log_probabilities(model.decoder, tokens[i:i + 1], ids, 0).argmax()) for i in range(2)]
    worst = [int(log_probabilities(model.decoder, tokens[i:i + 1], ids, 0).argmin()) for i in range(2)]
    found = rerank(model.decoder, tokens, [ids[i][1:-1] for i in worst], slides, training, 9)
    assert found == [TEXTS[i] for i in likeliest]
    assert rerank(model.decoder, tokens, [ids[i][1:-1] for i in likeliest], slides, training, 9) == [None, None]
