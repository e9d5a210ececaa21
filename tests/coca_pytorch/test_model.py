"""CoCa against the numbers of CoCa-pytorch 0.1.0, and what must not change an output: padding, masks, later tokens."""

import importlib
import importlib.util
import sys
import types

import pytest
import torch

from coca_pytorch import CoCa
from tests.parity.coca_weights import SMALL, reference, small_coca

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PAD = SMALL["config"]["pad_id"]


@pytest.fixture
def ref():
    return reference()


def test_state_dict_is_that_of_the_published_model():
    assert {key: list(value.shape) for key, value in small_coca().state_dict().items()} == SMALL["keys"]


def test_inv_freq_and_beta_are_constructed_as_published():
    state = CoCa(**SMALL["config"]).state_dict()
    published = 10000 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(state["unimodal_layers.0.fn.rotary_emb.inv_freq"], published)
    assert not state["to_logits.0.beta"].any()


def test_logits_and_embeddings_equal_the_published_model(ref):
    model = small_coca()
    logits = model(ref["text"], image_tokens=ref["image_tokens"])
    text_embeds, image_embeds = model(ref["text"], image_tokens=ref["image_tokens"], return_embeddings=True)
    torch.testing.assert_close(logits, ref["logits"], **CLOSE)
    torch.testing.assert_close(text_embeds, ref["text_embeds"], **CLOSE)
    torch.testing.assert_close(image_embeds, ref["image_embeds"], **CLOSE)


def test_loss_and_gradients_equal_the_published_model(ref):
    model = small_coca()
    loss = model(ref["text"], image_tokens=ref["image_tokens"], return_loss=True)
    loss.backward()
    torch.testing.assert_close(loss, ref["loss"], **CLOSE)
    names = [name for name in ref if name.startswith("grad:")]
    assert len(names) == 4
    for name in names:
        torch.testing.assert_close(model.get_parameter(name[5:]).grad, ref[name], **CLOSE)


def test_padded_logits_equal_the_published_model_at_real_positions(ref):
    text = ref["padded_text"]
    logits = small_coca()(text, image_tokens=ref["image_tokens"])
    torch.testing.assert_close(logits[text != PAD], ref["padded_logits"][text != PAD], **CLOSE)


def test_embedding_and_logits_do_not_depend_on_padding(ref):
    model, text = small_coca(), ref["padded_text"]
    embeds, _ = model.embed_text(text)
    logits = model(text, image_tokens=ref["image_tokens"])
    for row, length in enumerate((text != PAD).sum(1).tolist()):
        alone = text[row:row + 1, :length]
        torch.testing.assert_close(model.embed_text(alone)[0][0], embeds[row], **CLOSE)
        image = ref["image_tokens"][row:row + 1]
        torch.testing.assert_close(model(alone, image_tokens=image)[0], logits[row, :length], **CLOSE)


@pytest.mark.parametrize("with_labels", [False, True])
def test_losses_do_not_depend_on_padding(ref, with_labels):
    model, text = small_coca(), ref["padded_text"]
    text, labels = (text[:, :-1], text[:, 1:]) if with_labels else (text, None)

    def padded(ids):
        return None if ids is None else torch.nn.functional.pad(ids, (0, 7), value=PAD)

    short = model.compute_losses(text, labels, image_tokens=ref["image_tokens"])
    long = model.compute_losses(padded(text), padded(labels), image_tokens=ref["image_tokens"])
    torch.testing.assert_close(long.caption_loss, short.caption_loss, **CLOSE)
    torch.testing.assert_close(long.contrastive_loss, short.contrastive_loss, **CLOSE)


def test_without_labels_the_last_real_token_of_each_row_is_no_input(ref):
    model, text = small_coca(), ref["padded_text"]
    embeds, _ = model(text, image_tokens=ref["image_tokens"], return_loss=True, return_embeddings=True)
    for row, length in enumerate((text != PAD).sum(1).tolist()):
        torch.testing.assert_close(embeds[row], model.embed_text(text[row:row + 1, :length - 1])[0][0], **CLOSE)


def test_a_later_token_leaves_earlier_logits_alone(ref):
    model, changed = small_coca(), ref["text"].clone()
    changed[:, 5] = 7
    logits = model(changed, image_tokens=ref["image_tokens"])
    torch.testing.assert_close(logits[:, :5], ref["logits"][:, :5], **CLOSE)
    assert (logits[:, 5:] - ref["logits"][:, 5:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_masked_image_tokens_change_nothing(ref, garbage):
    model, tokens = small_coca(), ref["image_tokens"]
    longer = torch.cat([tokens, torch.full((3, 4, 48), garbage)], dim=1)
    mask = torch.arange(9) < torch.tensor([[5], [5], [3]])
    longer[2, 3:] = garbage
    expected = model(ref["text"][:2], image_tokens=tokens[:2]), model(ref["text"][2:], image_tokens=tokens[2:, :3])
    found = model(ref["text"], image_tokens=longer, image_mask=mask)
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)
    loss = model(ref["text"], image_tokens=longer, image_mask=mask, return_loss=True)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_image_without_any_token_gives_finite_numbers(ref):
    model, mask = small_coca(), torch.zeros(3, 5, dtype=torch.bool)
    assert model(ref["text"], image_tokens=ref["image_tokens"] * float("nan"), image_mask=mask).isfinite().all()


def test_bfloat16_autocast_stays_near_float32(ref):
    model = small_coca()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ref["text"], image_tokens=ref["image_tokens"])
        losses = model.compute_losses(ref["text"], image_tokens=ref["image_tokens"])
    assert (logits - ref["logits"]).norm() < 0.02 * ref["logits"].norm()
    assert losses.loss.dtype == torch.float32
    torch.testing.assert_close(losses.loss, ref["loss"], atol=0.0, rtol=0.02)


def test_similarity_is_the_cosine_of_the_contrastive_latents(ref):
    model = small_coca()
    found = model.similarity(ref["text_embeds"], ref["image_embeds"][:2])
    text = ref["text_embeds"] @ model.text_to_latents.to_latents.weight.T
    image = ref["image_embeds"][:2] @ model.img_to_latents.to_latents.weight.T
    torch.testing.assert_close(found, torch.cosine_similarity(text[:, None], image[None], dim=-1), **CLOSE)


def test_the_readme_example_of_the_original_runs_with_an_image_encoder(monkeypatch):
    if importlib.util.find_spec("torchvision") is None:  # vit-pytorch imports it for DINO alone
        stub = types.ModuleType("torchvision")
        stub.transforms = types.ModuleType("torchvision.transforms")
        monkeypatch.setitem(sys.modules, "torchvision", stub)
    pytest.importorskip("vit_pytorch")
    vit_module = importlib.import_module("vit_pytorch.simple_vit_with_patch_dropout")
    extractor = importlib.import_module("vit_pytorch.extractor").Extractor
    vit = vit_module.SimpleViT(image_size=16, patch_size=8, num_classes=3, dim=48, depth=1, heads=2, mlp_dim=32,
                               patch_dropout=0.5)
    model = small_coca(img_encoder=extractor(vit, return_embeddings_only=True, detach=False))
    text, images = torch.randint(2, 97, (4, 9)), torch.randn(4, 3, 16, 16)
    model(text=text, images=images, return_loss=True).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".linear_head" not in name)
    model.eval()
    text_embeds, image_embeds = model(text=text, images=images, return_embeddings=True)
    assert text_embeds.shape == image_embeds.shape == (4, 64)
    tokens = model.img_encoder(images)  # in evaluation mode no patch is dropped
    torch.testing.assert_close(model(text, images), model(text, image_tokens=tokens), **CLOSE)
    assert {k for k in model.state_dict() if not k.startswith("img_encoder.vit.")} == set(SMALL["keys"])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"image_tokens": torch.zeros(3, 5, 47)}, r"\(3, 5, 47\), need \(batch, tokens, 48\)"),
    ({"image_tokens": torch.zeros(3, 48)}, r"\(3, 48\), need \(batch, tokens, 48\)"),
    ({"images": torch.zeros(3, 3, 8, 8)}, "img_encoder="),
    ({}, "either images or image_tokens"),
    ({"images": torch.zeros(3, 3, 8, 8), "image_tokens": torch.zeros(3, 5, 48)}, "either images or image_tokens"),
    ({"image_tokens": torch.zeros(3, 5, 48), "image_mask": torch.ones(3, 4) > 0}, r"image_mask is \(3, 4\)"),
    ({"image_tokens": torch.zeros(3, 5, 48), "text_mask": torch.ones(3, 8) > 0}, r"text_mask is \(3, 8\)"),
    ({"image_tokens": torch.zeros(3, 5, 48), "labels": torch.ones(3, 8).long()}, r"labels are \(3, 8\)"),
])
def test_misuse_is_named(ref, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_coca()(ref["text"], return_loss=True, **arguments)
