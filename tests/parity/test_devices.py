"""The reference numbers on each device: the published slide encoder, loss and gradients of CoCa, and greedy captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.models.generation import generate
from prism import GenerationOptions, PerceiverConfig, PrismSlideEncoder
from tests.parity.coca_weights import reference, small_coca
from tests.parity.prism_weights import SMALL_CONFIG, small_state

PRISM = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / "prism_small.npz").items()}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# float32 without TF32: sums are added up in another order only
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask_device", DEVICES)
def test_the_slide_encoder_gives_the_published_numbers(device, mask_device):
    encoder = PrismSlideEncoder(PerceiverConfig(**SMALL_CONFIG))
    encoder.load_state_dict(small_state())
    out = encoder.to(device)(PRISM["tile_embeddings"].to(device), PRISM["tile_mask"].to(mask_device))
    for name in ("image_embedding", "image_latents"):
        torch.testing.assert_close(out[name].cpu(), PRISM[name], **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
def test_coca_gives_the_published_loss_and_gradients(device):
    ref, model = reference(), small_coca().to(device)
    loss = model(ref["text"].to(device), image_tokens=ref["image_tokens"].to(device), return_loss=True)
    loss.backward()
    torch.testing.assert_close(loss.cpu(), ref["loss"], **CLOSE)
    for name in (name for name in ref if name.startswith("grad:")):
        torch.testing.assert_close(model.get_parameter(name[5:]).grad.cpu(), ref[name], **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
def test_captions_are_those_of_the_cpu(device):
    ref = reference()
    captions = [generate(small_coca().eval().to(place), ref["image_tokens"].to(place), GenerationOptions(max_length=12, num_beams=beams),
                         bos_id=1, eos_id=2, pad_id=0) for place in ("cpu", device) for beams in (1, 3)]
    assert captions[:2] == captions[2:]
