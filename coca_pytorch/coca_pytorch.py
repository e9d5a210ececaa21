"""CoCa: Contrastive Captioners (https://arxiv.org/abs/2205.01917), a drop-in for CoCa-pytorch 0.1.0.

Constructor, `forward` and state-dict keys are those of https://github.com/lucidrains/CoCa-pytorch. The differences,
all covered by tests: image tokens can be masked; a sample's text embedding does not depend on the padding of its batch;
the contrastive temperature follows CLIP; equal texts are not negatives of each other; nothing is gathered across
processes; decoding uses a key/value cache.

Shapes: b batch, t text tokens, n image tokens, q image queries, h heads, d dimension of a head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .contrastive import ContrastiveCaptioner
from .decoding import DecoderCache, PackedLinears
from .layers import (
    CrossAttention,
    EmbedToLatents,
    LayerNorm,
    ParallelTransformerBlock,
    Residual,
    Rotary,
    attention_bias,
    rotary_table,
)
from .losses import CoCaLosses, CoCaOutputs, caption_loss, equal_text_groups


class CoCa(ContrastiveCaptioner):
    """Image tokens and text -> next-token logits, embeddings of both, and their losses.

    Texts are padded on the right. In every `text_mask` (b, t), true marks a real token; the default is
    `text != pad_id`, so pass a mask if the end token equals `pad_id`. In every `image_mask` (b, n), true marks a token;
    masked values, even NaN, have no effect. Token ids are not validated: that would synchronize with the device at each
    step.

    Args:
        dim: Dimension of the text tokens and of the pooled image tokens.
        num_tokens: Size of the vocabulary.
        unimodal_depth: Number of text-only layers.
        multimodal_depth: Number of layers with cross-attention to the image.
        dim_latents: Dimension of the contrastive space (default `dim`).
        image_dim: Dimension of the image tokens (default `dim`).
        num_img_queries: Number of pooled image tokens, q.
        dim_head: Dimension of an attention head.
        heads: Number of attention heads.
        ff_mult: Feed-forward dimension as a multiple of `dim`.
        img_encoder: Images -> image tokens; only needed to pass `images`.
        caption_loss_weight: Weight of the caption loss; 0 = not computed.
        contrastive_loss_weight: Weight of the contrastive loss; 0 = not computed.
        pad_id: Id of the padding token.
        contrastive: clip or siglip.
        label_smoothing: Epsilon of the caption loss in training mode.

    Attributes:
        img_context: None, or a module that turns image tokens (b, n, image_dim) and pooled ones (b, q, dim) into what
            the text attends to, (b, q', dim).
    """

    supports = frozenset({"compile", "grad_checkpointing", "probe_tokens", "template"})

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        unimodal_depth: int,
        multimodal_depth: int,
        dim_latents: int | None = None,
        image_dim: int | None = None,
        num_img_queries: int = 256,
        dim_head: int = 64,
        heads: int = 8,
        ff_mult: int = 4,
        img_encoder: nn.Module | None = None,
        caption_loss_weight: float = 1.0,
        contrastive_loss_weight: float = 1.0,
        pad_id: int = 0,
        contrastive: str = "clip",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(caption_loss_weight, contrastive_loss_weight, label_smoothing)
        self.dim, self.image_dim, self.dim_head, self.pad_id = dim, image_dim or dim, dim_head, pad_id
        self.grad_checkpointing = False  # True: layers are computed again in the backward pass instead of kept
        head = {"dim_head": dim_head, "heads": heads}

        self.token_emb = nn.Embedding(num_tokens, dim)
        self.text_cls_token = nn.Parameter(torch.randn(dim))

        self.img_encoder = img_encoder
        self.img_queries = nn.Parameter(torch.randn(num_img_queries + 1, dim))  # the first one is for the embedding
        self.img_attn_pool = CrossAttention(dim, context_dim=self.image_dim, norm_context=True, **head)

        self.img_attn_pool_norm = LayerNorm(dim)
        self.img_context: nn.Module | None = None
        self.text_cls_norm = LayerNorm(dim)

        self.img_to_latents = EmbedToLatents(dim, dim_latents or dim)
        self.text_to_latents = EmbedToLatents(dim, dim_latents or dim)
        self.init_temperature(contrastive)

        def self_attention() -> Residual:
            return Residual(ParallelTransformerBlock(dim, ff_mult=ff_mult, **head))

        self.unimodal_layers = nn.ModuleList([self_attention() for _ in range(unimodal_depth)])
        self.multimodal_layers = nn.ModuleList([
            nn.ModuleList([self_attention(),
                           Residual(CrossAttention(dim, parallel_ff=True, ff_mult=ff_mult, **head))])
            for _ in range(multimodal_depth)
        ])

        self.to_logits = nn.Sequential(LayerNorm(dim), nn.Linear(dim, num_tokens, bias=False))
        self.to_logits[1].weight = self.token_emb.weight
        nn.init.normal_(self.token_emb.weight, std=0.02)

    # --- public interface, in the order of a forward pass

    def embed_text(self, text: Tensor, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """text (b, t) ids -> text embeddings (b, dim) and text tokens (b, t, dim).

        Raises ValueError if text_mask has another shape than text.
        """
        return self._unimodal(text, *self._positions(self._mask(text, text_mask)))

    def embed_image(self, images: Tensor | None = None, image_tokens: Tensor | None = None,
                    image_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """images for `img_encoder`, or image tokens (b, n, image_dim) -> image embeddings (b, dim) and pooled image
        tokens (b, q, dim), or what `img_context` makes of them, which is what the text attends to.

        Raises ValueError unless exactly one of both is given, for images without an encoder, and for wrong shapes.
        """
        image_tokens = self._image_tokens(images, image_tokens)
        bias = None
        if image_mask is not None:
            if image_mask.shape != image_tokens.shape[:2]:
                raise ValueError(f"image_mask is {tuple(image_mask.shape)}, tokens are {tuple(image_tokens.shape)}")
            image_tokens = image_tokens.masked_fill(~image_mask.unsqueeze(-1), 0.0)  # 0 * NaN would be NaN
            bias = attention_bias(image_mask).unsqueeze(1)
        # the queries are the same for each sample: kept as a batch of one up to the scores
        pooled = self.img_attn_pool(self.img_queries.unsqueeze(0), *self.img_attn_pool.keys_values(image_tokens), bias)
        pooled = self.img_attn_pool_norm(pooled)
        context = pooled[:, 1:]
        if self.img_context is not None:
            context = self.img_context(image_tokens, context)
        return pooled[:, 0], context

    def compute_losses(self, text: Tensor, labels: Tensor | None = None, *, images: Tensor | None = None,
                       image_tokens: Tensor | None = None, text_mask: Tensor | None = None,
                       image_mask: Tensor | None = None) -> CoCaLosses:
        """Losses of a batch; neither depends on how far its texts are padded.

        Args:
            text: (b, t) ids.
            labels: (b, t), the next token of each; by default `text` is split into inputs and labels, the last real
                token of *each* row being a label only.
            text_mask: (b, t), of `text` and of `labels`, of which it alone then selects those in the loss; without it
                these are all labels other than `pad_id`.

        Raises:
            ValueError: Shapes do not match; or as `embed_image`.
        """
        outputs = self.outputs(text, labels, images=images, image_tokens=image_tokens, text_mask=text_mask,
                               image_mask=image_mask)
        caption = outputs.caption_loss / max(outputs.num_tokens, 1)
        contrastive = torch.zeros((), device=text.device)
        if self.contrastive_loss_weight:
            contrastive = self.pair_loss(outputs.text_latents, outputs.image_latents, *self.logit_parameters,
                                         outputs.text_groups)
        loss = self.caption_loss_weight * caption + self.contrastive_loss_weight * contrastive
        return CoCaLosses(loss, caption, contrastive)

    def outputs(self, text: Tensor, labels: Tensor | None = None, *, images: Tensor | None = None,
                image_tokens: Tensor | None = None, text_mask: Tensor | None = None,
                image_mask: Tensor | None = None, caption: bool = True, logits: bool = False) -> CoCaOutputs:
        """The parts of the losses of a batch, so that batches can be joined before the losses are computed.

        Args:
            caption: False skips the upper half and with it the caption loss.
            logits: Return logits and latents even for losses of weight 0.
            others: As in `compute_losses`, as are the errors.
        """
        text, labels, text_mask, label_mask = self._inputs_and_labels(text, labels, text_mask)
        captions = caption and (self.caption_loss_weight or logits)
        # first of all: here the host waits for the device, which then has nothing else to do
        real = label_mask.flatten().nonzero().squeeze(1) if captions else None  # (real positions,)
        rotary, bias = self._positions(text_mask)
        text_embeds, text_tokens = self._unimodal(text, rotary, bias)
        image_embeds, pooled = self.embed_image(images, image_tokens, image_mask)
        text_latents = image_latents = None
        if self.contrastive_loss_weight or logits:
            if self.training:
                self.limit_temperature()
            text_latents, image_latents = self.text_to_latents(text_embeds), self.img_to_latents(image_embeds)
        loss, all_logits = torch.zeros((), device=text.device), None
        num_tokens = 0
        if captions:
            norm, project = self.to_logits
            hidden = self._multimodal(text_tokens, pooled, rotary, bias)
            hidden_of_labels, num_tokens = hidden.flatten(0, 1).index_select(0, real), len(real)
            loss = caption_loss(norm(hidden_of_labels), project.weight, labels.flatten()[real], self.smoothing)
            if logits:
                all_logits = project(norm(hidden))
        groups = equal_text_groups(text, text_mask)
        return CoCaOutputs(text_latents, image_latents, groups, loss, num_tokens, all_logits)

    def forward(
        self,
        text: Tensor,
        images: Tensor | None = None,
        image_tokens: Tensor | None = None,
        labels: Tensor | None = None,
        return_loss: bool = False,
        return_embeddings: bool = False,
        *,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (b, t, num_tokens); or the loss, a scalar (`compute_losses`); or the embeddings of text and image,
        each (b, dim), as in the original before `return_loss`. Raises ValueError as `compute_losses`."""
        if return_loss and not return_embeddings:
            return self.compute_losses(text, labels, images=images, image_tokens=image_tokens, text_mask=text_mask,
                                       image_mask=image_mask).loss
        if return_loss:
            text, _, text_mask, _ = self._inputs_and_labels(text, labels, text_mask)
        rotary, bias = self._positions(self._mask(text, text_mask))
        text_embeds, text_tokens = self._unimodal(text, rotary, bias)
        image_embeds, pooled = self.embed_image(images, image_tokens, image_mask)
        if return_embeddings:
            return text_embeds, image_embeds
        return self.to_logits(self._multimodal(text_tokens, pooled, rotary, bias))

    def compile(self, **options: object) -> None:
        """Compile the three expensive parts of a training step, each into one graph.

        The selection of real positions and the losses are not compiled, as their shapes depend on the data. Parameters
        keep their names, and decoding is not compiled.

        Args:
            options: Of `torch.compile`.
        """
        for name in ("_unimodal", "_multimodal", "embed_image"):
            setattr(self, name, torch.compile(getattr(self, name), **{"fullgraph": True, "dynamic": True, **options}))

    # --- decoding; text tokens never attend to the text CLS, so it is left out

    @torch.no_grad()
    def start_decoding(self, image_tokens: Tensor) -> DecoderCache:
        """image_tokens: (b, q, dim), the second result of `embed_image`. Returns the cache for `decode_step`."""
        cross = [cross_attention.fn.keys_values(image_tokens) for _, cross_attention in self.multimodal_layers]
        cache = DecoderCache(cross, len(image_tokens), len(self.unimodal_layers) + len(self.multimodal_layers))
        if PackedLinears.suit(image_tokens.device):
            layers = [self.unimodal_layers, self.multimodal_layers, self.to_logits]
            cache.packed = PackedLinears(layers, len(image_tokens))
        return cache

    @torch.no_grad()
    def decode_step(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """token_ids (b, t), the tokens after those in the cache -> next-token logits (b, num_tokens).

        First the whole prompt, then token by token; all rows have the same length. Adds the tokens to the cache.
        Raises ValueError if the cache is for another number of sequences.
        """
        with cache.packed:
            return self.to_logits(self._decode(token_ids, cache)[:, -1])

    @torch.no_grad()
    def decode_text(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """As `decode_step`, with the logits after each token, (b, t, num_tokens)."""
        with cache.packed:
            return self.to_logits(self._decode(token_ids, cache))

    # --- parts of a forward pass

    def _image_tokens(self, images: Tensor | None, image_tokens: Tensor | None) -> Tensor:
        """The given image tokens, or those of the images (b, n, image_dim). Raises ValueError as `embed_image`."""
        if (images is None) == (image_tokens is None):
            raise ValueError("give either images or image_tokens")
        if images is not None:
            if self.img_encoder is None:
                raise ValueError("images need an encoder: pass img_encoder= to CoCa, or give image_tokens")
            image_tokens = self.img_encoder(images)
        if image_tokens.ndim != 3 or image_tokens.shape[-1] != self.image_dim:
            raise ValueError(f"image tokens are {tuple(image_tokens.shape)}, need (batch, tokens, {self.image_dim})")
        return image_tokens

    def _mask(self, text: Tensor, text_mask: Tensor | None) -> Tensor:
        """The given mask, or the default one (b, t)."""
        if text_mask is None:
            return text != self.pad_id
        if text_mask.shape != text.shape:
            raise ValueError(f"text_mask is {tuple(text_mask.shape)}, text is {tuple(text.shape)}")
        return text_mask

    def _inputs_and_labels(self, text: Tensor, labels: Tensor | None,
                           text_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input ids, labels, mask of the real inputs, mask of the labels in the loss; each (b, t)."""
        mask = self._mask(text, text_mask)
        if labels is None:  # the shifted mask serves both: a token is an input if another one follows
            return text[:, :-1], text[:, 1:], mask[:, 1:], mask[:, 1:]
        if labels.shape != text.shape:
            raise ValueError(f"labels are {tuple(labels.shape)}, text is {tuple(text.shape)}")
        return text, labels, mask, labels != self.pad_id if text_mask is None else mask

    def _positions(self, mask: Tensor) -> tuple[Rotary, Tensor]:
        """mask (b, t) -> rotations and attention bias (b, t + 1, t + 1) of the text with its CLS behind it, for all
        layers. The CLS is positioned right after the last real token of its text and attends to real tokens only."""
        batch, length = mask.shape
        positions = torch.arange(length, device=mask.device).expand(batch, -1)
        positions = torch.cat([positions, mask.sum(1, keepdim=True)], dim=1)
        causal = torch.ones(length + 1, length + 1, dtype=torch.bool, device=mask.device).tril()
        allowed = causal.repeat(batch, 1, 1)
        allowed[:, -1, :-1] = mask
        return rotary_table(positions, self.dim_head), attention_bias(allowed)

    def _unimodal(self, text: Tensor, rotary: Rotary, bias: Tensor) -> tuple[Tensor, Tensor]:
        """text (b, t) -> embeddings (b, dim), tokens (b, t, dim): the decoder's text-only lower half."""
        cls_tokens = self.text_cls_token.expand(len(text), 1, -1)
        x = torch.cat([self.token_emb(text), cls_tokens], dim=1)
        for block in self.unimodal_layers:
            x = self._layer(block, x, rotary, bias)
        return self.text_cls_norm(x[:, -1]), x[:, :-1]

    def _multimodal(self, x: Tensor, image_tokens: Tensor, rotary: Rotary, bias: Tensor) -> Tensor:
        """Text tokens (b, t, dim), image tokens (b, q, dim) -> (b, t, dim): the upper half. The CLS is dropped; without
        it all rows share the same positions and the same attention bias."""
        cos, sin = rotary
        rotary, bias = (cos[:1, :-1], sin[:1, :-1]), bias[:1, :-1, :-1]
        for block, cross_attention in self.multimodal_layers:
            x = self._layer(block, x, rotary, bias)
            x = self._layer(cross_attention, x, *cross_attention.fn.keys_values(image_tokens))
        return x

    def _layer(self, layer: nn.Module, *args: object) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def _decode(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """token_ids (b, t) -> their hidden states (b, t, dim); adds them to the cache."""
        if len(token_ids) != cache.batch:
            raise ValueError(f"{len(token_ids)} sequences of tokens for a cache of {cache.batch}")
        total = cache.length + token_ids.shape[1]
        positions = torch.arange(cache.length, total, device=token_ids.device).unsqueeze(0)
        rotary, bias = rotary_table(positions, self.dim_head), None
        if token_ids.shape[1] > 1:  # a single token attends to everything before it
            bias = attention_bias(positions.unsqueeze(-1) >= torch.arange(total, device=token_ids.device))
        x = self.token_emb(token_ids)
        for layer, block in enumerate(self.unimodal_layers):
            x = block(x, rotary, bias, partial(cache.append, layer))
        blocks = enumerate(zip(self.multimodal_layers, cache.cross, strict=True), start=len(self.unimodal_layers))
        for layer, ((block, cross_attention), keys_values) in blocks:
            x = block(x, rotary, bias, partial(cache.append, layer))
            x = cross_attention(x, *keys_values)
        cache.advance(token_ids.shape[1])
        return x
