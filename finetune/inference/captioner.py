"""A trained model that captions and scores slides.

Shapes: B slides, N tiles, C tile dimension, n image tokens, D image dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism import GenerationOptions

from ..checkpoints.format import Checkpoint
from ..checkpoints.hf_folder import model_path, read_model
from ..checkpoints.nearest_index import temperature_of
from ..common.caveats import Text, caveats
from ..common.device import Precision, resolve_device, resolve_precision
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from ..config.schema import Config, from_dict
from ..config.values import check_known
from ..data.slide_cache import token_type
from ..data.slides import Slide, open_case
from ..data.tile_facts import TileFacts, facts_of
from ..data.tile_reader import read_tiles
from ..data.tokenizer import Tokenizer, tokenizer_from_dict
from ..models.build import build_model, build_prism, check_architecture, num_predicted_in
from ..models.captioner import SlideCaptioner
from ..models.embeddings import embed_texts
from ..models.generation import caption_log_probabilities, generate, has_ended, mean_probabilities
from ..models.rerank import rerank
from ..models.training_texts import SlideVectors, TrainingTexts
from .form import Form
from .frozen_weights import check_same_weights, move_language_model
from .judge import Judge, judge_slides
from .memory import memory_errors
from .nearest import TrainingSlides, judge_of, texts_to_rerank_with
from .options import InferenceOptions
from .records import Record, new_record

_OF_A_CALL = ("rerank", "template", "choices", "field_temperature")  # flags of inference.py that a call takes too


@dataclass
class Captioner:
    """A trained model that scores and captions slides.

    Attributes:
        held_out: Ids of the slides in the splits val and test.
        temperature: Calibration of the confidence, None if the checkpoint was not calibrated.
        form: The template that captions follow, None for free captions.
        rerank_with: Training texts that may replace a caption, with a probe; None for own captions only.
        judge: Judges captions and slides; None without a nearest.pt that can.
        checkpoint: The one it was loaded from, without its tensors; None for Prism itself.
    """

    model: SlideCaptioner
    tokenizer: Tokenizer
    config: Config
    precision: Precision
    held_out: dict[str, list[str]]
    temperature: float | None = None
    checkpoint: Checkpoint | None = None
    form: Form | None = None
    rerank_with: TrainingTexts | None = None
    judge: Judge | None = None
    _given: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def caveats(self) -> list[Text]:
        """What takes away the meaning of what it says, in Chinese and English."""
        if self.checkpoint is None:
            return caveats(self.config.prism.weights, None)
        return caveats(self.checkpoint.prism.get("source"), self.checkpoint.data.get("texts"))

    @property
    def where(self) -> str:
        """Where it computes, such as `cpu, bf16`."""
        return f"{self.precision.device}, {self.precision.name}"

    @classmethod
    def load(cls, checkpoint: str | Path, prism: str | None = None, device: str = "auto",
             language_model: str | None = None) -> Captioner:
        """Rebuild a model from its checkpoint, Prism's weights and, if it has one, its language model.

        Args:
            checkpoint: A .pth file of a run, the run's folder (its best_model.pth), or a folder of `finetune.export`.
            prism: Where Prism's weights are, if not where they were in training; they must be the same (SHA-256).
            device: auto, cpu, cuda or cuda:N.
            language_model: Where the language model is, as `prism`.

        Raises:
            UserError: An unusable checkpoint, or other weights of Prism or the language model than in training.
        """
        where = str(checkpoint)
        path = model_path(expand(where))
        if path.name != Path(where).name:
            logger.info("--checkpoint %s is the folder of a run: taking its %s", where, path.name)
        content = read_model(path)
        config = from_dict(content.config, where)
        config.prism.weights = prism or config.prism.weights
        move_language_model(config, language_model)
        tokenizer = tokenizer_from_dict(content.tokenizer, where)
        trained_prism = None if config.prism.freeze else content.prism.get("architecture")
        check_architecture(config, tokenizer, content.prism, content.model, where)
        model = build_model(config, tokenizer, trained_prism, num_predicted_in(content.model))
        check_same_weights(model, config, content.prism, where)
        model.load_saved_state(content.model, where)
        target = resolve_device(device)
        precision = resolve_precision("auto", target, wide_range=config.model.language_model is not None)
        model.decoder.cast_frozen(precision.dtype)
        return cls(model.to(target).eval(), tokenizer, config, precision,
                   {"val": _ids(content.data, "validation_ids"), "test": _ids(content.data, "test_ids")},
                   temperature_of(content), replace(content, model={}, optimizer={}, random_states={}))

    @classmethod
    def of_prism(cls, prism: str | None = None, device: str = "auto") -> Captioner:
        """Prism itself, with its own text decoder and nothing trained. prism: its weights (default: from the hub)."""
        config = Config()
        config.prism.weights = prism or config.prism.weights
        model, tokenizer = build_prism(config)
        target = resolve_device(device)
        config.data.image_dim, config.data.max_seq_len = model.prism.tile_dim, model.decoder.max_positions
        return cls(model.to(target).eval(), tokenizer, config, resolve_precision("auto", target),
                   {"val": [], "test": []})

    @classmethod
    def from_options(cls, options: InferenceOptions) -> Captioner:
        """The model of --checkpoint or --prism_only. Raises UserError also for a max_length it has no positions for."""
        if options.prism_only:
            captioner = cls.of_prism(options.prism, options.device)
        else:
            captioner = cls.load(options.checkpoint, options.prism, options.device, options.language_model)
        captioner.log_caveats()
        captioner._check_length(options)
        captioner.form = Form.of_options(options, captioner.model.decoder, captioner.tokenizer, captioner.checkpoint)
        return captioner

    def _check_length(self, options: InferenceOptions) -> None:
        positions = self.model.decoder.max_positions
        if positions is not None and options.max_length is not None and options.max_length > positions:
            raise UserError("--max_length", f"{options.max_length}, the decoder has {positions} positions",
                            f"give {positions} or less")

    def log_caveats(self) -> None:
        """Warn of what takes away the meaning of what it says."""
        for _, english in self.caveats:
            logger.warning("%s", english)

    @property
    def trained_length(self) -> int:
        """Most tokens of the texts it was trained on, begin and end token included; of Prism itself its positions."""
        limit = self.model.decoder.max_positions
        longest = self.config.data.max_seq_len
        return longest if limit is None else min(longest, limit)

    def __call__(self, slides: str | Path | Sequence[str | Path], texts: Sequence[str] = (),
                 **flags: Any) -> Record | list[Record]:
        """Caption slides as `inference.py` does.

        Args:
            slides: A file of features, or several.
            texts: Compared with each slide, as --text.
            flags: As those of `inference.py`: the fields of GenerationOptions, such as `num_beams=4`, and `_OF_A_CALL`.

        Returns:
            The record of the file, or a list of records for a list of files.

        Raises:
            UserError: An option that it has not, a file that cannot be read, tiles whose values overflow in the model,
                or out of memory.
        """
        for name in flags:
            check_known(name, [*GenerationOptions.__dataclass_fields__, *_OF_A_CALL], "captioner(...)", "option")
        options = InferenceOptions(**flags)
        self._check_length(options)
        self.form = Form.of_options(options, self.model.decoder, self.tokenizer, self.checkpoint)
        self.rerank_with = texts_to_rerank_with(options, self, self._training_slides)
        generation, data = options.generation(self.trained_length), self.config.data
        files = [slides] if isinstance(slides, (str, Path)) else slides
        records = []
        for path in map(expand, map(str, files)):
            slide = open_case(path.stem, [[str(path)]], data.h5_key, data.image_dim, data.wanted_encoder)
            records += self.describe([slide], list(dict.fromkeys(texts)), generation)
        return records if files is slides else records[0]

    @cached_property
    def _training_slides(self) -> TrainingSlides | None:
        """What the run has left beside the checkpoint, its judge among it, which is set."""
        path = self.checkpoint.path if self.checkpoint else None
        training = TrainingSlides.load(str(path), self, searchable=False) if path else None
        self.judge = judge_of(self, training)
        return training

    @torch.no_grad()
    def describe(self, slides: list[Slide], texts: list[str], options: GenerationOptions,
                 vectors: dict[str, SlideVectors] | None = None) -> list[Record]:
        """Read and encode slides, caption them together and compare each with texts; see `describe_encoded`.

        Args:
            slides: B opened slides.

        Raises:
            UserError: An unreadable file, tiles whose values overflow in the model, or out of memory.
        """
        ids = [slide.slide_id for slide in slides]
        tokens, facts = [], []
        with memory_errors(ids[0], "while it is captioned"):
            for slide in slides:
                tiles = read_tiles(slide)
                tokens.append(self.encode(tiles))
                facts.append(facts_of(tiles))
            return self.describe_encoded(ids, np.stack(tokens), texts, options, vectors, facts)

    @torch.no_grad()
    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Image tokens (n, D) of a slide's tiles (N, C), rounded as the slide cache keeps them.

        A slide is encoded alone: on two CPU cores that is as fast as four together, needs no padding, and its tokens
        do not depend on other slides.
        """
        if not tiles.flags.writeable:  # a map of its file: torch takes no such array without a warning
            tiles = tiles.copy()
        device = self.precision.device
        batch = torch.from_numpy(tiles).unsqueeze(0).to(device)
        with self.precision.autocast():
            tokens = self.model.image_tokens(batch, torch.ones(batch.shape[:2], dtype=torch.bool, device=device))[0]
        with np.errstate(over="ignore"):  # infinite if it does not fit: reported with the slide's name
            return tokens.float().cpu().numpy().astype(token_type(self.precision.name))

    @torch.no_grad()
    def look_again(self, ids: list[str], tokens: np.ndarray, options: GenerationOptions) -> SlideVectors:
        """What look-ups and calibration need of captioned slides, from their image tokens (B, n, D)."""
        image_tokens = self._on_device(tokens)
        with self.precision.autocast():
            if self.form is not None:
                self.form.measure(self.model.decoder, image_tokens, ids, options.num_beams)
            return SlideVectors.of(self.model.decoder, image_tokens)

    def _on_device(self, tokens: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tokens).to(self.precision.device, self.model.decoder.dtype)

    @torch.no_grad()
    def describe_encoded(self, ids: Sequence[str], tokens: np.ndarray, texts: list[str], options: GenerationOptions,
                         vectors: dict[str, SlideVectors] | None = None,
                         facts: Sequence[TileFacts] | None = None) -> list[Record]:
        """Caption encoded slides together and compare each with texts.

        Args:
            ids: of B slides.
            tokens: their image tokens (B, n, D).
            texts: for each the record gets the cosine similarity, and for several their probabilities.
            options: how to decode.
            vectors: filled with {slide id: what look-ups need of it}.
            facts: about the tiles of each slide; without them slides are not judged.

        Returns:
            One record per slide.

        Raises:
            UserError: Tiles whose values overflow in the model.
        """
        image_tokens = self._on_device(tokens)  # (B, n, D)
        with self.precision.autocast():
            of_slides = SlideVectors.of(self.model.decoder, image_tokens)
            if self.form is not None:
                records = self.form.fill(self.model.decoder, image_tokens, list(ids), options.num_beams)
            else:
                records = self._free_captions(ids, image_tokens, of_slides, options)
        is_finite = np.isfinite(of_slides.contrastive).all(axis=1)
        if not is_finite.all():
            raise UserError(ids[int(is_finite.argmin())], "its tiles make the model overflow",
                            "check how its features were extracted")
        if facts is not None:
            judge_slides(self.judge, records, of_slides, facts)
        if texts:
            self._add_similarities(records, of_slides.contrastive, texts)
        if vectors is not None:
            vectors.update(zip(ids, of_slides.rows(), strict=True))
        return records

    def _free_captions(self, ids: Sequence[str], image_tokens: torch.Tensor, slides: SlideVectors,
                       options: GenerationOptions) -> list[Record]:
        """Records of B slides from their image tokens (B, n, D), with captions as the decoder writes them."""
        special = {name: getattr(self.tokenizer, name) for name in ("bos_id", "eos_id", "pad_id")}
        captions = generate(self.model.decoder, image_tokens, options, names=ids, **special)
        captions, answers = self._answers(image_tokens, captions, slides, options.max_length)
        log_probabilities, mask = caption_log_probabilities(self.model.decoder, image_tokens, captions,
                                                            options.max_length, temperature=self._token_temperature,
                                                            **special)
        if self.judges_captions:
            confidences = self.judge.probabilities(answers, captions, log_probabilities.sum(1).cpu().numpy(), slides)
        else:
            confidences = mean_probabilities(log_probabilities, mask)
        records = []
        for slide_id, answer, caption, slide_confidence in zip(ids, answers, captions, confidences, strict=True):
            record = new_record(slide_id, caption=answer, confidence=slide_confidence,
                                finished=has_ended(caption, options.max_length))
            if self.rerank_with and answer in self.rerank_with.counts:
                record["from_training_text"] = True
            records.append(record)
        return records

    @property
    def _token_temperature(self) -> float:
        """Of token probabilities: the calibrated one, unless they are but evidence for a judge."""
        return 1.0 if self.judges_captions else self.temperature or 1.0

    @property
    def judges_captions(self) -> bool:
        """Whether the confidence is the probability that a whole caption is right, as its judge has it."""
        return self.judge is not None and self.judge.confidence is not None

    def _answers(self, image_tokens: torch.Tensor, captions: list[list[int]], slides: SlideVectors,
                 max_length: int) -> tuple[list[list[int]], list[str]]:
        """The captions of B slides, as ids and as text, after re-ranking if that is wanted."""
        texts = [self.tokenizer.decode(caption) for caption in captions]
        training = self.rerank_with
        if training is None:
            return captions, texts
        captions = list(captions)
        better = rerank(self.model.decoder, image_tokens, captions, slides, training, max_length)
        for row, text in enumerate(better):
            if text is not None:
                captions[row], texts[row] = training.encode(text)[1:-1], text
        return captions, texts

    def _add_similarities(self, records: list[Record], vectors: np.ndarray, texts: list[str]) -> None:
        """vectors: unit vectors (B, dim_latents) of the slides."""
        cosines = torch.from_numpy(vectors @ self._embed_given(tuple(texts)).T)  # (B, texts)
        for record, row in zip(records, cosines, strict=True):
            record["similarity"] = dict(zip(texts, row.tolist(), strict=True))
            if len(texts) > 1:
                probabilities = (row * self._logit_scale()).softmax(0)
                record["probability"] = dict(zip(texts, probabilities.tolist(), strict=True))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, dim_latents)."""
        with self.precision.autocast():
            return embed_texts(self.model.decoder, self.tokenizer, texts, self.config.data.max_seq_len)

    def _embed_given(self, texts: tuple[str, ...]) -> np.ndarray:
        """`embed_texts` of texts that every slide of a job is compared with: computed once."""
        if texts not in self._given:
            if len(self._given) > 1:  # --text and --prompts; a served page may ask for many
                self._given.clear()
            self._given[texts] = self.embed_texts(texts)
        return self._given[texts]

    @torch.no_grad()
    def class_probabilities(self, embeddings: np.ndarray, prompts: dict[str, list[str]]) -> np.ndarray:
        """Zero-shot classification as Prism does it: softmax over all prompts, summed per class.

        Args:
            embeddings: Unit vectors (B, dim_latents) of the slides.
            prompts: {class: its prompts}.

        Returns:
            (B, classes)
        """
        all_prompts = [text for texts in prompts.values() for text in texts]
        cosines = torch.from_numpy(embeddings @ self._embed_given(tuple(all_prompts)).T)
        probabilities = (cosines * self._logit_scale()).softmax(1)
        by_class = probabilities.split([len(texts) for texts in prompts.values()], dim=1)
        return torch.stack([part.sum(1) for part in by_class], dim=1).numpy()

    def _logit_scale(self) -> torch.Tensor:
        return self.model.decoder.logit_scale.float().cpu()


def _ids(data: dict[str, Any], key: str) -> list[str]:
    """The ids of a split; none in checkpoints of runs without it."""
    ids = data.get(key)
    return [*ids] if isinstance(ids, list) else []
