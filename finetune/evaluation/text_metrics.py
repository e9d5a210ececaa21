"""Scores of captions against reference texts. Each is split into one row of numbers per slide and a function of the sum
of rows, so that a resample of the slides costs a sum and not another comparison of texts.

Implemented here where no maintained library serves Chinese: rouge-score drops all that is not ASCII, pycocoevalcap
needs Java and 100 MB. Name, direction and range of every score: `common/score_table.py`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..common.log import logger

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

Statistic = Callable[[np.ndarray], float]  # indices of slides, each as often as it is drawn -> the score of these
Tokens = list[str]
NGram = tuple[str, ...]
_SEPARATORS = re.compile(r"(?:[，。；、,;\n]|\.(?!\d))+")  # 3.5 cm is one number
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_ORDERS = range(1, 5)  # n-grams of BLEU and CIDEr
_ROUGE_BETA = 1.2  # how much heavier recall weighs, as in the COCO tools
# Of the token alignment, as METEOR 1.5 has them for English: weights of precision and recall in the mean (alpha,
# 1 - alpha), exponent and weight of the fragmentation (beta, gamma)
_ALIGN_PRECISION, _ALIGN_RECALL, _ALIGN_BETA, _ALIGN_GAMMA = 0.85, 0.15, 0.2, 0.6
_ALIGN_TOKENS = 1000  # of a text that are compared; reports have a tenth of it
_CIDER_SIGMA = 6  # tokens, of the length penalty of CIDEr-D


def text_statistics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """The text scores of captions.

    BLEU and chrF are sacreBLEU's corpus scores, the others means over slides. Captions and references are compared as
    they are written, case included.

    Args:
        captions: One per slide.
        references: One or more texts per slide.

    Returns:
        {score: its statistic} in the order of the score table.
    """
    scores = _bleu(captions, references) | _chrf(captions, references) | _token_scores(captions, references)
    scores["distinct_share"] = lambda indices: distinct_share([captions[i] for i in indices])
    scores["exact_match"] = mean_of([c in texts for c, texts in zip(captions, references, strict=True)])
    return scores


def _token_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    tokenize = tokenizer_of(references)
    caption_tokens = [tokenize(caption) for caption in captions]
    reference_tokens = [[tokenize(text) for text in texts] for texts in references]
    scores = {}
    for name, score_caption in CAPTION_SCORES.items():
        pairs = zip(caption_tokens, reference_tokens, strict=True)
        scores[name] = mean_of([score_caption(caption, texts) for caption, texts in pairs])
    _warn_of_long(itertools.chain(caption_tokens, *reference_tokens))
    scores["cider"] = mean_of(cider(caption_tokens, reference_tokens))
    return scores


def _warn_of_long(texts: Iterable[Tokens]) -> None:
    num_long = sum(len(text) > _ALIGN_TOKENS for text in texts)
    if num_long:
        logger.warning("token_alignment compares the first %d tokens of %d longer texts", _ALIGN_TOKENS, num_long)


def signature(references: Sequence[Sequence[str]]) -> str:
    """The settings that two comparable scores must share, in sacreBLEU's format."""
    import sacrebleu  # 0.2 s, lxml among it: only where texts are scored

    counts = [len(texts) for texts in references]
    fewest, most = min(counts), max(counts)
    num_references = str(most) if fewest == most else f"{fewest}-{most}"
    return (f"tok:{language(references)}|case:mixed|nrefs:{num_references}|"
            f"BLEU+chrF:sacrebleu-{sacrebleu.__version__}|bleu:corpus,smooth:exp,eff:yes|chrf:chars6,words0,beta2|"
            "rouge_l:beta1.2,mean|"
            "token_alignment:exact tokens,alpha0.85,beta0.2,gamma0.6,mean (not METEOR)|"
            "cider:CIDEr-D,n4,sigma6,idf of these references,mean")


def language(references: Sequence[Sequence[str]]) -> str:
    """sacreBLEU's tokenizer for a corpus: `zh` (Chinese by character, the rest by word) where most texts have Chinese
    characters, else `13a` (by word)."""
    texts = [text for several in references for text in several]
    num_chinese = sum(1 for text in texts if _CHINESE.search(text))
    return "zh" if 2 * num_chinese > len(texts) else "13a"


def tokenizer_of(references: Sequence[Sequence[str]]) -> Callable[[str], Tokens]:
    """The function that splits a text into tokens, chosen by the language of the references."""
    tokenize = _sacre_bleu(references).tokenizer
    return lambda text: tokenize(text.rstrip()).split()


def mean_of(values: ArrayLike) -> Statistic:
    """The mean of one value per slide."""
    per_slide = np.asarray(values, dtype=float)
    return lambda indices: float(per_slide[indices].mean())


def rouge_l(caption: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013): F of the longest common subsequence.

    As in the COCO tools, hence in the papers on report generation: recall weighs 1.2 times as much as precision, and
    both are the best over the references.
    """
    common = [longest_common_subsequence(caption, reference) for reference in references]
    precision = max(common) / max(len(caption), 1)
    recall = max(length / max(len(reference), 1) for length, reference in zip(common, references, strict=True))
    if precision == 0:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence; bit-parallel (Hyyrö 2004), a row of the usual table being one
    integer."""
    positions: Counter[str] = Counter()  # token -> a bit for each place where `first` has it
    for i, token in enumerate(first):
        positions[token] |= 1 << i
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for token in second:
        matches = row & positions[token]
        row = (row + matches | row - matches) & all_ones
    return len(first) - row.bit_count()


def token_alignment(caption: Tokens, references: Sequence[Tokens]) -> float:
    """Precision and recall of aligned equal tokens, less where they stand in another order; of the best reference.

    The formula and the English parameters of METEOR 1.5 (Denkowski and Lavie 2014,
    https://aclanthology.org/W14-3348), but without its stems, synonyms, paraphrases and function words: the same
    number with and without Java and for every language. It is another score than published METEOR, hence its name. Of
    longer texts, only the first 1000 tokens are compared: the time grows with the square of the length.
    """
    begin = caption[:_ALIGN_TOKENS]
    return max(_align_one(begin, reference[:_ALIGN_TOKENS]) for reference in references)


def _align_one(caption: Tokens, reference: Tokens) -> float:
    matches, chunks = align_tokens(caption, reference)
    if matches == 0:
        return 0.0
    if chunks == 1 and matches == len(caption) == len(reference):
        return 1.0  # the reference itself is not fragmented, as in the original
    precision, recall = matches / len(caption), matches / len(reference)
    f_mean = precision * recall / (_ALIGN_PRECISION * precision + _ALIGN_RECALL * recall)
    fragmentation = chunks / matches
    return f_mean * (1 - _ALIGN_GAMMA * fragmentation**_ALIGN_BETA)


def align_tokens(caption: Tokens, reference: Tokens) -> tuple[int, int]:
    """Match each token with an equal one of the other text, the longest common run first.

    Returns:
        (matched tokens, runs of consecutive tokens they form). As many match as both texts have.
    """
    runs = _common_runs(caption, reference)
    heapify(runs)
    in_caption, in_reference = [False] * len(caption), [False] * len(reference)  # whether a token is matched
    matches = chunks = 0
    while runs:
        negative_length, i, j = heappop(runs)
        length = -negative_length
        is_free = [not in_caption[i + k] and not in_reference[j + k] for k in range(length)]
        if all(is_free):
            matches += length
            chunks += 1
            in_caption[i:i + length] = in_reference[j:j + length] = [True] * length
            continue
        for begin, end in _stretches(is_free):  # what longer runs have left of it
            heappush(runs, (begin - end, i + begin, j + begin))
    return matches, chunks


def _common_runs(caption: Tokens, reference: Tokens) -> list[tuple[int, int, int]]:
    """The runs of equal tokens that cannot be extended: (-length, start in the caption, start in the reference)."""
    positions: dict[str, list[int]] = {}
    for j, token in enumerate(reference):
        positions.setdefault(token, []).append(j)
    runs = []
    for i, token in enumerate(caption):
        for j in positions.get(token, ()):
            continues_a_run = i > 0 and j > 0 and caption[i - 1] == reference[j - 1]
            if not continues_a_run:
                runs.append((-_common_prefix(caption[i:], reference[j:]), i, j))
    return runs


def _common_prefix(first: Tokens, second: Tokens) -> int:
    """The number of tokens that both begin with."""
    for k, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return k
    return min(len(first), len(second))


def _stretches(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """[(begin, end)] of the stretches of true flags."""
    stretches, begin = [], None
    for k, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = k
        elif not flag and begin is not None:
            stretches.append((begin, k))
            begin = None
    return stretches


# Scores of one caption by itself: (its tokens, the tokens of each reference) -> 0 to 1.
CAPTION_SCORES: dict[str, Callable[[Tokens, Sequence[Tokens]], float]] = {
    "rouge_l": rouge_l,
    "token_alignment": token_alignment,
}


def cider(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726) of each slide, 0 to 10.

    Cosine of TF-IDF vectors of 1- to 4-grams, a caption's counts clipped to the reference's, times a penalty for
    another length. The IDF is that of the references; where all slides have one text no n-gram is informative, and the
    score is 0.
    """
    idf = _inverse_document_frequency(references)
    scores = []
    for caption, texts in zip(captions, references, strict=True):
        caption_vectors = _tf_idf(caption, idf)
        total = 0.0
        for text in texts:
            pairs = zip(caption_vectors, _tf_idf(text, idf), strict=True)
            cosine = sum(_clipped_cosine(c, r) for c, r in pairs) / len(_ORDERS)
            total += cosine * math.exp(-((len(caption) - len(text)) ** 2) / (2 * _CIDER_SIGMA**2))
        scores.append(10 * total / len(texts))
    return np.array(scores)


def _inverse_document_frequency(references: Sequence[Sequence[Tokens]]) -> Mapping[NGram, float]:
    """The IDF of every n-gram over the slides; one that no slide has is as rare as one of a single slide."""
    slides_with: Counter[NGram] = Counter()
    for texts in references:
        slides_with.update(set().union(*(_ngrams(text) for text in texts)))
    idf: defaultdict[NGram, float] = defaultdict(lambda: math.log(len(references)))
    for ngram, count in slides_with.items():
        idf[ngram] = math.log(len(references) / count)
    return idf


def _tf_idf(tokens: Tokens, idf: Mapping[NGram, float]) -> list[dict[NGram, float]]:
    """A sparse vector for each order of n-grams."""
    by_order: list[dict[NGram, float]] = [{} for _ in _ORDERS]
    for ngram, count in _ngrams(tokens).items():
        by_order[len(ngram) - 1][ngram] = count * idf[ngram]
    return by_order


def _clipped_cosine(caption: dict[NGram, float], reference: dict[NGram, float]) -> float:
    norms = math.hypot(*caption.values()) * math.hypot(*reference.values())
    if norms == 0:
        return 0.0
    dot = sum(min(value, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0) for ngram, value in caption.items())
    return dot / norms


def _ngrams(tokens: Tokens) -> Counter[NGram]:
    return Counter(tuple(tokens[i:i + n]) for n in _ORDERS for i in range(len(tokens) - n + 1))


def _sacre_bleu(references: Sequence[Sequence[str]]) -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=language(references), effective_order=True)  # else a text of 3 tokens is unlike itself


def _bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    library = _sacre_bleu(references)
    rows = []
    for caption, texts in zip(captions, references, strict=True):
        score = library.sentence_score(caption, list(texts))
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    table = np.array(rows)

    def bleu(order: int, indices: np.ndarray) -> float:
        length, reference_length, *counts = table[indices].sum(0).tolist()
        result = library.compute_bleu(
            correct=counts[:order], total=counts[4:4 + order], sys_len=length, ref_len=reference_length,
            smooth_method="exp", effective_order=True, max_ngram_order=order)
        return min(result.score / 100, 1.0)  # sacreBLEU's logarithms may give 100.00000000000004

    return {f"bleu_{order}": partial(bleu, order) for order in _ORDERS}


def _chrf(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    from sacrebleu.metrics import CHRF

    library = CHRF()
    rows = []
    for caption, texts in zip(captions, references, strict=True):
        # sacreBLEU gives its rows away by a private name only; tests hold the sum of them to its public corpus score
        rows.append(library._extract_corpus_statistics([caption], [[text] for text in texts])[0])
    table = np.array(rows)
    return {"chrf": lambda indices: library._compute_f_score(table[indices].sum(0).tolist()) / 100}


def phrase_accuracy(captions: Sequence[str], references: Sequence[str]) -> list[float] | None:
    """Accuracy of each phrase by its position, where all references are of one template (equal numbers of phrases);
    else None."""
    reference_phrases = [phrases(text) for text in references]
    num_phrases = len(reference_phrases[0])
    if any(len(expected) != num_phrases for expected in reference_phrases):
        return None
    right = [0] * num_phrases
    for caption, expected in zip(captions, reference_phrases, strict=True):
        for position, (written, phrase) in enumerate(zip(phrases(caption), expected, strict=False)):
            right[position] += written == phrase
    return [count / len(references) for count in right]


def distinct_share(captions: Sequence[str]) -> float:
    """Number of different captions over the number of captions; near 0 for a model that collapsed to one caption."""
    return len(set(captions)) / len(captions)


def phrases(text: str) -> list[str]:
    """The phrases of a text, between Chinese or English punctuation."""
    parts = [part.strip() for part in _SEPARATORS.split(text)]
    return [part for part in parts if part]
