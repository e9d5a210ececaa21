"""The training slides of a run: the nearest to a given slide, and the most common text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..checkpoints.format import Checkpoint
from ..checkpoints.hf_folder import model_path
from ..checkpoints.nearest_index import NEAREST, read_nearest, require_fit, rerank_is_better, same_weights
from ..common.errors import UserError
from ..common.files import expand
from ..common.log import logger
from ..common.visible import visible
from ..config.schema import Config
from ..data.tokenizer import Tokenizer
from ..models.captioner import SlideCaptioner
from ..models.training_texts import TrainingTexts
from ..templates.unlearned import unlearned
from .form import Form
from .judge import Judge
from .options import InferenceOptions
from .records import Nearest


class Captioner(Protocol):
    """What is read of `captioner.Captioner`, which looks texts up through this module."""

    model: SlideCaptioner
    tokenizer: Tokenizer
    config: Config
    checkpoint: Checkpoint | None
    form: Any


@dataclass(frozen=True)
class TrainingSlides:
    """The nearest.pt beside a checkpoint.

    Attributes:
        index: `ids`, `texts` of each, `embeddings` (slides, dim_latents) or None.
        texts: what looks up texts.
        judge: what judges captions and slides; None if the index is of an older version.
    """

    index: dict[str, Any]
    texts: TrainingTexts
    judge: Judge | None = None

    @classmethod
    def load(cls, checkpoint: str | None, captioner: Captioner, searchable: bool) -> TrainingSlides | None:
        """The training slides of a checkpoint, None if there are none of the same training data.

        Args:
            checkpoint: None for Prism itself, which has none.
            captioner: The model of the checkpoint.
            searchable: Require an index whose embeddings come from the checkpoint's own weights.

        Raises:
            UserError: A damaged index, or none that is searchable where one is required.
        """
        path = model_path(expand(checkpoint)) if checkpoint else None
        index = _read_index(path, captioner)
        if searchable:
            _check_searchable(index, captioner, path)
        if index is None:
            return None
        texts = _texts(index, captioner)
        return cls(index, texts, Judge.of_index(index, texts, same_weights=same_weights(index, captioner.checkpoint)))

    def all_texts(self) -> list[str]:
        """The texts of all slides, with their repeats."""
        return [text for texts_of_slide in self.index["texts"] for text in texts_of_slide]

    def nearest(self, embedding: np.ndarray, count: int) -> list[Nearest]:
        """The `count` training slides of highest cosine similarity to a unit vector (dim_latents,)."""
        cosines = self.index["embeddings"].numpy() @ embedding
        order = np.argsort(-cosines, kind="stable")[:count]
        return [Nearest(id=self.index["ids"][i], similarity=float(cosines[i]), texts=self.index["texts"][i])
                for i in order]


def _read_index(checkpoint: Path | None, captioner: Captioner) -> dict[str, Any] | None:
    """The index beside a checkpoint, None if there is none. Raises UserError if it does not fit the model."""
    if checkpoint is None or captioner.checkpoint is None:
        return None
    index = read_nearest(checkpoint, captioner.checkpoint)
    if index is not None:
        require_fit(index, checkpoint.with_name(NEAREST), captioner.model.decoder.dim_latents,
                    captioner.config.model.image_dim, len(captioner.tokenizer))
    return index


def judge_of(captioner: Captioner, training: TrainingSlides | None) -> Judge | None:
    """What judges the captions of a model; None, with a warning, where its run has left nothing to do it with: slides
    are then judged by their tiles alone."""
    judge = training.judge if training else None
    if judge is None and captioner.checkpoint is not None:
        logger.warning("no %s with what is needed to recognise unusual slides beside the checkpoint: only a single "
                       "tile, and tiles that are zero or all equal, are noticed; %s", NEAREST,
                       "an older run gets it by the same training command with --resume auto")
    return judge


def warn_of_unlearned(form: Form | None, training: TrainingSlides | None) -> None:
    """Warn of each slot of a template whose words or values stand in no training text.

    Without a template, or without the training texts, nothing is said.
    """
    if form is None or training is None:
        return
    for slot, what in unlearned(form.template, training.all_texts()):
        logger.warning("slot %s: %s in no training text: the model has not learned it, its probabilities mean nothing",
                       visible(slot), visible(what))


def texts_to_rerank_with(options: InferenceOptions, captioner: Captioner,
                         training: TrainingSlides | None) -> TrainingTexts | None:
    """The training texts that may replace a caption, None if --rerank is off.

    auto is on where it made the captions of the validation slides better after training, but not for samples and not
    for captions of a template.

    Raises:
        UserError: --rerank true without a linear probe.
    """
    if options.rerank == "false" or captioner.form is not None:
        return None
    texts = _texts_with_probe(training)
    if options.rerank == "auto":
        return texts if _reranks_by_itself(captioner.checkpoint, options) else None
    if texts is None:
        raise UserError("--rerank", f"no {NEAREST} with a linear probe beside the checkpoint",
                        "use the best_model.pth of a finished run, in its run folder, or leave --rerank out")
    return texts


def _texts_with_probe(training: TrainingSlides | None) -> TrainingTexts | None:
    if training is None or training.texts.probe is None:
        return None
    return training.texts


def _reranks_by_itself(checkpoint: Checkpoint | None, options: InferenceOptions) -> bool:
    """Whether `--rerank auto` is on."""
    if checkpoint is None or options.do_sample:
        return False
    return rerank_is_better(checkpoint)


def _texts(index: dict[str, Any], captioner: Captioner) -> TrainingTexts:
    """What looks up texts, from what is valid for this model: another checkpoint of the run has another contrastive
    space, and where Prism was trained also other slide embeddings."""
    unchanged = same_weights(index, captioner.checkpoint)
    if not unchanged and not captioner.config.prism.freeze:
        index = index | {"slide_embeddings": None, "probe": None}
    return TrainingTexts.of_index(index, captioner.tokenizer, captioner.config.data.max_seq_len,
                                  same_weights=unchanged)


def _check_searchable(index: dict[str, Any] | None, captioner: Captioner, checkpoint: Path | None) -> None:
    """Raise UserError if the nearest slides of this model cannot be found with this index."""
    if index is None or not same_weights(index, captioner.checkpoint):
        raise UserError("--nearest", f"no {NEAREST} of these weights beside {checkpoint or 'Prism'}",
                        "use the best_model.pth of a finished run, in its run folder")
    if index["embeddings"] is None:
        raise UserError("--nearest", "this model was trained without the contrastive loss and has no slide embeddings",
                        "train with model.contrastive_loss_weight above 0")
