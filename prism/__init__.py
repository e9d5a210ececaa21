"""Prism: tile embeddings of one slide in; a slide embedding, image latents and a report out.

    from prism import Prism, load_prism
    encoder = load_prism("paige-ai/Prism")          # the slide encoder alone; or a local folder, a file, "random-tiny"
    out = encoder.slide_representations(tiles)      # tiles (B, N, 2560)
    out["image_embedding"], out["image_latents"]    # (B, 1280), (B, 512, 1280)
    prism = Prism.from_pretrained("paige-ai/Prism")  # with its text side
    prism.untokenize(prism.generate(key_value_states=out["image_latents"]))

Our own implementation of the model described in "PRISM: A Multi-Modal Generative Foundation Model for Slide-Level
Histopathology" (https://arxiv.org/abs/2405.10254): a Perceiver (https://arxiv.org/abs/2103.03206) and BioGPT
(https://doi.org/10.1093/bib/bbac409). It reads the published weights; no code of the published repository is used.
"""

from .biogpt import TextDecoder
from .config import BioGptConfig, PerceiverConfig, PrismConfig
from .errors import PrismWeightsError
from .generation import GenerationOptions, search
from .prism import Prism
from .slide_encoder import PrismSlideEncoder, fingerprint, hash_tensors
from .tokenizer import BioGptTokenizer
from .weights import load_prism, load_tokenizer

__all__ = ["BioGptConfig", "BioGptTokenizer", "GenerationOptions", "PerceiverConfig", "Prism", "PrismConfig",
           "PrismSlideEncoder", "PrismWeightsError", "TextDecoder", "fingerprint", "hash_tensors", "load_prism",
           "load_tokenizer", "search"]
