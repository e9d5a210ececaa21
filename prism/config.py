"""The architectures: of the slide encoder, of the text decoder and of the whole of Prism.

Field names are those of the published `config.json`; the defaults are the published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

# an unused token of BioGPT's vocabulary ("madeupword0006"), which Prism was trained with as CLS
CLS_ID = 42383


@dataclass(frozen=True)
class PerceiverConfig:
    """Architecture of the slide encoder, the published `perceiver_config`.

    Layers from `share_xattn_start_layer` (`share_tf_start_layer`) on share one cross-attention (one stack of
    self-attention blocks); earlier layers have their own.

    Raises:
        ValueError: A field has a type, range or value this implementation does not have; the message names it.
    """

    latent_seq: int = 512
    latent_dim: int = 1280
    context_dim: int = 2560
    mhsa_heads: int = 8
    perceiver_depth: int = 8
    transformer_depth: int = 6
    share_xattn_start_layer: int = 1
    share_tf_start_layer: int = 0
    xattn_heads: int = 1
    mlp_mult: int = 1
    mlp_activation: str = "geglu"

    def __post_init__(self) -> None:
        if self.mlp_activation != "geglu":
            raise ValueError(f"perceiver_config.mlp_activation is {self.mlp_activation!r}; only 'geglu' is supported")
        minimum = {"share_xattn_start_layer": 0, "share_tf_start_layer": 0, "transformer_depth": 0}
        _check_integers("perceiver_config", self, minimum)
        if self.xattn_heads != 1:
            raise ValueError(f"perceiver_config.xattn_heads is {self.xattn_heads}; only 1 is supported")
        if self.latent_dim % self.mhsa_heads:
            raise ValueError(
                f"perceiver_config.mhsa_heads is {self.mhsa_heads}, which does not divide latent_dim {self.latent_dim}"
            )


@dataclass(frozen=True)
class BioGptConfig:
    """Architecture of the text decoder, the published `biogpt_config`.

    Raises:
        ValueError: A field has a type, range or value this implementation does not have; the message names it.
    """

    vocab_size: int = 42384
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    max_position_embeddings: int = 1024
    pad_token_id: int = 1
    eos_token_id: int = 2
    hidden_act: str = "gelu"
    scale_embedding: bool = True

    def __post_init__(self) -> None:
        if self.hidden_act != "gelu" or self.scale_embedding is not True:
            raise ValueError(f"biogpt_config has hidden_act {self.hidden_act!r} and scale_embedding "
                             f"{self.scale_embedding!r}; only 'gelu' and true are supported")
        _check_integers("biogpt_config", self, {"pad_token_id": 0, "eos_token_id": 0, "num_hidden_layers": 2})
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"biogpt_config.num_attention_heads is {self.num_attention_heads}, which does not divide "
                             f"hidden_size {self.hidden_size}")
        if max(self.pad_token_id, self.eos_token_id) >= self.cls_id:
            raise ValueError(f"biogpt_config.vocab_size is {self.vocab_size}: too small for its special tokens")

    @property
    def cls_id(self) -> int:
        """Published: 42383, the last token; of a smaller vocabulary the last one too."""
        return min(CLS_ID, self.vocab_size - 1)


@dataclass(frozen=True)
class PrismConfig:
    """Architecture of the whole model.

    Raises:
        ValueError: The parts do not fit each other.
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


def _check_integers(section: str, config: PerceiverConfig | BioGptConfig, minimum: Mapping[str, int]) -> None:
    """Raises ValueError for a field of type int with another value, or one below `minimum` (1 where not named)."""
    for entry in fields(config):
        if entry.type != "int":
            continue
        value, least = getattr(config, entry.name), minimum.get(entry.name, 1)
        if type(value) is not int or value < least:  # bool is an int to isinstance
            raise ValueError(f"{section}.{entry.name} is {value!r}; need an integer of {least} or more")
