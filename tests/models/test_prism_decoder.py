"""Prism's text side as a captioner: its numbers against Prism's own, what trains, what is saved, what CoCa takes."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from coca_pytorch import CoCa
from finetune.config.schema import Config
from finetune.data.tokenizer import VocabTokenizer, tokenizer_from_dict
from finetune.models.build import build_model, check_architecture, describe_prism
from finetune.models.captioner import SlideCaptioner
from finetune.models.coca_decoder import start_from_prism
from finetune.models.generation import generate
from finetune.models.prism_decoder import PrismDecoder
from prism import GenerationOptions, Prism
from tests.helpers.decoders import LETTERS, batch_of
from tests.helpers.files import refused
from tests.helpers.prism import put
from tests.parity.prism_weights import small_state

TEXTS = ["invasive carcinoma", "benign", "no tumor seen"]


def config_of(**model: object) -> Config:
    config = Config()
    config.prism.weights, config.model.decoder = "random-tiny", "prism"
    for key, value in model.items():
        config.set(f"model.{key}", str(value), "test")
    return config


@pytest.fixture
def model() -> SlideCaptioner:
    return build_model(config_of(), LETTERS)


def test_losses_and_similarities_are_those_of_prism_itself(model):
    prism, batch = Prism.from_pretrained("random-tiny"), batch_of(TEXTS)
    out = model(batch)
    whole = prism(batch.text, batch.tile_embeddings, batch.tile_mask)
    losses = F.cross_entropy(whole["logits"].transpose(1, 2), batch.labels, reduction="none")
    torch.testing.assert_close(out.caption_loss, losses[batch.text_mask].sum(), atol=1e-3, rtol=0)
    assert out.num_tokens == int(batch.text_mask.sum())
    sim = out.text_latents @ out.image_latents.T * model.decoder.logit_scale
    torch.testing.assert_close(sim, whole["sim"], atol=1e-4, rtol=0)
    bare = model(batch, caption=False)
    assert float(bare.caption_loss) == 0 and torch.equal(bare.text_latents, out.text_latents)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_captions_are_those_of_prism_itself(model, options):
    prism, batch = Prism.from_pretrained("random-tiny"), batch_of(TEXTS)
    tokens = model.image_tokens(batch.tile_embeddings, batch.tile_mask)
    ids = generate(model.decoder, tokens, GenerationOptions(max_length=15, **options), bos_id=LETTERS.bos_id,
                   eos_id=LETTERS.eos_id, pad_id=LETTERS.pad_id)
    for ours, theirs in zip(ids, prism.generate(key_value_states=tokens[:, 1:], max_length=15, **options), strict=True):
        words = theirs.tolist()[1:]
        assert ours == (words[: words.index(2)] if 2 in words else words)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_step_moves_the_upper_half_and_the_heads_and_nothing_else(rank):
    model = build_model(config_of(lora_rank=rank), LETTERS)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = model(batch_of(TEXTS))
    loss = out.caption_loss + (out.text_latents - out.image_latents).square().sum() * model.decoder.logit_scale
    loss.backward()
    trained = list(model.trained_parameters())
    assert all(p.grad is not None for p in trained)
    torch.optim.SGD(trained, lr=0.1).step()
    moved = {k.replace("decoder.", "coca.", 1) for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(f"coca.{k}" in moved for k in ("temperature", "img_to_latents.to_latents.weight"))
    decoder = {k for k in moved if "text_decoder" in k}
    if rank:  # lora_B begins at 0, so lora_A moves from the second step on
        assert len(decoder) == 2 * 10 and all("lora_B" in k for k in decoder)
    else:
        assert all("layers.2." in k or "layers.3." in k or "biogpt.layer_norm" in k for k in decoder)
        assert len(decoder) >= 2 * 20
    assert moved <= set(model.saved_state()) and not any("embed_tokens" in k for k in model.saved_state())


@pytest.mark.parametrize(("weight", "saved"), [("caption_loss_weight", {"img_to_latents", "text_to_latents", "temperature"}),
                                               ("contrastive_loss_weight", {"text_decoder"})])
def test_what_no_loss_reaches_is_not_saved(weight, saved):
    """Otherwise a checkpoint would contain Prism's own weights, unchanged."""
    config = config_of(**{weight: 0})
    assert {key.split(".")[1] for key in build_model(config, LETTERS).saved_state()} == saved
    config.training.loss = "some.module:loss"  # it may use all outputs
    assert len({key.split(".")[1] for key in build_model(config, LETTERS).saved_state()}) == 4


@pytest.mark.parametrize("rank", [0, 4])
def test_the_trained_part_is_saved_and_completes_the_frozen_one(rank):
    config = config_of(lora_rank=rank)
    model, fresh = build_model(config, LETTERS), build_model(config, LETTERS)
    with torch.no_grad():
        for parameter in model.trained_parameters():
            parameter.add_(0.1)
    state = {k: v.clone() for k, v in model.saved_state().items()}
    check_architecture(config, LETTERS, describe_prism(model), state, "c.pth")
    fresh.load_saved_state(state, "c.pth")
    batch = batch_of(TEXTS)
    assert torch.equal(fresh(batch).caption_loss, model(batch).caption_loss)
    del state["coca.temperature"]
    with refused("c.pth", "not of the model"):
        check_architecture(config, LETTERS, describe_prism(model), state, "c.pth")


def test_adapters_begin_as_nothing_and_need_peft(monkeypatch):
    batch = batch_of(TEXTS)
    assert torch.equal(build_model(config_of(lora_rank=4), LETTERS)(batch).caption_loss,
                       build_model(config_of(), LETTERS)(batch).caption_loss)
    monkeypatch.setitem(sys.modules, "peft", None)
    with refused("model.lora_rank", "pip install peft"):
        build_model(config_of(lora_rank=4), LETTERS)


def test_missing_files_of_the_text_side_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with refused("prism.weights", "pip install sacremoses"):
        build_model(config_of(), LETTERS)
    config = config_of()
    config.prism.weights = str(put(tmp_path, small_state(text=True)))
    with refused("prism.weights", "vocab.json"):
        build_model(config, LETTERS)


def test_too_long_texts_and_other_image_tokens_are_refused():
    config = config_of()
    config.data.max_seq_len = 2000
    with refused("data.max_seq_len", 2000, 1024):
        build_model(config, LETTERS)
    config.data.embeddings_dir = config.data.labels_file = "x"
    config.prism.image_tokens = "embedding"
    with refused("config.yaml", "prism.image_tokens"):
        config.check("config.yaml")
    config.prism.image_tokens, config.model.decoder, config.model.lora_rank = "latents", "coca", 2
    with refused("config.yaml", "model.lora_rank"):
        config.check("config.yaml")


def test_a_tokenizer_with_words_that_the_decoder_lacks_is_refused():
    data = LETTERS.to_dict()
    longer = tokenizer_from_dict(data | {"vocabulary": {**data["vocabulary"], "word</w>": 256}}, "c.pth")
    with refused("tokenizer", "257 tokens", "decoder 256"):
        build_model(config_of(), longer)


def test_the_tokenizer_of_a_checkpoint_comes_back():
    again = tokenizer_from_dict(LETTERS.to_dict(), "c.pth")
    assert again.to_dict() == LETTERS.to_dict() and again.encode("a b-c") == LETTERS.encode("a b-c")
    for change in ({"version": 2}, {"vocabulary": {"<s>": "0"}}, {"merges": ["a"]}, {"merges": 3}):
        with refused("c.pth", "tokenizer"):
            tokenizer_from_dict({**LETTERS.to_dict(), **change}, "c.pth")


@pytest.mark.parametrize("dim", [64, 16, 128])
def test_coca_takes_the_words_that_both_tokenizers_have(dim, log_lines):
    prism = Prism.from_pretrained("random-tiny")
    tokenizer = VocabTokenizer.build(["a b c 癌 d x", "ab"])
    torch.manual_seed(0)
    coca = CoCa(dim=dim, num_tokens=len(tokenizer), unimodal_depth=1, multimodal_depth=1, dim_latents=64, image_dim=1280,
                heads=2, dim_head=8)
    before = coca.token_emb.weight.clone()
    start_from_prism(coca, tokenizer, prism)
    shared = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() in list("abcdx")]
    moved = (coca.token_emb.weight != before).any(1).nonzero().flatten().tolist()
    if dim > 64:  # wider than BioGPT: nothing fits
        assert moved == [] and "taken from Prism: the temperature" in log_lines
        return
    assert moved == shared and f"of {len(shared)} of {len(tokenizer)} tokens" in " ".join(log_lines)
    theirs = prism.text_decoder.model.biogpt.embed_tokens.weight[
        [LETTERS.encode(tokenizer.decode([i]))[0] for i in shared]]
    ours = coca.token_emb.weight[shared].detach()
    cosines = [F.cosine_similarity(w[:, None], w[None], dim=-1) for w in (ours, theirs)]
    # 5 words span at most 5 dimensions, so that 16 lose nothing
    torch.testing.assert_close(*cosines, atol=1e-4, rtol=0)


def test_frozen_prism_alone_trains_nothing():
    assert not any(p.requires_grad for p in PrismDecoder(Prism.from_pretrained("random-tiny")).parameters())
