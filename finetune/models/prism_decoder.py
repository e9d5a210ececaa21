"""The decoder `model.decoder: prism`: Prism's own text side, also of `inference.py --prism_only`.

Prism is a CoCa by construction (https://arxiv.org/abs/2405.10254): `PrismDecoder` gives its BioGPT and contrastive
heads the interface of `CaptionDecoder`. Letters as in `coca_pytorch`: b batch, t text tokens, n image latents.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from coca_pytorch import CoCaOutputs, ContrastiveCaptioner, PackedLinears, caption_loss, equal_text_groups
from prism import Prism, fingerprint
from prism.biogpt import DecoderCache

from ..common.errors import UserError
from ..config.schema import Config
from ..data.tokenizer import Tokenizer
from .adapters import inject_adapters

_ADAPTED = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class PrismDecoder(ContrastiveCaptioner):
    """BioGPT, the contrastive heads and the temperature of a Prism, frozen; `train_upper_half` chooses what trains.

    Image tokens (b, 1 + n, D): the slide embedding, then the image latents.

    Attributes:
        weights_sha256: Fingerprint of the weights as loaded, token embeddings included, since a checkpoint holds only
            what trains; None on the meta device.
    """

    supports = frozenset({"template"})

    def __init__(self, prism: Prism, caption_loss_weight: float = 1.0, contrastive_loss_weight: float = 1.0,
                 contrastive: str = "clip", label_smoothing: float = 0.0) -> None:
        super().__init__(caption_loss_weight, contrastive_loss_weight, label_smoothing)
        self.text_decoder, self.temperature = prism.text_decoder, prism.temperature
        self.img_to_latents, self.text_to_latents = prism.img_to_latents, prism.text_to_latents
        self.weights_sha256 = None if self.temperature.is_meta else fingerprint(self)
        self.max_positions = self.text_decoder.config.max_position_embeddings
        self.requires_grad_(False)
        self.init_temperature(contrastive, prism.temperature)

    def describe(self) -> dict[str, Any]:
        """Architecture and fingerprint of the text side."""
        architecture = asdict(self.text_decoder.config) | {"dim_latents": self.dim_latents}
        return {"text_architecture": architecture, "text_sha256": self.weights_sha256}

    def train_upper_half(self, lora_rank: int = 0, captions: bool = True, pairs: bool = True) -> None:
        """Make trainable: the heads, the temperature, and of the layers that see the slide either all or low-rank
        adapters of their matrices (https://arxiv.org/abs/2106.09685). The lower half and the token embeddings stay
        frozen, and with them most of BioGPT's language knowledge.

        Args:
            lora_rank: Of the adapters; 0 = the layers themselves train.
            captions: Whether a loss reaches the layers. Layers without a gradient stay frozen: a checkpoint must not
                contain Prism's own weights.
            pairs: Whether a loss reaches the heads and the temperature.

        Raises:
            UserError: Adapters are wanted and `peft` is not installed.
        """
        trained = [self.img_to_latents, self.text_to_latents, self.temperature] if pairs else []
        if captions and lora_rank:
            inject_adapters(self.text_decoder.upper, lora_rank, _ADAPTED)
        elif captions:
            trained += [self.text_decoder.upper, self.text_decoder.model.biogpt.layer_norm]
        for part in trained:
            part.requires_grad_(True)

    def embed_text(self, text: Tensor, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """text (b, t) ids -> text embeddings (b, dim) and text tokens (b, t, dim)."""
        embeds, tokens, _ = self.text_decoder.unimodal(text, text_mask)
        return embeds, tokens

    def embed_image(self, *, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image tokens (b, 1 + n, D) -> image embeddings (b, D) and what the text attends to, (b, n, D)."""
        return image_tokens[:, 0], image_tokens[:, 1:]

    def outputs(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor,
                caption: bool = True, logits: bool = False) -> CoCaOutputs:
        """The parts of the losses of a batch, as `CoCa.outputs`. text, labels, text_mask: (b, t)."""
        captions = caption and (self.caption_loss_weight or logits)
        # first of all: here the host waits for the device, which then has nothing else to do
        real = text_mask.flatten().nonzero().squeeze(1) if captions else None  # (real positions,)
        text_embeds, tokens, bias = self.text_decoder.unimodal(text, text_mask)
        image_embeds, latents = self.embed_image(image_tokens=image_tokens)
        text_latents = image_latents = None
        if self.contrastive_loss_weight or logits:
            text_latents, image_latents = self.text_to_latents(text_embeds), self.img_to_latents(image_embeds)
        loss, all_logits = torch.zeros((), device=text.device), None
        num_tokens = 0
        if captions:
            hidden = self.text_decoder.multimodal(tokens, latents, bias)
            head = self.text_decoder.model.output_projection
            hidden_of_labels, num_tokens = hidden.flatten(0, 1).index_select(0, real), len(real)
            loss = caption_loss(hidden_of_labels, head.weight, labels.flatten()[real], self.smoothing)
            if logits:
                all_logits = head(hidden)
        groups = equal_text_groups(text, text_mask)
        return CoCaOutputs(text_latents, image_latents, groups, loss, num_tokens, all_logits)

    def forward(self, text: Tensor, *, image_tokens: Tensor, text_mask: Tensor) -> Tensor:
        """Next-token logits (b, t, vocabulary) after each token of text (b, t), as `CoCa.forward`."""
        _, tokens, bias = self.text_decoder.unimodal(text, text_mask)
        hidden = self.text_decoder.multimodal(tokens, self.embed_image(image_tokens=image_tokens)[1], bias)
        return self.text_decoder.model.output_projection(hidden)

    def start_decoding(self, image_tokens: Tensor) -> DecoderCache:
        """image_tokens: (b, n, D), the second result of `embed_image`. Returns the cache for `decode_step`."""
        cache = self.text_decoder.start_decoding(image_tokens)
        if PackedLinears.suit(image_tokens.device):
            cache.packed = PackedLinears([self.text_decoder], len(image_tokens))
        return cache

    def decode_step(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """token_ids (b, t), the tokens after those in the cache -> next-token logits (b, vocabulary)."""
        return self.text_decoder.decode_step(token_ids, cache)

    def decode_text(self, token_ids: Tensor, cache: DecoderCache) -> Tensor:
        """As `decode_step`, with the logits after each token, (b, t, vocabulary)."""
        return self.text_decoder.decode_text(token_ids, cache)


def build_prism_decoder(config: Config, tokenizer: Tokenizer, prism: Prism) -> PrismDecoder:
    """Prism's text side with what trains of it, as `model` says. Raises UserError."""
    vocabulary = prism.prism_config.biogpt_config.vocab_size
    if len(tokenizer) > vocabulary:  # a checkpoint may hold any tokenizer
        raise UserError("tokenizer", f"has {len(tokenizer)} tokens, Prism's decoder {vocabulary}",
                        "use another checkpoint")
    model = config.model
    decoder = PrismDecoder(prism, model.caption_loss_weight, model.contrastive_loss_weight, model.contrastive,
                           config.training.label_smoothing)
    custom_loss = config.training.loss is not None  # it may use all outputs
    decoder.train_upper_half(model.lora_rank, captions=custom_loss or model.caption_loss_weight > 0,
                             pairs=custom_loss or model.contrastive_loss_weight > 0)
    return decoder
