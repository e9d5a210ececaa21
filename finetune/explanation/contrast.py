"""What a phrase of a caption is compared with: the best text that the model could have written in its place.

The probability of a phrase alone says little of its reasons: where the model is certain, it hardly moves. Its log odds
against the alternative do: log p(可见坏死) - log p(未见坏死), both after the same words.

The alternative is the decoder's own second choice for this slide, which works with each decoder and tokenizer: at each
token of the phrase, and at the marks before and behind it, one of the most probable other tokens is taken and the text
continued greedily to the end of the phrase. The most probable text that results is the alternative; but phrases that
stand at the same place of training texts (the second in the second place) come first, then other phrases of them. Where
a model is certain, all else is about as improbable, and a slip such as 肺鳞状状细胞癌 would say nothing of the slide.
It may be empty: the caption could have ended before the phrase.

Shapes: n image tokens of a slide, of dimension D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..models.captioner import CaptionDecoder
from .caption_tokens import MARKS, CaptionTokens, KnownPhrases, bare, ends_phrase, is_mark

_CHOICES = 3  # other tokens that are looked at, in the place of each token of a phrase
_TRIALS = 24  # branches that are continued, the most probable first
_EXTRA = 16  # tokens by which an alternative may be longer than twice its phrase


@dataclass(frozen=True)
class Contrast:
    """A phrase and its alternative, as token ids that follow the same beginning of the caption.

    Attributes:
        before: [begin token, ...] of both.
        phrase: With the marks around it, and the end token if it ends the caption.
        alternative: To its own mark or the end token.
        text: Of the alternative, without marks around it; "" if the caption ends instead.
    """

    before: list[int]
    phrase: list[int]
    alternative: list[int]
    text: str


def log_odds(decoder: CaptionDecoder, image_tokens: Tensor, contrast: Contrast) -> Tensor:
    """Log odds of a phrase against its alternative given image tokens (n, D), a differentiable scalar."""
    phrase, alternative = (_log_prob(decoder, image_tokens, contrast.before, ids)
                           for ids in (contrast.phrase, contrast.alternative))
    return phrase - alternative


def _log_prob(decoder: CaptionDecoder, image_tokens: Tensor, before: list[int], ids: list[int]) -> Tensor:
    """Log probability of ids after [begin token, ...]."""
    log_probs = next_token_log_probs(decoder, image_tokens, [*before, *ids[:-1]], begin=len(before) - 1)
    return log_probs.gather(1, torch.tensor(ids, device=log_probs.device).unsqueeze(1)).sum()


def next_token_log_probs(decoder: CaptionDecoder, image_tokens: Tensor, ids: list[int], begin: int = 0) -> Tensor:
    """Log probabilities (len(ids) - begin, vocabulary) of the tokens after each of ids[begin:], float32.

    Args:
        image_tokens: (n, D)
        ids: [begin token, ...]
    """
    text = torch.tensor([ids], device=image_tokens.device)
    logits = decoder(text, image_tokens=image_tokens.unsqueeze(0), text_mask=torch.ones_like(text, dtype=torch.bool))
    return logits[0, begin:].float().log_softmax(-1)


class Alternatives:
    """Finds the alternative of each phrase of a slide's caption.

    Attributes:
        token_log_probs: (T,) of the caption's tokens after the begin token.
    """

    @torch.no_grad()
    def __init__(self, decoder: CaptionDecoder, tokenizer: Tokenizer, image_tokens: Tensor,
                 caption: CaptionTokens, known: KnownPhrases) -> None:
        """
        Args:
            image_tokens: (n, D) of the slide.
            known: Phrases of the training texts; none if they are not at hand.
        """
        self._decoder, self._tokenizer, self._caption, self._known = decoder, tokenizer, caption, known
        self._context = decoder.embed_image(image_tokens=image_tokens.unsqueeze(0))[1]
        self._never = list({tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id, *decoder.never_generated}
                           - {tokenizer.eos_id, None})  # some of these may be equal
        log_probs = next_token_log_probs(decoder, image_tokens, caption.ids[:-1])
        labels = torch.tensor(caption.ids[1:], device=log_probs.device).unsqueeze(1)
        self.token_log_probs = log_probs.gather(1, labels).squeeze(1)
        log_probs[:, self._never] = -torch.inf
        others = log_probs.scatter(1, labels, -torch.inf)
        self._likely = others.topk(min(_CHOICES, others.shape[1]))
        spelled = [tokenizer.encode(mark) for mark in MARKS]
        ends = torch.tensor([tokenizer.eos_id, *{ids[0] for ids in spelled if len(ids) == 1} - {tokenizer.eos_id}],
                            device=labels.device)
        likely_ends = others[:, ends].topk(min(_CHOICES, len(ends)))
        self._likely_ends = likely_ends.values, ends[likely_ends.indices]

    @torch.no_grad()
    def of_phrase(self, place: int, span: range) -> Contrast | None:
        """A phrase of the caption, contrasted; None if no alternative was found.

        Args:
            place: Its number, from 0.
            span: Its tokens, as indices into the pieces of the caption.
        """
        ids = self._caption.ids
        begin, end = self._with_marks(span)
        before, phrase = ids[:begin], ids[begin:end]
        own_text, best, best_rank = self._text(before, phrase), None, (0, -torch.inf)
        for score, branch in self._branches(span, begin, end)[:_TRIALS]:
            if (KnownPhrases.BEST, score) <= best_rank:  # no text is more probable than its beginning
                break
            found, score = self._complete(before, branch, score, 2 * len(phrase) + _EXTRA)
            text = self._text(before, found)
            if text == own_text or score == -torch.inf:
                continue
            rank = (self._known.rank(place, text), score)
            if rank > best_rank:
                best, best_rank = Contrast(before, phrase, found, text), rank
        return best

    def _with_marks(self, span: range) -> tuple[int, int]:
        """First id of a phrase and of what follows it, if the mark before it and its end belong to it."""
        ids, pieces = self._caption
        begin, end = span.start + 1, span.stop + 1  # the begin token is no piece
        if span.start and is_mark(pieces[span.start - 1]):
            begin -= 1
        if end < len(ids) and self._is_end(ids[end]):
            end += 1
        return begin, end

    def _branches(self, span: range, begin: int, end: int) -> list[tuple[float, list[int]]]:
        """(log probability, ids) of the beginnings of ids[begin:end] with another last token, the most probable first.

        The mark before a phrase is replaced by an end alone: other words there would belong to the phrase before. The
        end is replaced by words alone: with another end the phrase is the same.
        """
        ids, branches, so_far = self._caption.ids, [], 0.0
        for i in range(begin, end):
            likely = self._likely_ends if i <= span.start else self._likely
            for log_prob, other in zip(*(row[i - 1].tolist() for row in likely), strict=True):
                if log_prob > -torch.inf and not (i > span.stop and self._is_end(other)):
                    branches.append((so_far + log_prob, [*ids[begin:i], other]))
            so_far += self.token_log_probs[i - 1].item()
        return sorted(branches, reverse=True)

    def _complete(self, before: list[int], branch: list[int], score: float, most: int) -> tuple[list[int], float]:
        """Continue a branch greedily to the end of its phrase: ids and log probability, -inf if `most` cut them."""
        if self._decoder.max_positions is not None:
            most = min(most, self._decoder.max_positions - len(before))
        cache, ids, fed = self._decoder.start_decoding(self._context), list(branch), [*before, *branch]
        while not self._is_complete(before, ids):
            if len(ids) >= most:
                return ids, -torch.inf
            log_probs = self._decoder.decode_step(torch.tensor([fed], device=self._context.device), cache)[0].float()
            log_probs = log_probs.log_softmax(-1)
            log_probs[self._never] = -torch.inf
            best = log_probs.max(-1)
            score += best.values.item()
            fed = [int(best.indices)]
            ids += fed
        return ids, score

    def _is_complete(self, before: list[int], ids: list[int]) -> bool:
        is_empty = not self._text(before, ids)  # so far nothing but the mark before the phrase
        return ids[-1] == self._tokenizer.eos_id or (not is_empty and ends_phrase(self._tokenizer.decode(ids[-1:])))

    def _is_end(self, token_id: int) -> bool:
        return token_id == self._tokenizer.eos_id or is_mark(self._tokenizer.decode([token_id]))

    def _text(self, before: list[int], ids: list[int]) -> str:
        """The text of tokens after others, without marks around it."""
        start, whole = self._tokenizer.decode(before[1:]), self._tokenizer.decode([*before[1:], *ids])
        return bare(whole.removeprefix(start))
