"""The captioner: a frozen Prism slide encoder in front of a text decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from coca_pytorch import CoCa, CoCaOutputs
from prism import PrismSlideEncoder

from ..common.errors import UserError
from ..common.log import logger
from ..data.batch import Batch
from .prism_decoder import PrismCoCa


class SlideCaptioner(nn.Module):
    """Tile embeddings and text -> caption and contrastive loss.

    CoCa reads Prism's output as image tokens: the slide embedding, then (`image_tokens="latents"`) all image latents.
    """

    def __init__(self, prism: PrismSlideEncoder, coca: CoCa | PrismCoCa, image_tokens: str) -> None:
        super().__init__()
        self.prism, self.decoder, self._image_tokens = prism, coca, image_tokens

    def image_tokens(self, tile_embeddings: torch.Tensor, tile_mask: torch.Tensor) -> torch.Tensor:
        """(B, N, tile width) tiles and their mask (B, N) -> image tokens (B, 1 + latents or 1, Prism width)."""
        slide = self.prism.slide_representations(tile_embeddings, tile_mask)
        embedding = slide["image_embedding"].unsqueeze(1)
        return embedding if self._image_tokens == "embedding" else torch.cat([embedding, slide["image_latents"]], dim=1)

    def forward(self, batch: Batch, caption: bool = True, logits: bool = False) -> CoCaOutputs:
        """What the losses of a batch are made of; a sample's part does not depend on the padding of its batch.

        caption: False leaves out the caption loss and what only it needs. logits: give them, too.
        """
        image_tokens = batch.image_tokens
        if image_tokens is None:
            image_tokens = self.image_tokens(batch.tile_embeddings, batch.tile_mask)
        return self.decoder.outputs(batch.text, batch.labels, text_mask=batch.text_mask, caption=caption, logits=logits,
                                 image_tokens=image_tokens.to(self.decoder.temperature.dtype))

    @property
    def image_tokens_shape(self) -> tuple[int, int]:
        """(n, D) of one slide's image tokens."""
        latents = 0 if self._image_tokens == "embedding" else self.prism.config.latent_seq
        return 1 + latents, self.prism.image_dim

    def weighted(self, caption_loss, contrastive_loss):
        """The training loss: floats in, a float out; tensors in, a tensor out."""
        return caption_loss * self.decoder.caption_loss_weight + contrastive_loss * self.decoder.contrastive_loss_weight

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        return (p for p in self.parameters() if p.requires_grad)

    def named_trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(its name in a checkpoint, parameter) of all that trains, in the order of `parameters`."""
        saved_as = {id(part): name for name, part in self._parts().items()}
        for child in self.children():
            for name, parameter in child.named_parameters():
                if parameter.requires_grad:
                    yield f"{saved_as[id(child)]}.{name}", parameter

    def saved_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds: all but what is frozen, which is Prism's (its licence forbids copies)."""
        return {f"{name}.{key}": value for name, part in self._parts().items() for key, value in _trained(part).items()}

    def _parts(self) -> dict[str, nn.Module]:
        return {"coca": self.decoder, "prism": self.prism}

    def load_saved_state(self, state: dict[str, torch.Tensor], where: str) -> None:
        """Load what `saved_state` gave; what is frozen stays as it is.

        Raises:
            UserError: Other keys, shapes or types than this model's, or weights that are not finite.
        """
        expected = self.saved_state()
        state = _unwrapped(state, expected, where)
        _check_weights(state, expected, where)
        for name, part in self._parts().items():
            prefix = f"{name}."
            of_part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if of_part:
                part.load_state_dict(part.state_dict() | of_part)


def _trained(part: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a part without its frozen parameters."""
    frozen = {name for name, p in part.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {key: value for key, value in part.state_dict().items() if key not in frozen}


def _unwrapped(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor],
               where: str) -> dict[str, torch.Tensor]:
    """The state without what DistributedDataParallel and torch.compile put into its keys, if that makes them known."""
    renamed = {}
    for key in state:
        plain = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
        if key not in expected and plain in expected:
            renamed[key] = plain
    if not renamed:
        return state
    logger.warning("%s: %d weights are of a wrapped model, as %s", where, len(renamed), next(iter(renamed)))
    return {renamed.get(key, key): value for key, value in state.items()}


def _check_weights(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str) -> None:
    """Raises UserError with the first three weights of each kind that are missing, unknown or do not fit."""
    missing, unfit = [], []
    for key, own in expected.items():
        if key not in state:
            missing.append(f"missing {key}")
        elif fault := _fault(state[key], own):
            unfit.append(f"{key} is {fault}")
    unexpected = [f"unexpected {key}" for key in state if key not in expected]
    problems = [*unfit[:3], *missing[:3], *unexpected[:3]]
    if problems:
        raise UserError(where, f"{len(missing + unexpected + unfit)} weights do not fit this model: "
                        f"{'; '.join(problems)}", "use the config the checkpoint was trained with")


def _fault(saved: torch.Tensor, own: torch.Tensor) -> str | None:
    """Why a saved weight cannot take the place of a model's own, or None."""
    if saved.shape != own.shape or saved.dtype != own.dtype:
        return f"{tuple(saved.shape)} {saved.dtype}, here {tuple(own.shape)} {own.dtype}"
    if saved.is_floating_point() and not torch.isfinite(saved).all():
        return "not finite"
    return None


@torch.no_grad()
def encoded(model: SlideCaptioner, batch: Batch) -> Batch:
    """The batch with its slides encoded, so that more than one look at them costs one encoding."""
    if batch.image_tokens is not None:
        return batch
    return replace(batch, image_tokens=model.image_tokens(batch.tile_embeddings, batch.tile_mask))
