"""SlideCaptioner: what CoCa sees, what trains, what is saved, and that padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coca_pytorch.losses import contrastive_loss
from finetune.common.errors import UserError
from finetune.config.schema import Config
from finetune.data.batch import Collate, Sample
from finetune.data.slides import SlideFile
from finetune.data.tokenizer import VocabTokenizer
from finetune.models.build import build_model
from prism import load_prism

TOKENIZER = VocabTokenizer.build(["胃腺癌，低分化。", "大小3.5cm"])


def config_of(*pairs: str) -> Config:
    config = Config()
    for pair in ("prism.weights=random-tiny", "model.dim=32", "model.unimodal_depth=1", "model.multimodal_depth=1",
                 "model.dim_latents=16", "model.num_img_queries=3", "model.heads=2", "model.dim_head=16", *pairs):
        key, value = pair.split("=")
        config.set(key, value, "test")
    return config


@pytest.fixture(scope="module")
def model():
    return build_model(config_of(), TOKENIZER).eval()


def sample(seed: int, tiles: int, text: str) -> tuple[Sample, np.ndarray]:
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text), TOKENIZER.eos_id]
    data = np.random.default_rng(seed).standard_normal((tiles, 2560)).astype(np.float16)
    return Sample(SlideFile(f"s{seed}", f"s{seed}.h5", "embeddings", tiles), ids), data


def loss_of(model, batch) -> torch.Tensor:
    out = model(batch)
    return out.caption_loss + contrastive_loss(out.text_latents, out.image_latents, model.decoder.logit_scale)


def test_coca_sees_the_slide_embedding_and_every_latent(model):
    batch = Collate(TOKENIZER.pad_id)([sample(0, 4, "胃腺癌"), sample(1, 7, "低分化")])
    slide = load_prism("random-tiny").slide_representations(batch.tile_embeddings, batch.tile_mask)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    assert tokens.shape == (2, 33, 1280)
    assert torch.equal(tokens[:, 0], slide["image_embedding"]) and torch.equal(tokens[:, 1:], slide["image_latents"])
    bare = build_model(config_of("prism.image_tokens=embedding"), TOKENIZER)
    assert torch.equal(bare.image_tokens(batch.tile_embeddings, batch.tile_mask)[:, 0], slide["image_embedding"])
    assert bare.image_tokens(batch.tile_embeddings, batch.tile_mask).shape == (2, 1, 1280)


def test_losses_do_not_depend_on_padding_by_longer_neighbours(model):
    short, long = sample(0, 4, "胃腺癌"), sample(1, 9, "胃腺癌，低分化。大小3.5cm")
    collate = Collate(TOKENIZER.pad_id)
    together = collate([short, long])
    alone = [model(collate([item])).caption_loss for item in (short, long)]
    assert torch.allclose(model(together).caption_loss, sum(alone), atol=1e-4)
    embeds = model.decoder.embed_text(together.text, together.text_mask)[0]
    assert torch.allclose(embeds[0], model.decoder.embed_text(collate([short]).text)[0][0], atol=1e-5)


def test_frozen_prism_has_no_gradient_no_place_in_optimizer_or_checkpoint_and_stays_in_eval(model):
    trained = {id(p) for p in model.trained_parameters()}
    assert trained == {id(p) for p in model.decoder.parameters()}
    assert not any(k.startswith("prism.") for k in model.saved_state())
    model.train()
    assert model.decoder.training and not model.prism.training
    batch = Collate(TOKENIZER.pad_id)([sample(0, 4, "胃腺癌"), sample(1, 7, "低分化")])
    loss_of(model, batch).backward()
    assert all(p.grad is None for p in model.prism.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())
    model.zero_grad(set_to_none=True)
    model.eval()


def test_a_released_prism_trains_and_is_saved():
    model = build_model(config_of("prism.freeze=false"), TOKENIZER)
    batch = Collate(TOKENIZER.pad_id)([sample(0, 4, "胃腺癌"), sample(1, 7, "低分化")])
    loss_of(model, batch).backward()
    assert all(p.grad is not None for p in model.prism.parameters())
    assert {k for k in model.saved_state() if k.startswith("prism.")} == {f"prism.{k}" for k in model.prism.state_dict()}


def test_K05_K08_saved_state_comes_back_and_what_does_not_fit_is_named(model):
    other = build_model(config_of("training.seed=7"), TOKENIZER)
    state = {k: v.clone() for k, v in model.saved_state().items()}
    assert not torch.equal(other.decoder.img_queries, model.decoder.img_queries)
    other.load_saved_state(state, "x.pth")
    assert all(torch.equal(v, state[k]) for k, v in other.saved_state().items())
    for damage, word in ((lambda s: s.pop("coca.temperature"), "missing coca.temperature"),
                         (lambda s: s.update(extra=torch.ones(1)), "unexpected extra"),
                         (lambda s: s.update({"coca.img_queries": torch.ones(2, 2)}), r"\(2, 2\)"),
                         (lambda s: s.update({"coca.temperature": torch.tensor([float("nan")])}), "not finite"),
                         (lambda s: s.update({"coca.temperature": torch.ones(1).half()}), "float16")):
        broken = dict(state)
        damage(broken)
        with pytest.raises(UserError, match=word):
            other.load_saved_state(broken, "x.pth")


@pytest.mark.parametrize("pair, words", [("data.image_dim=1024", "1024.*2560"), ("model.image_dim=768", "768.*1280"),
                                         ("prism.weights=./nowhere", "nowhere")])
def test_C09_widths_that_do_not_fit_and_missing_weights_are_errors_with_both_numbers(pair, words):
    with pytest.raises(UserError, match=words) as error:
        build_model(config_of(pair), TOKENIZER)
    assert ("Virchow" in str(error.value)) == pair.startswith("data"), "the files of another width must be made again"


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone(model):
    before = torch.get_rng_state()
    again = build_model(config_of(), TOKENIZER)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, again.saved_state()[k]) for k, v in model.saved_state().items())
