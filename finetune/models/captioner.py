"""The captioner: a Prism slide encoder, usually frozen, in front of a text decoder; and the decoder protocol.

Shapes: B slides, N tiles, n image tokens of a slide, T text tokens, D width of the image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from coca_pytorch import CoCaOutputs
from prism import PrismSlideEncoder

from ..common.errors import UserError
from ..common.log import logger
from ..data.batch import Batch
from .probe_tokens import ProbeTokens

# Part of the model -> prefix of its weights in checkpoints. "coca" for every decoder, so that old checkpoints load.
SAVED_AS = {"decoder": "coca", "prism": "prism"}


class CaptionDecoder(Protocol):
    """A text decoder as training, decoding and scoring use it: an `nn.Module` with what is listed here.

    `coca_pytorch.ContrastiveCaptioner` offers the contrastive part. `models.build.DECODERS` lists the decoders.

    Attributes:
        caption_loss_weight, contrastive_loss_weight: Weights of the two training losses; 0 = not computed.
        max_positions: Longest text in tokens; None = any.
        supports: Which of these optional features it has: `compile` (a method of that name), `grad_checkpointing` (an
            attribute to be set), `probe_tokens` (an attribute `img_context` to be set, as `coca_pytorch.CoCa` describes
            it), `template` (a method `decode_text`: as `decode_step`, with the logits after each token, (B, T,
            vocabulary); caches have a method `select(rows)`: a new cache whose sequence i continues sequence rows[i],
            any number of each slide's, slides in their order).
        never_generated: Ids that captions must not contain, beside begin and padding.
        dtype, device: Of its weights.
        dim_latents: Dimension of the contrastive space.
        logit_scale: float32 scalar that cosines are multiplied with.
        logit_parameters: What `pair_loss` takes after text and image latents.
        pair_loss: (text latents, image latents, *logit_parameters, text groups, rows) -> scalar.
    """

    caption_loss_weight: float
    contrastive_loss_weight: float
    max_positions: int | None
    supports: frozenset[str]
    never_generated: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    dim_latents: int
    logit_scale: Tensor
    logit_parameters: tuple[Tensor, ...]
    pair_loss: Callable[..., Tensor]

    def outputs(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor, caption: bool = True,
                logits: bool = False) -> CoCaOutputs:
        """text, labels, text_mask (B, T), image tokens (B, n, D) -> the parts of the losses of a batch.

        caption: False leaves out the caption loss. logits: return logits and latents even for losses of weight 0.
        """

    def __call__(self, text: Tensor, *, image_tokens: Tensor, text_mask: Tensor) -> Tensor:
        """text, text_mask (B, T), image tokens (B, n, D) -> next-token logits (B, T, vocabulary)."""

    def label_log_probabilities(self, text: Tensor, labels: Tensor, *, image_tokens: Tensor, text_mask: Tensor,
                                temperature: float = 1.0) -> Tensor:
        """Log probabilities (B, T) of labels (B, T) after text (B, T), 0 at padding."""

    def embed_image(self, *, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image tokens (B, n, D) -> image embeddings for `img_to_latents`, and the context for `start_decoding`."""

    def embed_text(self, text: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """text, text_mask (B, T) -> text embeddings for `text_to_latents`, and token embeddings."""

    def img_to_latents(self, image_embeds: Tensor) -> Tensor:
        """Image embeddings -> unit vectors (B, dim_latents), float32."""

    def text_to_latents(self, text_embeds: Tensor) -> Tensor:
        """Text embeddings -> unit vectors (B, dim_latents), float32."""

    def limit_temperature(self) -> None:
        """Clip the logit scale at its maximum; called before each training step."""

    def start_decoding(self, context: Tensor) -> Any:
        """A cache for `decode_step`, of B sequences, with `repeat(n)` and `reorder(rows)` as `prism.search` wants.

        `reorder` may leave out slides, all sequences of them: finished captions are not decoded further.
        """

    def decode_step(self, token_ids: Tensor, cache: Any) -> Tensor:
        """token ids (B, T) after those in the cache, which gets them -> next-token logits (B, vocabulary)."""

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Keep large weights that do not train in `dtype`, the type of the forward pass."""

    def describe(self) -> dict[str, Any]:
        """Architecture, and fingerprints of weights that a checkpoint does not hold, for its metadata."""


class SlideCaptioner(nn.Module):
    """Tile embeddings and text -> caption and contrastive loss.

    The decoder reads Prism's output as image tokens: the slide embedding, then (`image_tokens="latents"`) all image
    latents.
    """

    def __init__(self, prism: PrismSlideEncoder, decoder: CaptionDecoder, image_tokens: str) -> None:
        super().__init__()
        self.prism, self.decoder, self._image_tokens = prism, decoder, image_tokens

    def image_tokens(self, tile_embeddings: Tensor, tile_mask: Tensor) -> Tensor:
        """(B, N, tile width) tiles and their mask (B, N) -> image tokens (B, 1 + latents or 1, D)."""
        slide = self.prism.slide_representations(tile_embeddings, tile_mask)
        embedding = slide["image_embedding"].unsqueeze(1)
        if self._image_tokens == "embedding":
            return embedding
        return torch.cat([embedding, slide["image_latents"]], dim=1)

    @property
    def probe_tokens(self) -> ProbeTokens | None:
        """The part of the decoder that reads a linear probe, None without `model.probe_tokens`."""
        return getattr(self.decoder, "img_context", None)

    @property
    def image_tokens_shape(self) -> tuple[int, int]:
        """(n, D) of one slide's image tokens."""
        latents = 0 if self._image_tokens == "embedding" else self.prism.config.latent_seq
        return 1 + latents, self.prism.image_dim

    def encode(self, batch: Batch) -> Tensor:
        """Image tokens (B, n, D) of a batch, in the type that the decoder takes; encoded unless the batch has them."""
        image_tokens = batch.image_tokens
        if image_tokens is None:
            image_tokens = self.image_tokens(batch.tile_embeddings, batch.tile_mask)
        return image_tokens.to(self.decoder.dtype)

    def forward(self, batch: Batch, caption: bool = True, logits: bool = False) -> CoCaOutputs:
        """The parts of the losses of a batch; those of a sample do not depend on the padding of its batch.

        caption: False leaves out the caption loss and what only it needs. logits: give them, too.
        """
        image_tokens = self.encode(batch)
        with self.probe_tokens.training_on(batch) if self.probe_tokens else nullcontext():
            return self.decoder.outputs(batch.text, batch.labels, image_tokens=image_tokens,
                                        text_mask=batch.text_mask, caption=caption, logits=logits)

    def weighted(self, caption_loss, contrastive_loss):
        """The training loss: floats in, a float out; tensors in, a tensor out."""
        return caption_loss * self.decoder.caption_loss_weight + contrastive_loss * self.decoder.contrastive_loss_weight

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """All that train, in the order of `parameters`."""
        return (p for p in self.parameters() if p.requires_grad)

    def named_trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(its name in a checkpoint, parameter) of all that trains, in the order of `parameters`."""
        for child, module in self.named_children():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{SAVED_AS[child]}.{name}", parameter

    def saved_state(self) -> dict[str, Tensor]:
        """The weights of a checkpoint: all but the frozen ones, which are Prism's (its licence forbids copies)."""
        return {f"{prefix}.{key}": value for part, prefix in SAVED_AS.items()
                for key, value in trained_state(getattr(self, part)).items()}

    def load_saved_state(self, state: dict[str, Tensor], where: str) -> None:
        """Load what `saved_state` gave; frozen weights stay as they are.

        Raises:
            UserError: Other keys, shapes or types than this model's, or weights that are not finite.
        """
        expected = self.saved_state()
        state = _without_wrappers(state, expected, where)
        _check_fit(state, expected, where)
        for part, prefix in SAVED_AS.items():
            module = getattr(self, part)
            weights = {key.removeprefix(f"{prefix}."): value for key, value in state.items()
                       if key.startswith(f"{prefix}.")}
            if weights:
                module.load_state_dict(module.state_dict() | weights)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module without its frozen parameters."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {key: value for key, value in module.state_dict().items() if key not in frozen}


def _without_wrappers(state: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state without the name parts that DistributedDataParallel and torch.compile add, where that helps."""
    renamed = {}
    for key in state:
        plain = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
        if key not in expected and plain in expected:
            renamed[key] = plain
    if renamed:
        logger.warning("%s: %d weights are of a wrapped model, as %s", where, len(renamed), next(iter(renamed)))
    return {renamed.get(key, key): value for key, value in state.items()}


def _check_fit(state: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    """Raises UserError with the first three weights of each kind that are missing, unknown or do not fit."""
    missing = [f"missing {key}" for key in expected if key not in state]
    unexpected = [f"unexpected {key}" for key in state if key not in expected]
    unfit = _misfits(state, expected)
    count = len(missing) + len(unexpected) + len(unfit)
    if count:
        examples = "; ".join([*unfit[:3], *missing[:3], *unexpected[:3]])
        raise UserError(where, f"{count} weights do not fit this model: {examples}",
                        "use the config the checkpoint was trained with")


def _misfits(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Saved weights that cannot be loaded into the model, and why."""
    misfits = []
    for key in expected.keys() & state.keys():
        saved, own = state[key], expected[key]
        if saved.shape != own.shape or saved.dtype != own.dtype:
            misfits.append(f"{key} is {tuple(saved.shape)} {saved.dtype}, here {tuple(own.shape)} {own.dtype}")
        elif saved.is_floating_point() and not torch.isfinite(saved).all():
            misfits.append(f"{key} is not finite")
    return sorted(misfits)


@torch.no_grad()
def encoded(model: SlideCaptioner, batch: Batch) -> Batch:
    """The batch with its slides encoded, so that several forward passes cost one encoding.

    The tokens stay in the type that the encoder gave, half as large under autocast as what `encode` casts them to.
    """
    if batch.image_tokens is not None:
        return batch
    return replace(batch, image_tokens=model.image_tokens(batch.tile_embeddings, batch.tile_mask))
