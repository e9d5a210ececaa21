"""The slide encoder against published numbers, plain loops, and itself padded, batched and frozen."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from prism import PerceiverConfig, PrismSlideEncoder, perceiver
from prism.perceiver import CrossAttention, Tiles, attend, attend_in_parts
from tests.parity.prism_weights import SMALL_CONFIG, full_keys, small_state

REFERENCE = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "parity" / "prism_small.npz").items()}
TILES, MASK = REFERENCE["tile_embeddings"], REFERENCE["tile_mask"]


@pytest.fixture
def encoder() -> PrismSlideEncoder:
    model = PrismSlideEncoder(PerceiverConfig(**SMALL_CONFIG))
    model.load_state_dict(small_state())
    return model


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_one_slide_equals_the_reference(encoder):
    out = encoder.slide_representations(TILES[:1])
    close(out["image_embedding"], REFERENCE["single_image_embedding"])
    close(out["image_latents"], REFERENCE["single_image_latents"])


def test_padded_batch_equals_the_reference(encoder):
    out = encoder(TILES, MASK)
    close(out["image_embedding"], REFERENCE["image_embedding"])
    close(out["image_latents"], REFERENCE["image_latents"])


def test_N06_batch_equals_slides_one_by_one_without_their_padding(encoder):
    batch = encoder(TILES, MASK)
    for i in range(2):
        alone = encoder(TILES[i : i + 1, MASK[i]])
        for name, value in alone.items():
            close(batch[name][i : i + 1], value)


@pytest.mark.parametrize("rubbish", [0.0, 1e30, math.nan, math.inf, -math.inf])
def test_N06_content_of_padding_changes_nothing_at_all(encoder, rubbish):
    filled = TILES.masked_fill(~MASK[..., None], rubbish)
    for name, value in encoder(TILES, MASK).items():
        assert torch.equal(encoder(filled, MASK)[name], value)


def test_order_of_tiles_does_not_matter(encoder):
    close(encoder(TILES[:, torch.randperm(9)])["image_latents"], encoder(TILES)["image_latents"])


def test_mask_of_only_tiles_is_the_same_as_no_mask(encoder):
    assert torch.equal(encoder(TILES, torch.ones_like(MASK))["image_latents"], encoder(TILES)["image_latents"])


def test_half_precision_tiles_are_cast_to_the_weights(encoder):
    half = TILES.half()
    assert torch.equal(encoder(half, MASK)["image_embedding"], encoder(half.float(), MASK)["image_embedding"])


def test_bfloat16_autocast_stays_near_float32(encoder):
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(TILES, MASK)["image_embedding"]
    assert torch.cosine_similarity(out.float(), REFERENCE["image_embedding"]).min() > 0.999


def test_attention_equals_plain_loops_whole_and_in_parts():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5, 6)
    whole, in_parts = attend(q, k, v), attend_in_parts(q, [(k[:2], v[:2]), (k[2:3], v[2:3]), (k[3:], v[3:])], 0.5)
    for s in range(3):
        e = [math.exp(sum(float(q[s, d] * k[n, d]) for d in range(4)) / 2) for n in range(5)]
        want = sum(w / sum(e) * v[n] for n, w in enumerate(e))
        close(whole[s], want)
        close(in_parts[s], want)


def test_tiles_in_parts_equal_tiles_at_once(encoder, monkeypatch):
    whole = encoder(TILES, MASK)
    monkeypatch.setattr(perceiver, "PART", 2)
    for name, value in encoder(TILES, MASK).items():
        close(value, whole[name])


def test_reading_with_and_without_keys_gives_the_same_numbers_and_gradients():
    torch.manual_seed(0)
    reader, x, tiles = CrossAttention(6, 8), torch.randn(2, 3, 6), torch.randn(2, 90, 8)
    slides = [Tiles(t, torch.float32) for t in tiles]
    assert reader.keys_values(slides[0], slots=3, uses=1) is None
    results, grads = [], []
    for uses in ((1, 1), (100, 100), (1, 100)):
        known = [reader.keys_values(slide, 3, n) for slide, n in zip(slides, uses, strict=True)]
        results.append(reader(x, slides, known))
        grads += torch.autograd.grad(results[-1].pow(3).sum(), reader.to_kv.weight)
    for i in (1, 2):
        close(results[i], results[0])
        close(grads[i], grads[0])


def test_half_precision_leaves_the_frozen_weights_as_they_were_and_follows_new_ones(encoder):
    encoder.freeze()
    before = encoder(TILES, MASK)["image_latents"]
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(TILES, MASK)["image_latents"]
    assert torch.equal(encoder(TILES, MASK)["image_latents"], before)
    with torch.no_grad():
        encoder.image_resampler.perceiver.layers[0].tf[0].mhsa.mha.in_proj_weight.mul_(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(encoder(TILES, MASK)["image_latents"], half)


def test_keys_and_values_are_computed_twice_in_all(encoder):
    calls = []
    for module in encoder.modules():
        if isinstance(module, CrossAttention):
            module.to_kv.register_forward_hook(lambda *_: calls.append(1))
    encoder(TILES)
    assert len(calls) == 2


def test_full_size_has_the_keys_shapes_and_sharing_of_the_published_checkpoint():
    with torch.device("meta"):
        state = PrismSlideEncoder().state_dict(keep_vars=True)
    shapes, alias = full_keys()
    assert len(shapes) == 573
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    first = {}
    found = {key: first.setdefault(id(value), key) for key, value in state.items()}
    assert {key: name for key, name in found.items() if key != name} == alias


def test_frozen_builds_no_graph_and_survives_train(encoder):
    assert encoder.freeze() is encoder
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    out = encoder(TILES.clone().requires_grad_(), MASK)
    assert not out["image_embedding"].requires_grad and not out["image_latents"].requires_grad


def test_unfreeze_gives_every_parameter_a_gradient(encoder):
    assert encoder.freeze().unfreeze() is encoder and encoder.training
    out = encoder(TILES, MASK)
    (out["image_embedding"].square().sum() + out["image_latents"].pow(3).sum()).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    ("tiles", "mask", "words"),
    [
        (torch.zeros(1, 9, 21), None, ["21", "20"]),
        (torch.zeros(9, 20), None, ["(9, 20)"]),
        (torch.zeros(1, 0, 20), None, ["no tile"]),
        (TILES, MASK.float(), ["float32", "bool"]),
        (TILES, MASK[:, :8], ["(2, 8)", "(2, 9)"]),
        (TILES, torch.tensor([[True] * 9, [False] * 9]), ["slide 1"]),
    ],
)
def test_wrong_input_is_refused_with_the_numbers(encoder, tiles, mask, words):
    with pytest.raises(ValueError) as error:
        encoder(tiles, mask)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("xattn_heads", 2),
        ("mlp_activation", "gelu"),
        ("mhsa_heads", 7),
        ("latent_dim", "1280"),
        ("latent_seq", 0),
        ("share_tf_start_layer", -1),
        ("perceiver_depth", True),
    ],
)
def test_unsupported_architecture_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        PerceiverConfig(**{field: value})


def test_layers_before_the_start_of_sharing_have_their_own_blocks():
    config = PerceiverConfig(**{**SMALL_CONFIG, "share_xattn_start_layer": 2, "share_tf_start_layer": 3})
    layers = PrismSlideEncoder(config).image_resampler.perceiver.layers
    assert len({id(layer.xattn) for layer in layers}) == 3 and layers[2].xattn is layers[3].xattn
    assert len({id(layer.tf) for layer in layers}) == 4
