"""All of Prism: the slide encoder, BioGPT reading the slide, the contrastive heads, and its tokenizer.

Shapes: B slides, N tiles, L image latents, D width of the slide embedding (`image_dim`), T tokens.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .biogpt import TextDecoder
from .config import BioGptConfig, PrismConfig
from .errors import PrismWeightsError
from .files import ENCODER, read_weights, read_whole_config
from .generation import GenerationOptions, search
from .slide_encoder import PrismSlideEncoder
from .tokenizer import BioGptTokenizer, letters_tokenizer
from .weights import RANDOM, complete_state, empty_model, load_state, locate, random_state, tokenizer_beside

_log = logging.getLogger(__name__)


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
        tokenizer: Of the text side; None if there were no files for it. `tokenize` then says what is missing.
        sha256: Of the slide encoder alone, as `load_prism` has it.
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
        """Load the published model and its tokenizer, frozen; `weights`, `revision` and errors as for `load_prism`.

        The tokenizer is read from `vocab.json` and `merges.txt` beside the weights or in a folder `biogpt` there, and
        for a hub id else from microsoft/biogpt. Random models have one that spells words with single letters.

        Raises:
            PrismWeightsError: As `load_prism`; also a file of the slide encoder alone, or another vocabulary.
        """
        source = str(weights)
        if source in RANDOM:
            prism = empty_model(cls, RANDOM[source])
            prism.tokenizer = letters_tokenizer()
            load_state(prism, random_state(prism), source, None)
        else:
            path, commit = locate(source, revision)
            prism = empty_model(cls, read_whole_config(path.parent))
            state, total = read_weights(path, "")
            if state and all(name.startswith(ENCODER) for name in state):
                raise PrismWeightsError(
                    f"{path}: its {total} keys are of the slide encoder alone; give the full Prism weights")
            prism.tokenizer = tokenizer_beside(path, commit)
            if prism.tokenizer is not None:
                _check_vocabulary(prism.tokenizer, prism.text_decoder.config, path.parent)
            load_state(prism, complete_state(prism, state, str(path)), source, commit)
        _log.info("Prism from %s, sha256 %s", source, prism.sha256)
        return prism.freeze()

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
            tile_embeddings, tile_mask: As for `slide_representations`.
            attention_mask: (B, T), 1 or true = a token; None = all but the padding token.

        Returns:
            {"logits": (B, T, vocabulary), "text_embedding": (B, text width), "image_embedding": (B, D),
            "image_latents": (B, L, D), "sim": (B texts, B slides), cosines times exp(temperature)}

        Raises:
            ValueError: As `slide_representations`; texts longer than the model has positions.
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
        probabilities = sim.T.float().softmax(dim=-1)  # (B, prompts)
        negative, positive = probabilities.split([len(neg_prompts), len(pos_prompts)], dim=-1)
        return torch.stack([negative.sum(-1), positive.sum(-1)], dim=-1)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, key_value_states: Tensor | None = None, max_length: int = 100,
                 do_sample: bool = False, num_beams: int = 1, num_beam_groups: int = 1, **options: Any) -> Tensor:
        """Write a report for each slide.

        Args:
            inputs: Prompt (B, T), all of one length and without `</s>` at the end; None = `</s>`, as in training.
            key_value_states: Image latents (B, L, D).
            max_length: Of the result, prompt included.
            options: As in `GenerationOptions` (temperature, top_k, top_p, repetition_penalty, ...).

        Returns:
            ids (B, at most max_length): the prompt, the report, `</s>` where it came to its end, padding.

        Raises:
            ValueError: No image latents, padding in the prompt, or what Hugging Face no longer has: beam groups.
            TypeError: An unknown option.
        """
        eos_id, pad_id = self.text_decoder.config.eos_token_id, self.text_decoder.config.pad_token_id
        if key_value_states is None:
            raise ValueError("image latents (key_value_states) are required for generation")
        if num_beam_groups != 1 or (do_sample and num_beams > 1):
            raise ValueError("groups of beams and sampling over beams are not supported")
        options = {"top_k": 50} | options  # Hugging Face's default
        search_options = GenerationOptions(max_length=max_length, do_sample=do_sample, num_beams=num_beams, **options)
        if inputs is None:
            inputs = torch.full((len(key_value_states), 1), eos_id, device=key_value_states.device)
        if (inputs == pad_id).any():
            raise ValueError("the prompt has padding; give prompts of equal length, without it")
        cache = self.text_decoder.start_decoding(key_value_states)
        rows = search(self.text_decoder.decode_step, cache, inputs, search_options, eos_id=eos_id, pad_id=pad_id)
        longest = max_length - inputs.shape[1]
        for row in rows:
            if len(row) < longest:
                row.append(eos_id)
        return torch.cat([inputs, _padded(rows, pad_id).to(inputs.device)], dim=1)

    def tokenize(self, text: list[str]) -> Tensor:
        """Texts -> ids (B, T) from `</s>` to `</s>`, padded on the right. Raises ValueError without a tokenizer."""
        tokenizer = self._tokenizer()
        eos_id, pad_id = self.text_decoder.config.eos_token_id, self.text_decoder.config.pad_token_id
        return _padded([[eos_id, *tokenizer.encode(t), eos_id] for t in text], pad_id)

    def untokenize(self, token_ids: Tensor) -> list[str]:
        """Ids (B, T) -> texts, special tokens in place. Raises ValueError without a tokenizer."""
        return [self._tokenizer().decode(row, skip_special_tokens=False) for row in token_ids.tolist()]

    def _tokenizer(self) -> BioGptTokenizer:
        if self.tokenizer is None:
            raise ValueError("no tokenizer was loaded: put vocab.json and merges.txt of microsoft/biogpt "
                             "beside its weights")
        return self.tokenizer


def _padded(rows: list[list[int]], pad_id: int) -> Tensor:
    """Rows of ids -> (B, longest), padded on the right."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.long)


def _check_vocabulary(tokenizer: BioGptTokenizer, config: BioGptConfig, folder: Path) -> None:
    """Raises PrismWeightsError if the tokenizer is not the one that the weights were trained with."""
    if len(tokenizer) > config.vocab_size:
        raise PrismWeightsError(f"{folder}: its vocabulary has {len(tokenizer)} tokens, the weights have "
                                f"{config.vocab_size}")
    if (tokenizer.pad_id, tokenizer.eos_id) != (config.pad_token_id, config.eos_token_id):
        raise PrismWeightsError(f"{folder}: <pad> and </s> of its vocabulary are {tokenizer.pad_id} and "
                                f"{tokenizer.eos_id}, in its config.json {config.pad_token_id} and "
                                f"{config.eos_token_id}; use the vocab.json of microsoft/biogpt")
