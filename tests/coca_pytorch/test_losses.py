"""The two losses against full logits and plain loops, and the temperature of the contrastive one."""

import math

import pytest
import torch
import torch.nn.functional as F

from coca_pytorch import CoCa
from coca_pytorch.losses import caption_loss, contrastive_loss, equal_text_groups, siglip_loss
from tests.parity.coca_weights import SMALL, reference, small_coca

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PAD = SMALL["config"]["pad_id"]


def latents(rows, width=8, seed=0):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def looped_contrastive_loss(text, image, scale, groups):
    """Each pair against each other pair of another group, both ways, in plain Python numbers."""
    total, rows = 0.0, len(text)
    for one, other in ((text, image), (image, text)):
        for i in range(rows):
            score = [math.exp(scale * float(one[i] @ other[j])) for j in range(rows)]
            total -= math.log(score[i] / sum(score[j] for j in range(rows) if j == i or groups[j] != groups[i]))
    return total / (2 * rows)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 0, 2, 3, 0], [0, 0, 2, 2, 4], [0, 0, 0, 0, 0]])
def test_N05_equal_texts_are_no_negatives_of_each_other(groups):
    text, image = latents(5, seed=1), latents(5, seed=2)
    found = contrastive_loss(text, image, torch.tensor(3.0), torch.tensor(groups))
    assert float(found) == pytest.approx(looped_contrastive_loss(text, image, 3.0, groups), abs=1e-5)


def test_masked_pairs_give_finite_gradients():
    text, image = latents(4, seed=1).requires_grad_(), latents(4, seed=2)
    contrastive_loss(text, image, torch.tensor(100.0), torch.tensor([0, 0, 2, 2])).backward()
    assert text.grad.isfinite().all() and text.grad.any()


def test_contrastive_loss_of_one_pair_is_zero():
    assert contrastive_loss(latents(1), latents(1, seed=1), torch.tensor(10.0)) == 0


def test_contrastive_loss_is_float32_under_autocast():
    text, image = latents(6, seed=1), latents(6, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(text, image, torch.tensor(100.0))
    torch.testing.assert_close(found, contrastive_loss(text, image, torch.tensor(100.0)), atol=0, rtol=0)


def test_groups_compare_real_tokens_only():
    text = torch.tensor([[5, 6, 9], [5, 6, 7], [5, 6, 7], [5, 7, 6], [5, 6, 8]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]) > 0
    groups = equal_text_groups(text, mask).tolist()
    assert [groups.index(g) for g in groups] == [0, 1, 1, 3, 0]
    other = equal_text_groups(torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]]) > 0)
    assert other.item() == groups[1], "equal in a batch of another length, too"


def test_no_two_of_a_hundred_thousand_similar_texts_fall_into_one_group():
    text = torch.cartesian_prod(*[torch.arange(10)] * 5)
    groups = equal_text_groups(text, torch.ones_like(text, dtype=torch.bool))
    assert len(groups.unique()) == 100_000 and 0.49 < (groups > 0).float().mean() < 0.51


def test_the_model_leaves_equal_texts_out():
    model, ref = small_coca(caption_loss_weight=0.0), reference()
    text = ref["text"].clone()
    text[2] = text[0]
    found = model.compute_losses(text, image_tokens=ref["image_tokens"]).contrastive_loss
    text_embeds, image_embeds = model.embed_text(text[:, :-1])[0], ref["image_embeds"]
    text_latents, image_latents = model.text_to_latents(text_embeds), model.img_to_latents(image_embeds)
    expected = looped_contrastive_loss(text_latents.detach(), image_latents.detach(), math.e, [0, 1, 0])
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_temperature_starts_as_in_clip():
    assert CoCa(**SMALL["config"]).logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize("start", [10.0, math.log(100)])
def test_N05_temperature_stops_at_log_100_and_can_come_back(start):
    model, ref = small_coca(), reference()
    model.temperature.data.fill_(start)
    model(ref["text"], image_tokens=ref["image_tokens"], return_loss=True).backward()
    assert model.temperature.item() == pytest.approx(math.log(100), rel=1e-6)
    # these latents are random, so the loss falls with a lower temperature
    assert model.temperature.grad.item() > 1e-3


def test_in_evaluation_the_temperature_is_limited_but_not_written():
    model, ref = small_coca().eval(), reference()
    model.temperature.data.fill_(10.0)
    model(ref["text"], image_tokens=ref["image_tokens"], return_loss=True)
    assert model.temperature.item() == 10.0 and model.logit_scale.item() == pytest.approx(100.0, rel=1e-5)


def test_caption_loss_is_cross_entropy_over_full_logits():
    model, ref = small_coca(contrastive_loss_weight=0.0), reference()
    text = ref["padded_text"]
    losses = model.compute_losses(text[:, :-1], text[:, 1:], image_tokens=ref["image_tokens"])
    logits = model(text[:, :-1], image_tokens=ref["image_tokens"])
    expected = F.cross_entropy(logits.transpose(1, 2), text[:, 1:], ignore_index=PAD)
    torch.testing.assert_close(losses.caption_loss, expected, **CLOSE)
    assert losses.loss == losses.caption_loss and losses.contrastive_loss == 0


def test_a_mask_makes_an_end_token_that_equals_the_padding_learnable():
    model, ref = small_coca(), reference()
    ids = ref["text"].clone()
    ids[:, -1] = ids[1, 6:] = PAD  # row 1 ends at position 6
    text, labels = ids[:, :-1], ids[:, 1:]
    mask = torch.arange(8) < torch.tensor([[8], [6], [8]])
    found = model.compute_losses(text, labels, image_tokens=ref["image_tokens"], text_mask=mask).caption_loss
    words = model(text, image_tokens=ref["image_tokens"], text_mask=mask).log_softmax(-1)
    picked = [-words[b, t, labels[b, t]] for b in range(3) for t in range(8) if mask[b, t]]
    torch.testing.assert_close(found, torch.stack(picked).mean(), **CLOSE)
    unmasked = model.compute_losses(text, labels, image_tokens=ref["image_tokens"]).caption_loss
    assert abs((found - unmasked).item()) > 1e-3


def test_without_labels_a_mask_over_the_whole_text_gives_the_same():
    model, ref = small_coca(), reference()
    mask = ref["padded_text"] != PAD
    other = ref["padded_text"].masked_fill(~mask, 33)  # what follows the text does not matter
    expected = model.compute_losses(ref["padded_text"], image_tokens=ref["image_tokens"])
    found = model.compute_losses(other, image_tokens=ref["image_tokens"], text_mask=mask)
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)


def test_N03_captions_of_padding_alone_give_zero_and_finite_gradients():
    model, ref = small_coca(contrastive_loss_weight=0.0), reference()
    losses = model.compute_losses(torch.full((3, 9), PAD), image_tokens=ref["image_tokens"])
    losses.loss.backward()
    assert losses.caption_loss == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert caption_loss(torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(0).long()) == 0


def test_loss_is_the_weighted_sum_and_forward_returns_it():
    model, ref = small_coca(caption_loss_weight=2.0, contrastive_loss_weight=0.25), reference()
    losses = model.compute_losses(ref["text"], image_tokens=ref["image_tokens"])
    torch.testing.assert_close(losses.loss, 2 * losses.caption_loss + losses.contrastive_loss / 4)
    torch.testing.assert_close(losses.caption_loss + losses.contrastive_loss, ref["loss"], **CLOSE)
    assert model(ref["text"], image_tokens=ref["image_tokens"], return_loss=True) == losses.loss


@pytest.mark.parametrize(("off", "idle"), [
    ("caption_loss_weight", "multimodal_layers"), ("contrastive_loss_weight", "text_to_latents")])
def test_a_loss_of_weight_zero_is_not_computed(off, idle, monkeypatch):
    model, ref = small_coca(**{off: 0.0}), reference()
    for module in model.get_submodule(idle).modules():
        module.register_forward_pre_hook(lambda *_: pytest.fail("was called"))
    model.compute_losses(ref["text"], image_tokens=ref["image_tokens"]).loss.backward()
    assert all(p.grad is None for p in model.get_submodule(idle).parameters())


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 0, 2, 3, 0]])
def test_siglip_loss_is_a_sum_over_pairs_and_adds_up_over_rows(groups):
    text, image, scale, bias = latents(5, seed=1), latents(5, seed=2), torch.tensor(3.0), torch.tensor(-2.0)
    wanted = 0.0
    for i in range(5):
        for j in range(5):
            if i == j or groups[i] != groups[j]:
                wanted += math.log1p(math.exp(-(1 if i == j else -1) * (3.0 * float(text[i] @ image[j]) - 2.0))) / 5
    given = (text, image, scale, bias, torch.tensor(groups))
    assert float(siglip_loss(*given)) == pytest.approx(wanted, abs=1e-5)
    assert sum(float(siglip_loss(*given, slice(i, i + 2))) for i in (0, 2, 4)) == pytest.approx(wanted, abs=1e-5)


def test_label_smoothing_spreads_its_share_over_all_tokens_and_only_in_training():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(6, 8), torch.randn(11, 8), torch.arange(6)
    log_p = (hidden @ weight.T).log_softmax(-1)
    wanted = -(0.8 * log_p[torch.arange(6), labels] + 0.2 * log_p.mean(-1)).sum()
    torch.testing.assert_close(caption_loss(hidden, weight, labels, 0.2), wanted)
    coca = CoCa(dim=16, num_tokens=11, unimodal_depth=1, multimodal_depth=1, label_smoothing=0.2)
    text, image = torch.randint(1, 11, (2, 6)), torch.randn(2, 3, 16)
    smooth = coca.compute_losses(text, image_tokens=image).caption_loss
    plain = coca.eval().compute_losses(text, image_tokens=image).caption_loss
    coca.label_smoothing = 0.0
    assert smooth != plain and plain == coca.train().compute_losses(text, image_tokens=image).caption_loss
