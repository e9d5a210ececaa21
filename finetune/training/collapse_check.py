"""Do captions depend on their slides? A captioner can learn to write the most common text for every slide."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..common.distributed import World
from .validation import ObservedBatch

_SHUFFLED = 64  # validation slides whose loss is computed once more, each with the text of another slide
_CAPTIONED = 8  # validation slides that are captioned
_MIN_RELATIVE_GAP = 0.01  # of the caption loss
_MIN_REFERENCES = 4  # different ones, before equal captions mean anything
_FIRST_WARNING = 0.1  # of all epochs: at first a captioner learns the language of the texts, not yet the slides


@dataclass
class CollapseCheck:
    """An observer of the validation pass that looks for two cheap signs of collapse.

    `val_shuffled_gap` is the caption loss with the slides of a batch exchanged, minus the caption loss; near 0, the
    slides do not matter. `val_distinct_captions` is the share of different captions among the first few slides.

    Attributes:
        epochs: Of the run; there is no warning in the first tenth of them.
    """

    epochs: int = 0
    _epoch: int = 0
    _gap_sum: float = 0.0  # over tokens, as is the loss
    _loss_sum: float = 0.0
    _num_tokens: int = 0
    _num_slides: int = 0
    _captions: list[tuple[int, ...]] = field(default_factory=list)
    _references: set[tuple[int, ...]] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)

    def begin(self, epoch: int) -> None:
        """Reset for a new pass."""
        self._epoch = epoch
        self._gap_sum = self._loss_sum = 0.0
        self._num_tokens = self._num_slides = 0
        self._captions, self._references = [], set()

    def observe(self, observed: ObservedBatch) -> None:
        """Add a micro-batch to both signs, until there are enough slides for each."""
        num_slides = len(observed.batch.ids)
        if self._num_slides < _SHUFFLED and num_slides > 1:
            self._add_gap(observed)
        self._num_slides += num_slides
        room = _CAPTIONED - len(self._captions)
        if room > 0:
            self._add_captions(observed, range(min(room, num_slides)))

    def _add_gap(self, observed: ObservedBatch) -> None:
        model, batch = observed.model, observed.batch
        order = [len(batch.ids) - 1, *range(len(batch.ids) - 1)]  # autocast on CPU has no float16 `roll`
        exchanged = replace(batch, image_tokens=batch.image_tokens[order])
        # if its weight is 0 (with a custom loss), the caption loss is only computed together with the logits
        exchanged_loss = model(exchanged, logits=not model.decoder.caption_loss_weight).caption_loss.item()
        loss = observed.outputs.caption_loss.item()
        self._gap_sum += exchanged_loss - loss
        self._loss_sum += loss
        self._num_tokens += observed.outputs.num_tokens

    def _add_captions(self, observed: ObservedBatch, rows: range) -> None:
        batch = observed.batch
        length = batch.labels.shape[1]  # captions longer than every text are compared up to that length
        self._captions += [tuple(ids[:length]) for ids in observed.captions(rows)]
        for row in rows:
            self._references.add(tuple(batch.labels[row][batch.text_mask[row]].tolist()))

    def scores(self, world: World) -> dict[str, float]:
        """Both signs, over the slides of all ranks; none if no batch had two slides."""
        self._gap_sum, self._loss_sum, num_tokens = world.sum([self._gap_sum, self._loss_sum, self._num_tokens])
        self._num_tokens = int(num_tokens)
        self._captions = [caption for of_rank in world.gather(self._captions) for caption in of_rank]
        self._references = set().union(*world.gather(self._references))
        if not self._num_tokens:
            return {}
        return {"val_shuffled_gap": self._gap_sum / self._num_tokens,
                "val_distinct_captions": len(set(self._captions)) / len(self._captions)}

    def warnings(self) -> list[str]:
        """A message for each sign of collapse after this pass, once per run."""
        if self._epoch <= self.epochs * _FIRST_WARNING:
            return []
        messages = {"gap": self._gap_warning(), "captions": self._captions_warning()}
        new = []
        for sign, message in messages.items():
            if message and sign not in self._warned:
                self._warned.add(sign)
                new.append(message)
        return new

    def _gap_warning(self) -> str | None:
        if not self._num_tokens or self._gap_sum >= _MIN_RELATIVE_GAP * self._loss_sum:
            return None
        gap, loss = self._gap_sum / self._num_tokens, self._loss_sum / self._num_tokens
        return (f"the validation loss hardly changes when slides are exchanged (gap {gap:.4f} of {loss:.4f}): captions "
                "do not depend on their slides")

    def _captions_warning(self) -> str | None:
        if len(set(self._captions)) != 1 or len(self._references) < _MIN_REFERENCES:
            return None
        return (f"one and the same caption for {len(self._captions)} slides with {len(self._references)} different "
                "texts")
