"""The Prism slide encoder: tile embeddings of one slide in, one slide embedding and image latents out.

    from prism import load_prism
    encoder = load_prism("paige-ai/Prism")          # or a local folder, a file, "random", "random-tiny"
    out = encoder.slide_representations(tiles)      # tiles (B, N, 2560)
    out["image_embedding"], out["image_latents"]    # (B, 1280), (B, 512, 1280)

Our own implementation of the encoder described in "PRISM: A Multi-Modal Generative Foundation Model for
Slide-Level Histopathology" (https://arxiv.org/abs/2405.10254), a Perceiver (https://arxiv.org/abs/2103.03206).
It reads the published weights; no code of the published repository is used or run.
"""

from .files import PrismWeightsError
from .perceiver import PerceiverConfig
from .prism import PrismSlideEncoder
from .weights import load_prism

__all__ = ["PerceiverConfig", "PrismSlideEncoder", "PrismWeightsError", "load_prism"]
