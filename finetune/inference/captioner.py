"""From a checkpoint and H5 files to captions and scores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.format import Checkpoint
from ..checkpoints.hf_folder import read_folder
from ..checkpoints.nearest_index import temperature_of
from ..common.device import Precision, resolve_device, resolve_precision
from ..common.errors import UserError
from ..common.files import expand
from ..config.schema import Config, GenerationOptions, from_dict
from ..data.batch import pad_tiles
from ..data.slides import Slide
from ..data.tile_reader import read_tiles
from ..data.tokenizer import Tokenizer, tokenizer_from_dict
from ..models.build import build_model, check_architecture, whole_prism
from ..models.captioner import SlideCaptioner
from ..models.embeddings import embed_slides, embed_texts
from ..models.generation import confidences, generate
from ..models.prism_decoder import PrismCoCa
from .records import _record


@dataclass
class Captioner:
    """A trained model that scores and captions slides.

    temperature: of its confidence, None if the checkpoint was not calibrated. about: the
    checkpoint without its tensors.
    """

    model: SlideCaptioner
    tokenizer: Tokenizer
    config: Config
    precision: Precision
    held_out: dict[str, list[str]]  # ids of the sides val and test
    temperature: float | None = None
    about: Checkpoint | None = None

    @classmethod
    def load(cls, checkpoint: str | Path, prism: str | None = None, device: str = "auto") -> Captioner:
        """Rebuild the model of a checkpoint from that one file, or folder of `finetune.export`, and Prism's weights.

        prism: where Prism's weights are, if not where they were in training; they must be the same weights (SHA-256).
        """
        path = expand(str(checkpoint))
        content = read_folder(path) if path.is_dir() else Checkpoint.load(path)
        config = from_dict(content.config, str(checkpoint))
        tokenizer = tokenizer_from_dict(content.tokenizer, str(checkpoint))
        config.prism.weights = prism or config.prism.weights
        trained_prism = None if config.prism.freeze else content.prism.get("architecture")
        check_architecture(config, tokenizer, content.prism, content.model, str(checkpoint))
        model = build_model(config, tokenizer, trained_prism)
        frozen = {"sha256": model.prism.sha256} if config.prism.freeze else {}
        for key, found in (frozen | {"text_sha256": getattr(model.decoder, "sha256", None)}).items():
            if content.prism.get(key) != found:
                raise UserError(checkpoint, f"was trained with other Prism weights ({content.prism.get('source')}, "
                                f"{key} {str(content.prism.get(key))[:12]}; {config.prism.weights} has "
                                f"{str(found)[:12]})", "give the same weights with --prism")
        model.load_saved_state(content.model, str(checkpoint))
        where = resolve_device(device)
        return cls(model.to(where).eval(), tokenizer, config, resolve_precision("auto", where),
                   {side: [*ids] if isinstance(ids := content.data.get(key), list) else []
                    for side, key in (("val", "validation_ids"), ("test", "test_ids"))},
                   temperature_of(content), replace(content, model={}, optimizer={}, random_states={}))

    @classmethod
    def of_prism(cls, prism: str | None = None, device: str = "auto") -> Captioner:
        """Prism itself, with its own text side and nothing trained. prism: its weights (default: from the hub)."""
        config = Config()
        config.prism.weights = prism or config.prism.weights
        whole, where = whole_prism(config), resolve_device(device)
        config.data.image_dim = whole.tile_dim
        config.data.max_seq_len = whole.prism_config.biogpt_config.max_position_embeddings
        model = SlideCaptioner(whole.slide_encoder(), PrismCoCa(whole), config.prism.image_tokens)
        return cls(model.to(where).eval(), whole.tokenizer, config, resolve_precision("auto", where),
                   {"val": [], "test": []})

    @classmethod
    def of_flags(cls, args: argparse.Namespace, options: GenerationOptions) -> Captioner:
        """What `--checkpoint` or `--prism_only` names. Raises UserError also for captions longer than it can write."""
        captioner = cls.of_prism(args.prism, args.device) if args.prism_only else \
            cls.load(args.checkpoint, args.prism, args.device)
        if isinstance(coca := captioner.model.decoder, PrismCoCa):
            positions = coca.text_decoder.config.max_position_embeddings
            if options.max_length > positions:
                raise UserError("--max_length", f"{options.max_length}, Prism's decoder has {positions} positions",
                                f"give {positions} or less")
        return captioner

    @torch.no_grad()
    def describe(self, slides: list[Slide], texts: list[str], options: GenerationOptions,
                 embeddings: dict[str, np.ndarray] | None = None) -> list[dict[str, Any]]:
        """One record per slide: caption, cosine similarity to each text, and with several texts their probabilities.

        embeddings: gets {slide id: its unit vector (dim_latents,) in the space of `embed_texts`}.
        """
        coca, device = self.model.decoder, self.precision.device
        tiles, mask = pad_tiles([read_tiles(s) for s in slides])
        with self.precision.autocast():
            image_tokens = self.model.image_tokens(tiles.to(device), mask.to(device))
            special = {name: getattr(self.tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")}
            captions = generate(coca, image_tokens, options, **special)
            sure = confidences(coca, image_tokens, captions, options.max_length, temperature=self.temperature or 1.0,
                               **special)
            images = embed_slides(coca, image_tokens)
        if not (finite := np.isfinite(images).all(1)).all():
            raise UserError(slides[int(finite.argmin())].slide_id, "its tiles make the model overflow",
                            "check how its features were extracted")
        cosines = torch.from_numpy(images @ self.embed_texts(texts).T) if texts else None  # (B, texts)
        if embeddings is not None:
            embeddings.update(zip((s.slide_id for s in slides), images, strict=True))
        records = []
        for i, (slide, ids) in enumerate(zip(slides, captions, strict=True)):
            record = _record(slide.slide_id, caption=self.tokenizer.decode(ids), confidence=sure[i])
            if cosines is not None:
                record["similarity"] = dict(zip(texts, cosines[i].tolist(), strict=True))
                if len(texts) > 1:
                    odds = (cosines[i] * coca.logit_scale.float().cpu()).softmax(0)
                    record["probability"] = dict(zip(texts, odds.tolist(), strict=True))
            records.append(record)
        return records

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, dim_latents)."""
        with self.precision.autocast():
            return embed_texts(self.model.decoder, self.tokenizer, texts, self.config.data.max_seq_len)

    @torch.no_grad()
    def class_probabilities(self, embeddings: np.ndarray, prompts: dict[str, list[str]]) -> np.ndarray:
        """Slides (n, dim_latents) -> (n, classes): softmax over all prompts, summed per class, as Prism does it."""
        cosines = embeddings @ self.embed_texts([text for texts in prompts.values() for text in texts]).T
        odds = (torch.from_numpy(cosines) * self.model.decoder.logit_scale.float().cpu()).softmax(1)
        return torch.stack([part.sum(1) for part in odds.split([len(t) for t in prompts.values()], 1)], 1).numpy()
