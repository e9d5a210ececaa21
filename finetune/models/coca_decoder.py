"""The decoder `model.decoder: coca`: a new CoCa, initialized at random or from parts of Prism."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coca_pytorch import CoCa, contrastive_loss
from prism import BioGptTokenizer, Prism

from ..common.log import logger
from ..config.schema import Config
from ..data.tokenizer import Tokenizer


def build_coca(config: Config, tokenizer: Tokenizer, _prism: Prism | None) -> CoCa:
    """A CoCa of the sizes in `model`, with random weights."""
    model = config.model
    return CoCa(dim=model.dim, num_tokens=len(tokenizer), unimodal_depth=model.unimodal_depth,
                multimodal_depth=model.multimodal_depth, dim_latents=model.dim_latents, image_dim=model.image_dim,
                num_img_queries=model.num_img_queries, dim_head=model.dim_head, heads=model.heads,
                ff_mult=model.ff_mult, caption_loss_weight=model.caption_loss_weight,
                contrastive_loss_weight=model.contrastive_loss_weight, pad_id=tokenizer.pad_id,
                contrastive=model.contrastive, label_smoothing=config.training.label_smoothing)


@torch.no_grad()
def start_from_prism(coca: CoCa, tokenizer: Tokenizer, prism: Prism) -> None:
    """Initialize a new CoCa from Prism where shapes match (`model.init: prism`), and log what was taken.

    These are the embeddings of the tokens that both tokenizers have, the projection of the slide, and the temperature.
    """
    taken = []
    shared = _shared_tokens(tokenizer, prism.tokenizer)
    embeddings = prism.text_decoder.model.biogpt.embed_tokens.weight[list(shared.values())]  # (shared, D)
    if shared and coca.dim <= embeddings.shape[1]:
        table = coca.token_emb.weight
        embeddings = _principal_components(embeddings, coca.dim)
        # scaled to the standard deviation of CoCa's own initialization
        table[list(shared)] = embeddings * (table.std() / embeddings.std())
        taken.append(f"the embeddings of {len(shared)} of {len(tokenizer)} tokens")
    if coca.img_to_latents.to_latents.weight.shape == prism.img_to_latents.to_latents.weight.shape:
        coca.img_to_latents.load_state_dict(prism.img_to_latents.state_dict())
        taken.append("the projection of the slide")
    if coca.pair_loss is contrastive_loss:  # the temperature of SigLIP has another scale
        coca.temperature.fill_(prism.temperature)
        coca.limit_temperature()
        taken.append("the temperature")
    logger.info("taken from Prism: %s", ", ".join(taken) or "nothing, as no width fits")


def _shared_tokens(tokenizer: Tokenizer, prism_tokenizer: BioGptTokenizer) -> dict[int, int]:
    """Id in a tokenizer -> id in Prism's, for texts that are one known token in both."""
    shared = {}
    for token_id in range(len(tokenizer)):
        text = tokenizer.decode([token_id]).strip()
        prism_ids = prism_tokenizer.encode(text) if text else []
        if len(prism_ids) == 1 and prism_ids != [prism_tokenizer.unk_id]:
            shared[token_id] = prism_ids[0]
    return shared


def _principal_components(embeddings: Tensor, dim: int) -> Tensor:
    """(tokens, D) -> (tokens, dim), projected onto the principal components; unchanged for dim = D."""
    if dim == embeddings.shape[1]:
        return embeddings
    components = torch.linalg.svd(embeddings, full_matrices=False)[2][:dim]
    projected = embeddings @ components.T
    return F.pad(projected, (0, dim - projected.shape[1]))  # fewer tokens than dimensions
