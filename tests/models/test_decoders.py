"""Every decoder of the table keeps to `CaptionDecoder`: nothing else of it is used, and all of that works."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.common.device import Precision
from finetune.config.schema import Config
from finetune.explanation import attribution
from finetune.explanation.attribution import attribute_tiles
from finetune.explanation.caption_tokens import KnownPhrases, read_caption
from finetune.explanation.contrast import Alternatives, Contrast, log_odds
from finetune.models import build
from finetune.models.captioner import CaptionDecoder, SlideCaptioner
from finetune.models.embeddings import embed_slides, embed_texts
from finetune.models.generation import confidences, generate
from finetune.training.temperature import calibrate
from prism import GenerationOptions
from tests.helpers.decoders import LETTERS, SPECIAL, batch_of, train_steps
from tests.helpers.files import refused
from tests.helpers.language_models import make_language_model

TEXTS = ["invasive", "benign", "no tumor"]
MEMBERS = {name for name in {*vars(CaptionDecoder), *CaptionDecoder.__annotations__} if not name.startswith("_")}
OPTIONAL = {"compile": "compile", "grad_checkpointing": "grad_checkpointing", "probe_tokens": "img_context",
            "template": "decode_text"}
NAMES = sorted({builder: name for name, builder in reversed(build.DECODERS.items())}.values())  # hf: and ms: are one
PREDICTED = 5  # text tokens of the probe, where there are probe tokens


class OnlyTheProtocol(nn.Module):
    """A decoder that exposes only the protocol and the features it declares in `supports`."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.inner = decoder

    def __getattr__(self, name: str) -> object:
        inner = super().__getattr__("inner")
        if name in MEMBERS or name in {OPTIONAL[feature] for feature in inner.supports}:
            return getattr(inner, name)
        return super().__getattr__(name)

    def forward(self, *args: object, **options: object) -> object:
        return self.inner(*args, **options)


@functools.cache
def language_model() -> str:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return f"hf:{make_language_model(folder)}"


def name_of(model: SlideCaptioner) -> str:
    """The decoder's name in the table."""
    about = model.decoder.describe()
    return "hf" if "text_source" in about else "prism" if about else "coca"


def config_of(decoder: str) -> Config:
    config = Config()
    for pair in (f"model.decoder={language_model() if decoder == 'hf' else decoder}", "prism.weights=random-tiny", "model.dim=32", "model.unimodal_depth=1",
                 "model.multimodal_depth=1", "model.dim_latents=16", "model.num_img_queries=3", "model.heads=2",
                 "model.dim_head=16", "model.probe_tokens=2", f"model.lora_rank={4 * (decoder == 'hf')}"):
        config.set(*pair.split("="), "test")
    return config


@pytest.fixture(params=[*NAMES, "coca with probe tokens", "hf with probe tokens"])
def model(request) -> SlideCaptioner:
    torch.manual_seed(0)
    name, _, with_probe = request.param.partition(" ")
    model = build.build_model(config_of(name), LETTERS, num_predicted=PREDICTED if with_probe else 0)
    if model.probe_tokens:
        torch.nn.init.normal_(model.probe_tokens.weight)
    return SlideCaptioner(model.prism, OnlyTheProtocol(model.decoder), "latents").eval()


def test_the_protocol_has_what_the_table_offers():
    assert {"outputs", "embed_text", "dtype", "dim_latents", "supports", "label_log_probabilities"} <= MEMBERS and len(MEMBERS) == 22
    for name in NAMES:
        decoder = build.build_model(config_of(name), LETTERS).decoder
        assert not [member for member in MEMBERS if not hasattr(decoder, member)]
        assert decoder.supports <= set(OPTIONAL) and all(hasattr(decoder, OPTIONAL[f]) for f in decoder.supports)


def test_every_use_of_a_decoder_keeps_to_the_protocol(model):
    batch = batch_of(TEXTS)
    losses = train_steps(model, batch, steps=25, lr=5e-3)
    assert losses[-1].caption_loss < losses[0].caption_loss
    assert losses[-1].contrastive_loss < losses[0].contrastive_loss
    with torch.no_grad():
        tokens = model.encode(batch)
        outputs = model(batch, logits=True)
    decoder, length = model.decoder, batch.text_mask.sum(1)
    assert tokens.dtype == decoder.dtype and tokens.device == decoder.device
    assert outputs.num_tokens == int(length.sum()) and outputs.text_latents.shape == (3, decoder.dim_latents)
    # the parts of a forward pass apart give what they give together
    apart = decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)
    torch.testing.assert_close(outputs.logits, apart, atol=1e-5, rtol=1e-5)
    assert torch.allclose(torch.from_numpy(embed_slides(decoder, tokens)), outputs.image_latents, atol=1e-5)
    assert torch.allclose(torch.from_numpy(embed_texts(decoder, LETTERS, TEXTS, 64)), outputs.text_latents, atol=1e-5)
    log_probs = outputs.logits.log_softmax(-1).gather(2, batch.labels.unsqueeze(2)).squeeze(2)
    assert torch.allclose(-log_probs[batch.text_mask].sum(), outputs.caption_loss, rtol=1e-4)
    captions = [generate(decoder, tokens, GenerationOptions(max_length=12, num_beams=beams), **SPECIAL) for beams in (1, 2)]
    assert all(0 < p <= 1 for rows in captions for p in confidences(decoder, tokens, rows, 12, **SPECIAL))
    found = calibrate(model, Precision("fp32", torch.device("cpu"), "test"), [batch])
    assert found["words"] == outputs.num_tokens and 0 < found["right"] <= 1


def test_the_cache_gives_the_logits_of_the_whole_text(model):
    batch = batch_of(TEXTS)
    with torch.no_grad():
        tokens = model.encode(batch)
        cache = model.decoder.start_decoding(model.decoder.embed_image(image_tokens=tokens)[1])
        shortest = int(batch.text_mask.sum(1).min())
        steps = torch.stack([model.decoder.decode_step(batch.text[:, i:i + 1], cache) for i in range(shortest)], dim=1)
        logits = model.decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)
    torch.testing.assert_close(steps, logits[:, :shortest], atol=1e-4, rtol=1e-4)


def test_texts_of_any_number_continue_a_selected_cache(model):
    """As `fill_template` does with the values of a slot: padded texts of several slides in one pass."""
    batch = batch_of(TEXTS)
    rows = torch.tensor([0, 2, 2, 2])
    with torch.no_grad():
        tokens = model.encode(batch)
        cache = model.decoder.start_decoding(model.decoder.embed_image(image_tokens=tokens)[1])
        model.decoder.decode_step(batch.text[:, :2], cache)
        for chosen in (rows, torch.tensor([1, 1, 3])):  # 1, 1, 3 of the rows: slide 2 alone
            cache = cache.select(chosen)
            rows = rows if chosen is rows else rows[chosen]
            kept = cache.select(torch.arange(len(rows)))
            found = model.decoder.decode_text(batch.text[rows, 2:6], cache.select(torch.arange(len(rows))))
            again = model.decoder.decode_text(batch.text[rows, 2:6], kept)
            whole = model.decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)[rows, 2:6]
            torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
            assert torch.equal(found, again)


@pytest.mark.parametrize("beams", [1, 2])
def test_slides_can_be_left_out_of_the_cache(model, beams):
    """As `prism.search` does once their captions have ended."""
    batch = batch_of([text[:2] for text in TEXTS])
    with torch.no_grad():
        tokens = model.encode(batch)
        cache = model.decoder.start_decoding(model.decoder.embed_image(image_tokens=tokens)[1])
        cache.repeat(beams)
        model.decoder.decode_step(batch.text[:, :1].repeat_interleave(beams, 0), cache)
        kept = torch.tensor([0, 2])
        cache.reorder((kept[:, None] * beams + torch.arange(beams)).flatten())
        steps = model.decoder.decode_step(batch.text[kept, 1:2].repeat_interleave(beams, 0), cache)
        logits = model.decoder(batch.text, image_tokens=tokens, text_mask=batch.text_mask)[kept, 1]
    torch.testing.assert_close(steps, logits.repeat_interleave(beams, 0), atol=1e-4, rtol=1e-4)


def test_what_a_decoder_says_of_itself_rebuilds_it(model):
    name = name_of(model)
    plain = build.build_model(config_of(name), LETTERS, num_predicted=PREDICTED if model.probe_tokens else 0)
    assert build.num_predicted_in(plain.saved_state()) == (PREDICTED if model.probe_tokens else 0)
    build.check_architecture(config_of(name), LETTERS, build.describe_prism(model), plain.saved_state(), "c.pth")


def test_each_decoder_is_explained_by_its_own_odds(model, monkeypatch):
    """The derivative of the log odds by the tiles against differences through the ordinary encoder."""
    monkeypatch.setattr(attribution, "_STEPS", 1)  # one point, half way
    tiles = torch.randn(5, 2560, generator=torch.Generator().manual_seed(0))
    caption = read_caption(LETTERS, "ab, cd.")
    tokens = model.image_tokens(tiles[None], torch.ones(1, 5, dtype=torch.bool))[0]
    found = Alternatives(model.decoder, LETTERS, tokens, caption, KnownPhrases(["ab, ef."], LETTERS)).of_phrase(0, range(2))
    assert found is None or found.text != "ab"
    ids = caption.ids
    contrast = Contrast(ids[:1], ids[1:4], LETTERS.encode("e,"), "e")
    gradient = attribute_tiles(model, tiles, [contrast])[0]
    mean, change = tiles.mean(0), torch.zeros(5)
    for tile in range(5):
        ends = []
        for share in (0.51, 0.49):
            shares = torch.full((5, 1), 0.5)
            shares[tile] = share
            moved = model.image_tokens((mean + shares * (tiles - mean))[None], torch.ones(1, 5, dtype=torch.bool))[0]
            with torch.no_grad():
                ends.append(log_odds(model.decoder, moved, contrast))
        change[tile] = (ends[0] - ends[1]) / 0.02
    torch.testing.assert_close(gradient, change, rtol=0.1, atol=0.02 * float(change.abs().max()) + 2e-4)


def test_a_decoder_is_made_cheaper_only_if_it_says_so(model):
    for feature in ("compile", "grad_checkpointing"):
        config = config_of(name_of(model))
        setattr(config.training, feature, True)
        if feature in model.decoder.supports:
            build.build_model(config, LETTERS)
        else:
            with refused(f"training.{feature}", "no support"):
                build.build_model(config, LETTERS)
    if "probe_tokens" not in model.decoder.supports:
        with refused("model.probe_tokens", "no support"):
            build.build_model(config_of("prism"), LETTERS, num_predicted=PREDICTED)
