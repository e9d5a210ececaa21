"""CoCa, the captioner: image tokens and text in, logits, embeddings and losses out. Imports torch and einops alone."""

from .coca_pytorch import CoCa
from .contrastive import ContrastiveCaptioner
from .decoding import PackedLinears
from .layers import EmbedToLatents
from .losses import CoCaLosses, CoCaOutputs, caption_loss, contrastive_loss, equal_text_groups

__all__ = ["CoCa", "CoCaLosses", "CoCaOutputs", "ContrastiveCaptioner", "EmbedToLatents", "PackedLinears",
           "caption_loss", "contrastive_loss", "equal_text_groups"]
