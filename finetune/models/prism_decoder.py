"""Prism's own text side as the captioner of a run (`model.decoder: prism`, `inference.py --prism_only`).

Prism is a CoCa by construction (https://arxiv.org/abs/2405.10254): `PrismCoCa` gives its BioGPT and contrastive heads
the interface of `coca_pytorch.CoCa`, so that the loop, the losses, decoding and scoring know one captioner.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coca_pytorch import CoCa, CoCaOutputs, PackedLinears, add_logit_bias
from coca_pytorch.losses import caption_loss, contrastive_loss, equal_text_groups
from prism import Prism, fingerprint
from prism.biogpt import DecoderCache

from ..common.errors import UserError
from ..common.log import logger
from ..data.tokenizer import Tokenizer

_ADAPTED = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class PrismCoCa(nn.Module):
    """BioGPT, the contrastive heads and the temperature of a Prism, frozen; `train_upper_half` says what trains.

    image tokens (b, 1 + n, D): the slide embedding, then the image latents. Letters as in `coca_pytorch`.
    sha256: fingerprint of the weights as loaded, the word embeddings among them; a checkpoint has only what trains.
    """

    def __init__(self, prism: Prism, caption_loss_weight: float = 1.0, contrastive_loss_weight: float = 1.0,
                 contrastive: str = "clip", label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.caption_loss_weight, self.contrastive_loss_weight = caption_loss_weight, contrastive_loss_weight
        self.text_decoder, self.temperature = prism.text_decoder, prism.temperature
        self.img_to_latents, self.text_to_latents = prism.img_to_latents, prism.text_to_latents
        self.sha256 = None if self.temperature.is_meta else fingerprint(self)
        self.requires_grad_(False)
        self.register_parameter("logit_bias", None)
        self.label_smoothing = label_smoothing
        if contrastive == "siglip":
            add_logit_bias(self)

    def train_upper_half(self, lora_rank: int = 0, captions: bool = True, pairs: bool = True) -> None:
        """Make trainable: the heads, the temperature, and of the layers that see the slide either all or, with a
        `lora_rank`, low-rank adapters of their matrices (https://arxiv.org/abs/2106.09685). The lower half and the word
        embeddings stay as they are, and with them most of what BioGPT knows of language.

        captions, pairs: whether a loss reaches the layers, and the heads and temperature. What none reaches stays
        frozen: it would go into checkpoints as Prism has it.

        Raises UserError if adapters are wanted and `peft` is not installed.
        """
        trained = [self.img_to_latents, self.text_to_latents, self.temperature] if pairs else []
        if captions and lora_rank:
            _add_adapters(self.text_decoder.upper, lora_rank)
        elif captions:
            trained += [self.text_decoder.upper, self.text_decoder.model.biogpt.layer_norm]
        for part in trained:
            part.requires_grad_(True)

    def embed_text(self, text: Tensor, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """text (b, t) ids -> text embeddings (b, dim) and text tokens (b, t, dim)."""
        return self.text_decoder.unimodal(text, text_mask)[:2]

    def embed_image(self, *, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image tokens (b, 1 + n, D) -> image embeddings (b, D) and what the text attends to, (b, n, D)."""
        return image_tokens[:, 0], image_tokens[:, 1:]

    logit_scale, similarity, limit_temperature = CoCa.logit_scale, CoCa.similarity, CoCa.limit_temperature
    logit_parameters, pair_loss = CoCa.logit_parameters, CoCa.pair_loss

    def outputs(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor,
                caption: bool = True, logits: bool = False) -> CoCaOutputs:
        """What the losses of a batch are made of, as `CoCa.outputs`. text, labels, text_mask: (b, t)."""
        text_embeds, tokens, bias = self.text_decoder.unimodal(text, text_mask)
        image_embeds, latents = self.embed_image(image_tokens=image_tokens)
        labels, pair = labels[text_mask], (None, None)
        if self.contrastive_loss_weight or logits:
            pair = self.text_to_latents(text_embeds), self.img_to_latents(image_embeds)
        loss, words = torch.zeros((), device=text.device), None
        if (self.caption_loss_weight or logits) and caption:
            hidden = self.text_decoder.multimodal(tokens, latents, bias)
            to_words = self.text_decoder.model.output_projection
            smoothing = self.label_smoothing if self.training else 0.0
            loss = caption_loss(hidden[text_mask], to_words.weight, labels, smoothing)
            words = to_words(hidden) if logits else None
        return CoCaOutputs(*pair, equal_text_groups(text, text_mask), loss, len(labels), words)

    def forward(self, text: Tensor, *, image_tokens: Tensor, text_mask: Tensor) -> Tensor:
        """Logits (b, t, vocabulary) of the word after each of text (b, t), as `CoCa.forward`."""
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
        """token_ids (b, t), the tokens after those in the cache -> logits (b, vocabulary) of the word that follows."""
        return self.text_decoder.decode_step(token_ids, cache)


@torch.no_grad()
def start_from_prism(coca: CoCa, tokenizer: Tokenizer, prism: Prism) -> None:
    """Give a fresh CoCa what fits of Prism (`model.init: prism`): the embeddings of the words that both tokenizers
    have, the projection of the slide where the widths agree, and the temperature. What was taken is logged.

    For a CoCa narrower than BioGPT the embeddings are projected onto their principal components, so that words keep
    their neighbours. They are scaled to the size that CoCa's own begin with.
    """
    shared = {}
    for own in range(len(tokenizer)):
        theirs = prism.tokenizer.encode(word) if (word := tokenizer.decode([own]).strip()) else []
        if len(theirs) == 1 and theirs != [prism.tokenizer.unk_id]:
            shared[own] = theirs[0]
    taken = []
    words = prism.text_decoder.model.biogpt.embed_tokens.weight[list(shared.values())]  # (shared, D)
    if shared and coca.dim <= words.shape[1]:
        if coca.dim < words.shape[1]:
            components = torch.linalg.svd(words, full_matrices=False)[2][: coca.dim]
            words = words @ components.T
            words = F.pad(words, (0, coca.dim - words.shape[1]))  # fewer words than dimensions
        table = coca.token_emb.weight
        table[list(shared)] = words * (table.std() / words.std())
        taken.append(f"the embeddings of {len(shared)} of {len(tokenizer)} words")
    if coca.img_to_latents.to_latents.weight.shape == prism.img_to_latents.to_latents.weight.shape:
        coca.img_to_latents.load_state_dict(prism.img_to_latents.state_dict())
        taken.append("the projection of the slide")
    if coca.pair_loss is contrastive_loss:  # SigLIP's temperature is another thing
        coca.temperature.fill_(prism.temperature)
        coca.limit_temperature()
        taken.append("the temperature")
    logger.info("taken from Prism: %s", ", ".join(taken) or "nothing, as no width fits")


def _add_adapters(layers: nn.ModuleList, rank: int) -> None:
    """Low-rank adapters beside all matrices of the layers, which stay frozen themselves."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora_rank", f"is {rank}, but peft is not installed", "pip install peft") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_ADAPTED), layers)
