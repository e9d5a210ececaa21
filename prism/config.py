"""The architecture of the whole of Prism."""

from __future__ import annotations

from dataclasses import dataclass, field

from .biogpt import BioGptConfig
from .perceiver import PerceiverConfig


@dataclass(frozen=True)
class PrismConfig:
    """Architecture of the whole model, in the field names of the published `config.json`.

    Raises:
        ValueError: the parts do not fit each other.
    """

    perceiver_config: PerceiverConfig = field(default_factory=PerceiverConfig)
    biogpt_config: BioGptConfig = field(default_factory=BioGptConfig)
    biogpt_context_dim: int = 1280
    dim_latents: int = 5120

    def __post_init__(self) -> None:
        if self.biogpt_context_dim != self.perceiver_config.latent_dim:
            raise ValueError(f"biogpt_context_dim is {self.biogpt_context_dim!r}, perceiver_config.latent_dim "
                             f"{self.perceiver_config.latent_dim}; they must be equal")
        if type(self.dim_latents) is not int or self.dim_latents < 1:
            raise ValueError(f"dim_latents is {self.dim_latents!r}; need an integer of 1 or more")
