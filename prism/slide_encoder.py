"""The slide encoder of Prism with checked inputs, freezing, and cheap weights under autocast.

Shapes: B slides, N tiles, C tile width (`tile_dim`), L image latents, D width of the output (`image_dim`).
"""

import hashlib
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .config import PerceiverConfig
from .perceiver import ImageResampler


class PrismSlideEncoder(nn.Module):
    """Tile embeddings of slides -> slide embeddings and image latents. `load_prism` returns it with weights, frozen.

    Attributes:
        config: The architecture.
        source: What `load_prism` was given ("paige-ai/Prism", a path, "random", ...); None if built by hand.
        revision: Commit hash on the hub where known, else None.
        sha256: `fingerprint` of the weights as they were loaded; None if built by hand.
    """

    def __init__(self, config: PerceiverConfig | None = None) -> None:
        super().__init__()
        self.config = config or PerceiverConfig()
        self.image_resampler = ImageResampler(self.config)
        self.source: str | None = None
        self.revision: str | None = None
        self.sha256: str | None = None
        self.frozen = False
        self._cast: dict[str, Tensor] = {}
        self._cast_from: list[object] = []

    @property
    def tile_dim(self) -> int:
        """Width C of the tile embeddings it takes."""
        return self.config.context_dim

    @property
    def image_dim(self) -> int:
        """Width D of what it returns."""
        return self.config.latent_dim

    def slide_representations(self, tile_embeddings: Tensor, tile_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Encode slides. The values of padded tiles, even NaN, never reach a result.

        Args:
            tile_embeddings: (B, N, C), any float type; cast to the type of the weights.
            tile_mask: bool (B, N), True = a tile, False = padding; None = all are tiles.

        Returns:
            {"image_embedding": (B, D), "image_latents": (B, L, D)}

        Raises:
            ValueError: Wrong shape or width, a mask that is not bool, a slide without any tile.
        """
        self._check(tile_embeddings, tile_mask)
        slides = list(tile_embeddings) if tile_mask is None else unpadded(tile_embeddings, tile_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            embedding, latents = self._run(slides)
        return {"image_embedding": embedding, "image_latents": latents}

    def forward(self, tile_embeddings: Tensor, tile_mask: Tensor | None = None) -> dict[str, Tensor]:
        """The same as `slide_representations`."""
        return self.slide_representations(tile_embeddings, tile_mask)

    def freeze(self) -> Self:
        """No gradients, no graph, eval mode; `train()` does not undo it."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self) -> Self:
        """Undo `freeze`: all parameters trainable, train mode."""
        self.frozen = False
        self.requires_grad_(True)
        return self.train()

    def train(self, mode: bool = True) -> Self:
        """Set train mode, unless frozen (a parent's `train()` reaches here too)."""
        return super().train(mode and not self.frozen)

    def _run(self, slides: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Under autocast, frozen weights are cast once and reused; autocast would cast them at each use."""
        device = self.image_resampler.perceiver.latents.device.type
        if not (self.frozen and torch.is_autocast_enabled(device)):
            return self.image_resampler(slides)
        copies = self._copies(torch.get_autocast_dtype(device))
        # tie_weights would replace a block once per layer that shares it, and restore the copy at the end
        return functional_call(self.image_resampler, copies, (slides,), tie_weights=False)

    def _copies(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The matrices of the linear layers and their biases in another type; kept until a weight changes."""
        linear = {name: p for name, p in self.image_resampler.named_parameters() if "norm" not in name}
        del linear["perceiver.latents"]
        # tensors made in inference mode count no versions
        state = [dtype, *((p.data_ptr(), p.is_inference() or p._version) for p in linear.values())]
        if self._cast_from != state:
            self._cast = {name: p.detach().to(dtype) for name, p in linear.items()}
            self._cast_from = state
        return self._cast

    def _check(self, tiles: Tensor, mask: Tensor | None) -> None:
        """Raises ValueError as `slide_representations`."""
        if tiles.ndim != 3:
            raise ValueError(f"tile_embeddings have shape {tuple(tiles.shape)}; need (slides, tiles, {self.tile_dim})")
        if tiles.shape[-1] != self.tile_dim:
            raise ValueError(
                f"tile_embeddings have dimension {tiles.shape[-1]}, the encoder takes {self.tile_dim}; "
                "were the tiles made by another tile encoder?"
            )
        if tiles.shape[1] == 0:
            raise ValueError("tile_embeddings hold no tile")
        if mask is not None:
            _check_mask(mask, tiles)


def _check_mask(mask: Tensor, tiles: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"tile_mask is {mask.dtype}; need torch.bool, True = a tile")
    if mask.shape != tiles.shape[:2]:
        raise ValueError(f"tile_mask has shape {tuple(mask.shape)}; need {tuple(tiles.shape[:2])}")
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"tile_mask leaves no tile in slide {empty[0]} of the batch ({len(empty)} such)")


def unpadded(tiles: Tensor, mask: Tensor) -> list[Tensor]:
    """Tiles (B, N, C) and mask (B, N) -> the real tiles of each slide, (n, C); views where padding is at the end."""
    counts = mask.sum(dim=1)
    first_tiles = torch.arange(mask.shape[1], device=mask.device) < counts[:, None]
    at_end = (mask == first_tiles).all(dim=1).tolist()
    slides = []
    for index, count in enumerate(counts.tolist()):
        real = slice(count) if at_end[index] else mask[index]
        slides.append(tiles[index][real])
    return slides


def fingerprint(module: nn.Module, part: str = "") -> str:
    """SHA-256 over name, type, shape and bytes of every parameter, sorted by name, each shared one once.

    It does not depend on the file the weights came from nor on the device they are on.

    Args:
        part: Only parameters whose names begin with it.
    """
    return hash_tensors({name: parameter for name, parameter in module.named_parameters() if name.startswith(part)})


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of tensors on any device, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
