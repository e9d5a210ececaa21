"""One number for a report, in Chinese too: likeness of the text by our tokens, and of what it says by our findings.

It weighs the likeness of texts and of content as the REG2025 challenge does, without the embedding: 0.15 ROUGE and
0.15 BLEU to 0.4 findings, over their sum. It is another score, not to be compared with the challenge's: Chinese is
split by character, a finding counts with its status (present, absent, uncertain), and equal texts have 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .findings import FindingDictionary
from .reg2025 import subsequence_f1
from .text_metrics import Statistic, Tokens, mean_of, tokenizer_of

_ROUGE_WEIGHT, _BLEU_WEIGHT, _FINDINGS_WEIGHT = 0.15 / 0.7, 0.15 / 0.7, 0.4 / 0.7
_ORDER = 4


def text_findings_statistics(dictionary: FindingDictionary, captions: Sequence[str],
                             references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """The mean over slides of the score with the reference that gives most."""
    tokenize = tokenizer_of(references)

    def of_pair(caption: str, reference: str) -> float:
        said, true = tokenize(caption), tokenize(reference)
        return (_ROUGE_WEIGHT * subsequence_f1(said, true) + _BLEU_WEIGHT * gram_precision(said, true)
                + _FINDINGS_WEIGHT * finding_overlap(dictionary, caption, reference))

    best = [max(of_pair(caption, text) for text in texts) for caption, texts in zip(captions, references, strict=True)]
    return {"text_findings": mean_of(best)}


def gram_precision(caption: Tokens, reference: Tokens) -> float:
    """Share of the caption's 4-grams that the reference has, each as often as there; of shorter runs where the caption
    is shorter."""
    order = min(_ORDER, len(caption))
    said, true = _grams(caption, order), _grams(reference, order)
    return (said & true).total() / said.total() if order else 0.0


def _grams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i:i + order]) for i in range(len(tokens) - order + 1))


def finding_overlap(dictionary: FindingDictionary, caption: str, reference: str) -> float:
    """Jaccard index of (finding, status); 1 where neither text names a finding."""
    said, true = dictionary.read(caption).items(), dictionary.read(reference).items()
    return len(said & true) / len(said | true) if said | true else 1.0
