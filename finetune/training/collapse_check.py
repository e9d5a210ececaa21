"""Do captions depend on their slides? A captioner can learn to say the commonest text whatever it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from coca_pytorch import CoCaOutputs
from prism import GenerationOptions

from ..common.distributed import World
from ..common.log import logger
from ..data.batch import Batch
from ..models.captioner import SlideCaptioner
from ..models.generation import generate
from .caption_validation import CaptionEvaluation

_SHUFFLED = 64  # validation slides whose loss is computed once more, each with another one's text
_CAPTIONED = 8  # validation slides that are captioned
_LEAST_GAP = 0.01  # of the caption loss
_LEAST_REFERENCES = 4  # different ones, before equal captions mean anything


@dataclass
class CollapseCheck:
    """Two cheap signs of collapse, taken while validating; both draw nothing from a random generator.

    `val_shuffled_gap`: caption loss with the slides of a batch exchanged minus caption loss; near 0, the slides do not
    matter. `val_distinct_captions`: share of different captions among the first few slides, greedily decoded.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    evaluation: CaptionEvaluation | None = None
    _epoch: int = 0
    _gap: float = 0.0  # sums, over words
    _loss: float = 0.0
    _words: int = 0
    _seen: int = 0
    _captions: list[tuple[int, ...]] = field(default_factory=list)
    _references: set[tuple[int, ...]] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)

    def begin(self, epoch: int) -> None:
        """Forget the last epoch."""
        self._epoch = epoch
        if self.evaluation:
            self.evaluation.begin()
        self._gap = self._loss = 0.0
        self._words = self._seen = 0
        self._captions, self._references = [], set()

    def see(self, model: SlideCaptioner, batch: Batch, outputs: CoCaOutputs) -> None:
        """Look at a validation batch whose slides are encoded, `image_tokens` (B, n, D), and the model's outputs."""
        if self.evaluation:
            self.evaluation.see(model, batch)
        if self._seen < _SHUFFLED and len(batch.ids) > 1:
            order = [len(batch.ids) - 1, *range(len(batch.ids) - 1)]  # autocast on CPU has no float16 `roll`
            loss = outputs.caption_loss.item()
            exchanged = replace(batch, image_tokens=batch.image_tokens[order])
            # where a loss of the user's own replaces the caption loss, that is computed only along with the logits
            self._gap += model(exchanged, logits=not model.decoder.caption_loss_weight).caption_loss.item() - loss
            self._loss += loss
            self._words += outputs.num_tokens
        self._seen += len(batch.ids)
        if (room := _CAPTIONED - len(self._captions)) > 0:
            options = GenerationOptions(max_length=batch.labels.shape[1] + 1)
            tokens = batch.image_tokens[:room].to(model.decoder.dtype)
            ids = generate(model.decoder, tokens, options, bos_id=self.bos_id, eos_id=self.eos_id, pad_id=self.pad_id)
            self._captions += map(tuple, ids)
            self._references |= {tuple(row[mask].tolist()) for row, mask in zip(batch.labels[:room], batch.text_mask,
                                                                                strict=False)}

    def scores(self, world: World) -> dict[str, float]:
        """The signs over what all ranks have seen."""
        evaluated = self.evaluation.scores(self._epoch, world) if self.evaluation else {}
        self._gap, self._loss, words = world.sum([self._gap, self._loss, self._words])
        self._words = int(words)
        self._captions = [c for captions in world.gather(self._captions) for c in captions]
        self._references = set().union(*world.gather(self._references))
        if not self._words:
            return evaluated
        return {"val_shuffled_gap": self._gap / self._words,
                "val_distinct_captions": len(set(self._captions)) / len(self._captions)} | evaluated

    def warn(self) -> None:
        """Warn, once per run and sign, if the epoch just seen looks collapsed."""
        if self._words and self._gap < _LEAST_GAP * self._loss:
            self._once("the validation loss hardly changes when slides are exchanged (gap %.4f of %.4f): captions do "
                       "not depend on their slides", self._gap / self._words, self._loss / self._words)
        if len(set(self._captions)) == 1 and len(self._references) >= _LEAST_REFERENCES:
            self._once("one and the same caption for %d slides with %d different texts", len(self._captions),
                       len(self._references))

    def _once(self, message: str, *values: float) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message, *values)
