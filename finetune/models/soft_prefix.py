"""Slide tokens as a soft prefix of a language model, and the image embedding of the contrastive loss.

As in MPath and other captioners with a pretrained language model the model itself is not changed: the slide is a few
vectors in front of its text, where it expects token embeddings (prefix tuning of the inputs,
https://arxiv.org/abs/2101.00190; with pooled image features, https://arxiv.org/abs/2111.09734).

Shapes: b slides, n image tokens of a slide, q vectors of the prefix, d width of the pooling, w of the language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coca_pytorch.layers import CrossAttention


class SoftPrefix(nn.Module):
    """Image tokens (b, n, image_dim) -> image embeddings (b, d) and pooled tokens (b, q, d) -> a prefix (b, q, w).

    Attention pooling with learned queries as in CoCa, LayerNorm, a small MLP. Each vector of the prefix begins at the
    size of the language model's own token embeddings: others would drown in them or drown them.

    Args:
        size: Root mean square of the language model's embeddings, a scalar.
    """

    def __init__(self, *, dim: int, image_dim: int, num_queries: int, heads: int, dim_head: int, width: int,
                 size: Tensor) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries + 1, dim))  # the first one is for the image embedding
        self.pool = CrossAttention(dim, dim_head=dim_head, heads=heads, context_dim=image_dim, norm_context=True)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.size = nn.Parameter(size.detach().float().reshape(1).clone())

    def pool_image(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image tokens (b, n, image_dim) -> image embeddings (b, d) and pooled image tokens (b, q, d)."""
        pooled = self.norm(self.queries + self.pool(self.queries.unsqueeze(0), *self.pool.keys_values(image_tokens)))
        return pooled[:, 0], pooled[:, 1:]

    def forward(self, pooled: Tensor) -> Tensor:
        """(b, q, d) -> the prefix (b, q, w)."""
        prefix = self.mlp(pooled)
        return F.layer_norm(prefix.float(), prefix.shape[-1:]) * self.size
