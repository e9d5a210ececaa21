"""CoCa, the captioner: image tokens and text in, logits, embeddings and losses out. Imports torch and einops alone."""

from .coca_pytorch import CoCa, add_logit_bias
from .decoding import PackedLinears
from .losses import CoCaLosses, CoCaOutputs

__all__ = ["CoCa", "CoCaLosses", "CoCaOutputs", "PackedLinears", "add_logit_bias"]
