"""Prism's text decoder: BioGPT (https://doi.org/10.1093/bib/bbac409) whose upper half also reads the slide.

Module and parameter names are the keys of the published checkpoint. The lower half never sees the slide: the hidden
state of a CLS token after it is the text embedding (CoCa, https://arxiv.org/abs/2205.01917). No dropout.

Shapes: B texts, T tokens, D = `hidden_size`, H heads, n image latents of dimension C; S slides of a cache, of which
each has B / S texts (the beams of a search).
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import BioGptConfig
from .perceiver import attend


class SlideGrid:
    """Texts whose number differs from slide to slide, each slide's one after another, as rows of equal length."""

    def __init__(self, counts: Tensor) -> None:
        """counts: (S,) texts of each slide."""
        self.counts = counts
        self._real = torch.arange(int(counts.max()), device=counts.device) < counts.unsqueeze(1)  # (S, most texts)
        self._texts = torch.zeros_like(self._real, dtype=torch.long)
        self._texts[self._real] = torch.arange(int(counts.sum()), device=counts.device)

    def apply(self, x: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B, T, D) -> (B, T, D), by what makes (S, queries, D) of (S, queries, D)."""
        grid = x[self._texts]  # (S, most texts, T, D)
        return attention(grid.flatten(1, 2)).view_as(grid)[self._real]


class DecoderCache:
    """Keys and values of all layers: of the tokens so far, each (B, H, length, d), and of the slides, (S, H, n, d).

    Made by `TextDecoder.start_decoding`, filled by `decode_step`. Beams share the keys of their slide. Within `packed`
    the tokens are computed, a hook for faster products. `grid`: of caches whose slides have different numbers of texts.
    """

    def __init__(self, cross: list[tuple[Tensor, Tensor]], batch: int, depth: int) -> None:
        """cross: a pair for each layer of the upper half. batch: S. depth: number of all layers."""
        self.cross, self.batch, self.length = cross, batch, 0
        self.packed: AbstractContextManager = nullcontext()
        self.grid: SlideGrid | None = None
        self._past: list[tuple[Tensor, Tensor] | None] = [None] * depth

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values (B, H, T, d) of a layer behind those it has; returns all of them."""
        past = self._past[layer]
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        self._past[layer] = key, value
        return key, value

    def reorder(self, rows: Tensor) -> None:
        """rows: text i continues the current text rows[i]. Slides keep their order and number of texts; some may be
        left out."""
        self._change(lambda tensor: tensor.index_select(0, rows))
        if self.cross and len(rows) < self.batch:
            texts = self.batch // len(self.cross[0][0])  # of each slide
            slides = rows[::texts] // texts
            self.cross = [(key.index_select(0, slides), value.index_select(0, slides)) for key, value in self.cross]
        self.batch = len(rows)

    def select(self, rows: Tensor) -> "DecoderCache":
        """A new cache whose text i continues text rows[i], any number for each slide, slides in their order; this one
        stays as it is."""
        selected = copy(self)
        selected._change(lambda tensor: tensor.index_select(0, rows))
        selected.batch = len(rows)
        counts = self._counts(rows)
        kept = counts.nonzero().flatten()
        if len(kept) < len(counts):
            selected.cross = [(key.index_select(0, kept), value.index_select(0, kept)) for key, value in self.cross]
        selected.grid = SlideGrid(counts[kept])
        return selected

    def _counts(self, rows: Tensor) -> Tensor:
        """How many of these texts (B',) each slide has, (S,)."""
        slides = len(self.cross[0][0])
        texts = torch.tensor(self.batch // slides, device=rows.device) if self.grid is None else self.grid.counts
        slide_of = torch.arange(slides, device=rows.device).repeat_interleave(texts.expand(slides))
        return torch.bincount(slide_of[rows], minlength=slides)

    def repeat(self, n: int) -> None:
        """Expand each text to n neighbours: a b c -> a a b b c c for n = 2."""
        self._change(lambda tensor: tensor.repeat_interleave(n, 0))
        self.batch *= n

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self._past = [None if past is None else (change(past[0]), change(past[1])) for past in self._past]


class Attention(nn.Module):
    """Multi-head attention with biases; keys and values come apart from it, as decoding keeps them."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(context_dim, dim)
        self.v_proj = nn.Linear(context_dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, j, C) -> keys and values, each (B, H, j, D / H)."""
        return self._heads(self.k_proj(context)), self._heads(self.v_proj(context))

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, T, D); keys and values (B, H, j, D / H); bias (B or 1, 1, T, j) -> (B, T, D)."""
        return self.out_proj(attend(self._heads(self.q_proj(x)), key, value, bias).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, in the upper half cross-attention to the slide, feed-forward; each with its residual."""

    def __init__(self, config: BioGptConfig, context_dim: int | None) -> None:
        """context_dim: C, or None for a layer of the lower half."""
        super().__init__()
        dim, heads = config.hidden_size, config.num_attention_heads
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads, dim)
        if context_dim is not None:
            self.x_attn_layer_norm = nn.LayerNorm(dim)
            self.x_attn = Attention(dim, heads, context_dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, dim)

    def forward(self, x: Tensor, bias: Tensor | None, cross: tuple[Tensor, Tensor] | None = None,
                cache: DecoderCache | None = None, index: int = 0) -> Tensor:
        """x (B, T, D). bias (B or 1, 1, T, j). cross: of the slides, (S, H, n, d). index: of the layer, in cache."""
        normed = self.self_attn_layer_norm(x)
        key, value = self.self_attn.keys_values(normed)
        if cache is not None:
            key, value = cache.append(index, key, value)
        x = x + self.self_attn(normed, key, value, bias)
        if cross is not None:
            normed = self.x_attn_layer_norm(x)
            if cache is None or cache.grid is None:
                # the texts of a slide follow each other: together they are the queries to its keys
                x = x + self.x_attn(normed.reshape(len(cross[0]), -1, x.shape[-1]), *cross).view_as(x)
            else:
                x = x + cache.grid.apply(normed, lambda queries: self.x_attn(queries, *cross))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class BioGptModel(nn.Module):
    """The published `biogpt`: embeddings, layers and the last norm, used by `TextDecoder`."""

    def __init__(self, config: BioGptConfig, context_dim: int) -> None:
        super().__init__()
        depth, lower = config.num_hidden_layers, config.num_hidden_layers // 2
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, None if i < lower else context_dim) for i in range(depth))
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (B, T), positions (B or 1, T) from 0, -1 for padding -> (B, T, D)."""
        return self.embed_tokens(ids) * math.sqrt(self.embed_tokens.embedding_dim) + self.embed_positions(positions + 2)


class BioGptForCausalLM(nn.Module):
    """The published `model`: BioGPT and the head, whose weight is that of the token embeddings."""

    def __init__(self, config: BioGptConfig, context_dim: int) -> None:
        super().__init__()
        self.biogpt = BioGptModel(config, context_dim)
        self.output_projection = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.output_projection.weight = self.biogpt.embed_tokens.weight


class TextDecoder(nn.Module):
    """The published `text_decoder`: token ids and image latents -> next-token logits and a text embedding.

    A text's numbers do not depend on how far it is padded.
    """

    def __init__(self, config: BioGptConfig, context_dim: int) -> None:
        super().__init__()
        self.config, self.context_dim, self.text_dim = config, context_dim, config.hidden_size
        self.model = BioGptForCausalLM(config, context_dim)

    @property
    def lower(self) -> nn.ModuleList:
        """The layers that do not see the slide."""
        return self.model.biogpt.layers[: len(self.model.biogpt.layers) // 2]

    @property
    def upper(self) -> nn.ModuleList:
        """The layers with cross-attention."""
        return self.model.biogpt.layers[len(self.model.biogpt.layers) // 2:]

    def forward(self, input_ids: Tensor, key_value_states: Tensor,
                attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            input_ids: (B, T)
            key_value_states: Image latents (B, n, C)
            attention_mask: (B, T), 1 or true = a token; None = all but the padding token.

        Returns:
            {"logits": (B, T, vocabulary), "text_embedding": (B, D)}

        Raises:
            ValueError: Texts longer than the model has positions.
        """
        text_embedding, hidden, bias = self.unimodal(input_ids, attention_mask)
        hidden = self.multimodal(hidden, key_value_states, bias)
        return {"logits": self.model.output_projection(hidden), "text_embedding": text_embedding}

    def unimodal(self, input_ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """ids (B, T), mask (B, T) -> text embeddings (B, D), tokens (B, T, D), the attention bias of the tokens.

        Raises ValueError as `forward`.
        """
        mask = input_ids != self.config.pad_token_id if mask is None else mask.bool()
        mask = F.pad(mask, (0, 1), value=True)  # the CLS
        self._check_length(mask.shape[1])
        ids = F.pad(input_ids, (0, 1), value=self.config.cls_id)
        x = self.model.biogpt.embed(ids, (mask.cumsum(1) * mask) - 1)
        bias = _bias(mask[:, None, None] & _causal(mask.shape[1], mask.shape[1], mask.device))
        for layer in self.lower:
            x = layer(x, bias)
        return x[:, -1], x[:, :-1], bias[..., :-1, :-1]

    def multimodal(self, x: Tensor, key_value_states: Tensor, bias: Tensor) -> Tensor:
        """Tokens (B, T, D) and their bias from `unimodal`, image latents (B, n, C) -> (B, T, D) for the head."""
        for layer in self.upper:
            x = layer(x, bias, layer.x_attn.keys_values(key_value_states))
        return self.model.biogpt.layer_norm(x)

    @torch.no_grad()
    def start_decoding(self, key_value_states: Tensor) -> DecoderCache:
        """Image latents (S, n, C) -> the cache for `decode_step`."""
        pairs = (layer.x_attn.keys_values(key_value_states) for layer in self.upper)
        cross = [(key.contiguous(), value.contiguous()) for key, value in pairs]  # else copied for every token
        return DecoderCache(cross, len(key_value_states), len(self.model.biogpt.layers))

    @torch.no_grad()
    def decode_step(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """token_ids (B, T), the tokens after those in the cache -> next-token logits (B, vocabulary).

        First the whole prompt, then token by token; all rows have the same length. Adds the tokens to the cache.
        Raises ValueError for another number of texts than the cache has, and for texts that grow too long.
        """
        with cache.packed:
            return self.model.output_projection(self._decode(token_ids, cache)[:, -1])

    @torch.no_grad()
    def decode_text(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """As `decode_step`, with the logits after each token, (B, T, vocabulary)."""
        with cache.packed:
            return self.model.output_projection(self._decode(token_ids, cache))

    def _decode(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """token_ids (B, T) -> their hidden states (B, T, D) for the head; adds them to the cache."""
        if len(token_ids) != cache.batch:
            raise ValueError(f"{len(token_ids)} sequences of tokens for a cache of {cache.batch}")
        self._check_length(cache.length + token_ids.shape[1])
        new, total = token_ids.shape[1], cache.length + token_ids.shape[1]
        positions = torch.arange(cache.length, total, device=token_ids.device).unsqueeze(0)
        x = self.model.biogpt.embed(token_ids, positions)
        bias = None if new == 1 else _bias(_causal(new, total, token_ids.device)[None, None])
        for index, layer in enumerate(self.lower):
            x = layer(x, bias, None, cache, index)
        for index, (layer, cross) in enumerate(zip(self.upper, cache.cross, strict=True), start=len(self.lower)):
            x = layer(x, bias, cross, cache, index)
        cache.length = total
        return self.model.biogpt.layer_norm(x)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise ValueError(f"a text of {length} tokens; this decoder has {self.config.max_position_embeddings} "
                             "positions")


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) true = may attend, for the last `queries` of `keys` tokens."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _bias(allowed: Tensor) -> Tensor:
    """True = may attend -> what is added to scores. Finite, so that a padded row before its text stays finite."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, torch.finfo(torch.float32).min)
