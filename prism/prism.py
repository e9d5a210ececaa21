"""Prism as the rest of the world sees it: the slide encoder alone, with checked inputs and freezing, and all of it.

Shapes: B slides, N tiles, C tile width (`tile_dim`), L image latents, D width of the output (`image_dim`), T tokens.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .biogpt import TextDecoder
from .config import PrismConfig
from .generation import SearchOptions, search
from .perceiver import ImageResampler, PerceiverConfig
from .tokenizer import BioGptTokenizer


class PrismSlideEncoder(nn.Module):
    """Encodes the tile embeddings of slides. `load_prism` returns it with weights, frozen.

    Attributes:
        config: the architecture.
        source: what `load_prism` was given ("paige-ai/Prism", a path, "random", ...); None if built by hand.
        revision: commit hash on the hub where known, else None.
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
        """Encode slides. What stands in padded tiles, even NaN, never reaches a result.

        Args:
            tile_embeddings: (B, N, C), any float type; cast to the type of the weights.
            tile_mask: bool (B, N), True = a tile, False = padding; None = all are tiles.

        Returns:
            {"image_embedding": (B, D), "image_latents": (B, L, D)}

        Raises:
            ValueError: wrong shape or width, a mask that is not bool, a slide without any tile.
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
        """Under autocast, frozen weights are used through their copies, which autocast would make anew at each use."""
        device = self.image_resampler.perceiver.latents.device.type
        if not (self.frozen and torch.is_autocast_enabled(device)):
            return self.image_resampler(slides)
        copies = self._copies(torch.get_autocast_dtype(device))
        # tie_weights would swap a block that several layers share once for each, and put back the copy at the end
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
        if tiles.ndim != 3:
            raise ValueError(f"tile_embeddings have shape {tuple(tiles.shape)}; need (slides, tiles, {self.tile_dim})")
        if tiles.shape[-1] != self.tile_dim:
            raise ValueError(
                f"tile_embeddings are {tiles.shape[-1]} wide, the encoder takes {self.tile_dim}; "
                "were the tiles made by another tile encoder?"
            )
        if tiles.shape[1] == 0:
            raise ValueError("tile_embeddings hold no tile")
        if mask is None:
            return
        if mask.dtype != torch.bool:
            raise ValueError(f"tile_mask is {mask.dtype}; need torch.bool, True = a tile")
        if mask.shape != tiles.shape[:2]:
            raise ValueError(f"tile_mask has shape {tuple(mask.shape)}; need {tuple(tiles.shape[:2])}")
        empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"tile_mask leaves no tile in slide {empty[0]} of the batch ({len(empty)} such)")


class EmbedToLatents(nn.Module):
    """An embedding (..., D) -> L2-normalised vector of the contrastive space (..., dim_latents)."""

    def __init__(self, dim: int, dim_latents: int) -> None:
        super().__init__()
        self.to_latents = nn.Linear(dim, dim_latents, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.to_latents(x).float(), dim=-1)


class Prism(PrismSlideEncoder):
    """All of Prism: the slide encoder, BioGPT reading the slide, and the contrastive heads.

    Names, arguments and results are those of the published model (https://arxiv.org/abs/2405.10254); `tile_mask` must
    be bool. As published, ids of a text begin and end with `</s>`.

    Attributes:
        tokenizer: of the text side; None if there were no files for it. `tokenize` then says what is missing.
        sha256: of the slide encoder alone, as `load_prism` has it.
    """

    def __init__(self, config: PrismConfig | None = None) -> None:
        config = config or PrismConfig()
        super().__init__(config.perceiver_config)
        self.prism_config = config
        self.text_decoder = TextDecoder(config.biogpt_config, config.biogpt_context_dim)
        self.img_to_latents = EmbedToLatents(self.image_dim, config.dim_latents)
        self.text_to_latents = EmbedToLatents(self.text_decoder.text_dim, config.dim_latents)
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.tokenizer: BioGptTokenizer | None = None

    @classmethod
    def from_pretrained(cls, weights: str | Path, revision: str | None = None) -> "Prism":
        """The published model from a hub id or a local folder, frozen; `weights` and errors as for `load_prism`."""
        from .weights import load_whole_prism

        return load_whole_prism(weights, revision)

    def slide_encoder(self) -> PrismSlideEncoder:
        """The slide encoder alone; it shares its weights with this model."""
        with torch.device("meta"):
            encoder = PrismSlideEncoder(self.config)
        encoder.image_resampler = self.image_resampler
        encoder.source, encoder.revision, encoder.sha256 = self.source, self.revision, self.sha256
        encoder.frozen = self.frozen
        return encoder.train(self.training)

    def forward(self, input_ids: Tensor, tile_embeddings: Tensor, tile_mask: Tensor | None = None,
                attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            input_ids: (B, T), one text for each slide.
            tile_embeddings, tile_mask: as for `slide_representations`.
            attention_mask: (B, T), 1 or true = a token; None = all but the padding token.

        Returns:
            {"logits": (B, T, vocabulary), "text_embedding": (B, text width), "image_embedding": (B, D),
            "image_latents": (B, L, D), "sim": (B texts, B slides), cosines times exp(temperature)}

        Raises:
            ValueError: as `slide_representations`; texts longer than the model has positions.
        """
        slide = self.slide_representations(tile_embeddings, tile_mask)
        text = self.text_decoder(input_ids, slide["image_latents"], attention_mask)
        return {**text, **slide, "sim": self.similarity(text["text_embedding"], slide["image_embedding"])}

    def similarity(self, text_embedding: Tensor, image_embedding: Tensor) -> Tensor:
        """(i, text width) and (j, D) -> their cosines in the contrastive space times exp(temperature), (i, j)."""
        text, image = self.text_to_latents(text_embedding), self.img_to_latents(image_embedding)
        return text @ image.T * self.temperature.exp()

    @torch.no_grad()
    def zero_shot(self, image_embeds: Tensor, *, neg_prompts: list[str], pos_prompts: list[str]) -> Tensor:
        """Slide embeddings (B, D) -> probabilities (B, 2) of the negative and the positive class.

        The softmax is over all prompts; a class has the sum of its own. As published, all prompts are tokenized
        together and the last column is cut off: the longest ones lose their `</s>`, shorter ones keep it.
        """
        ids = self.tokenize(neg_prompts + pos_prompts)[:, :-1].to(image_embeds.device)
        sim = self.similarity(self.text_decoder.unimodal(ids)[0], image_embeds)
        probs = sim.T.float().softmax(dim=-1)
        split = probs.split([len(neg_prompts), len(pos_prompts)], dim=-1)
        return torch.stack([part.sum(-1) for part in split], dim=-1)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, key_value_states: Tensor | None = None, max_length: int = 100,
                 do_sample: bool = False, num_beams: int = 1, num_beam_groups: int = 1, **options: Any) -> Tensor:
        """Write a report for each slide.

        Args:
            inputs: prompt (B, T), all of one length and without `</s>` at the end; None = `</s>`, as in training.
            key_value_states: image latents (B, L, D).
            max_length: of the result, prompt included.
            options: as in `SearchOptions` (temperature, top_k, top_p, repetition_penalty, ...).

        Returns:
            ids (B, at most max_length): the prompt, the words, `</s>` where the text came to its end, padding.

        Raises:
            ValueError: no image latents, padding in the prompt, or what Hugging Face no longer has: beam groups.
            TypeError: an unknown option.
        """
        config = self.text_decoder.config
        if key_value_states is None:
            raise ValueError("image latents (key_value_states) are required for generation")
        if num_beam_groups != 1 or (do_sample and num_beams > 1):
            raise ValueError("groups of beams and sampling over beams are not supported")
        chosen = SearchOptions(max_length=max_length, do_sample=do_sample, num_beams=num_beams, **options)
        if inputs is None:
            inputs = torch.full((len(key_value_states), 1), config.eos_token_id, device=key_value_states.device)
        if (inputs == config.pad_token_id).any():
            raise ValueError("the prompt has padding; give prompts of equal length, without it")
        cache = self.text_decoder.start_decoding(key_value_states)
        written = search(self.text_decoder.decode_step, cache, inputs, chosen, eos_id=config.eos_token_id,
                         pad_id=config.pad_token_id)
        rows = [words + [config.eos_token_id] * (inputs.shape[1] + len(words) < max_length) for words in written]
        width = max(map(len, rows))
        padded = torch.tensor([row + [config.pad_token_id] * (width - len(row)) for row in rows], dtype=torch.long)
        return torch.cat([inputs, padded.to(inputs.device)], dim=1)

    def tokenize(self, text: list[str]) -> Tensor:
        """Texts -> ids (B, T) from `</s>` to `</s>`, padded on the right. Raises ValueError without a tokenizer."""
        rows = [self._tokenizer().encode(t) for t in text]
        eos, pad = self.text_decoder.config.eos_token_id, self.text_decoder.config.pad_token_id
        width = max(map(len, rows), default=0)
        return torch.tensor([[eos, *row, eos] + [pad] * (width - len(row)) for row in rows])

    def untokenize(self, token_ids: Tensor) -> list[str]:
        """Ids (B, T) -> texts, special tokens in place. Raises ValueError without a tokenizer."""
        return [self._tokenizer().decode(row, skip_special_tokens=False) for row in token_ids.tolist()]

    def _tokenizer(self) -> BioGptTokenizer:
        if self.tokenizer is None:
            raise ValueError("this Prism has no tokenizer: put vocab.json and merges.txt of microsoft/biogpt "
                             "beside its weights")
        return self.tokenizer


def unpadded(tiles: Tensor, mask: Tensor) -> list[Tensor]:
    """Tiles (B, N, C) and mask (B, N) -> the real tiles of each slide, (n, C); views where padding is at the end."""
    counts = mask.sum(dim=1)
    at_end = (mask == (torch.arange(mask.shape[1], device=mask.device) < counts[:, None])).all(dim=1)
    return [slide[:count] if plain else slide[real] for slide, real, count, plain in
            zip(tiles, mask, counts.tolist(), at_end.tolist(), strict=True)]


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter, sorted by name, each shared one once.

    It does not depend on the file the weights came from nor on the device they are on.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
