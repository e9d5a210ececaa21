"""Scores of captions against reference texts. Each is split into one row of numbers per slide and a function of the sum
of rows, so that a resample of the slides costs a sum and not another comparison of texts.

Own where no kept library serves Chinese: rouge-score drops all that is not ASCII, pycocoevalcap needs Java and 100 MB.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

Statistic = Callable[[np.ndarray], float]  # indices of slides, each as often as it is drawn -> the score of these
Tokens = list[str]
_SEPARATORS = re.compile(r"(?:[，。；、,;\n]|\.(?!\d))+")  # 3.5 cm is one number
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_ORDERS = range(1, 5)  # n-grams of BLEU and CIDEr


def text_statistics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    """{score: its statistic} of n captions, each with one or more references; all from 0 to 1 but CIDEr (0 to 10).

    BLEU and chrF are sacreBLEU's corpus scores, the others means over slides. Captions and references are compared as
    they are written, case included.
    """
    split = tokenizer_of(references)
    tokens = [split(c) for c in captions]
    wanted = [[split(r) for r in several] for several in references]
    pairs = list(zip(tokens, wanted, strict=True))
    scores = _bleu(captions, references) | _chrf(captions, references)
    scores["rouge_l"] = mean_of([rouge_l(c, r) for c, r in pairs])
    scores["meteor"] = mean_of([max(meteor(c, r) for r in several) for c, several in pairs])
    scores["cider"] = mean_of(cider(tokens, wanted))
    scores["exact_match"] = mean_of([c in r for c, r in zip(captions, references, strict=True)])
    scores["distinct_share"] = lambda indices: distinct_share([captions[i] for i in indices])
    return scores


def signature(references: Sequence[Sequence[str]]) -> str:
    """All that must be equal for two scores to be comparable, in sacreBLEU's manner."""
    import sacrebleu  # 0.2 s, lxml among it: only where texts are scored

    counts = sorted({len(r) for r in references})
    return (f"tok:{language(references)}|case:mixed|nrefs:{'-'.join(map(str, {counts[0]: 0, counts[-1]: 0}))}|"
            f"BLEU+chrF:sacrebleu-{sacrebleu.__version__}|bleu:corpus,smooth:exp,eff:yes|chrf:chars6,words0,beta2|"
            "rouge_l:beta1.2,mean|meteor:1.5-parameters,exact matches only (no stems, synonyms or function words),mean|"
            "cider:CIDEr-D,n4,sigma6,idf of these references,mean")


def language(references: Sequence[Sequence[str]]) -> str:
    """sacreBLEU's tokenizer for a corpus: `zh` (Chinese by character, the rest by word) where most texts have Chinese
    characters, else `13a` (by word)."""
    texts = [text for several in references for text in several]
    return "zh" if 2 * sum(bool(_CHINESE.search(t)) for t in texts) > len(texts) else "13a"


def tokenizer_of(references: Sequence[Sequence[str]]) -> Callable[[str], Tokens]:
    tokenize = _sacre_bleu(references).tokenizer
    return lambda text: tokenize(text.rstrip()).split()


def mean_of(values: Sequence[float] | np.ndarray) -> Statistic:
    values = np.asarray(values, dtype=float)
    return lambda indices: float(values[indices].mean())


def rouge_l(caption: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L (Lin 2004): F of the longest common subsequence, recall 1.2 times as heavy, as report papers take it from
    the COCO tools: the best precision and the best recall over the references."""
    common = [longest_common_subsequence(caption, r) for r in references]
    precision = max(common) / max(len(caption), 1)
    recall = max(n / max(len(r), 1) for n, r in zip(common, references, strict=True))
    weight = 1.2**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if precision else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length; bit-parallel (Hyyrö 2004), a row of the usual table being one integer."""
    places: Counter[str] = Counter()
    for i, token in enumerate(first):
        places[token] |= 1 << i
    row = everywhere = (1 << len(first)) - 1
    for token in second:
        hits = row & places[token]
        row = (row + hits | row - hits) & everywhere
    return len(first) - row.bit_count()


def meteor(caption: Tokens, reference: Tokens) -> float:
    """METEOR (Denkowski and Lavie 2014) with the parameters of version 1.5 for English (0.85, 0.2, 0.6), but exact
    matches only and all words equal: the same number with and without Java, and for every language."""
    matches, chunks = _align(caption, reference)
    if not matches:
        return 0.0
    precision, recall = matches / len(caption), matches / len(reference)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    if chunks == 1 and matches == len(caption) == len(reference):
        return 1.0  # the text itself is not fragmented, as in the original
    return mean * (1 - 0.6 * (chunks / matches) ** 0.2)


def _align(caption: Tokens, reference: Tokens) -> tuple[int, int]:
    """(matched words, runs they stand in): as many words as both have, the longest common run first."""
    places: dict[str, list[int]] = {}
    for j, token in enumerate(reference):
        places.setdefault(token, []).append(j)
    runs = []  # (-length, where it begins in the caption, in the reference)
    for i, token in enumerate(caption):
        for j in places.get(token, ()):
            if not (i and j and caption[i - 1] == reference[j - 1]):
                runs.append((-_common_prefix(caption[i:], reference[j:]), i, j))
    heapify(runs)
    taken_i, taken_j = [False] * len(caption), [False] * len(reference)
    matches = chunks = 0
    while runs:
        length, i, j = heappop(runs)
        free = [not taken_i[i + k] and not taken_j[j + k] for k in range(-length)]
        if all(free):
            matches, chunks = matches - length, chunks + 1
            taken_i[i:i - length] = taken_j[j:j - length] = [True] * -length
        else:  # what longer runs have left of it
            ends = [k for k, f in enumerate([*free, False]) if not f]
            for begin, end in zip([-1, *ends], ends, strict=False):
                if end - begin > 1:
                    heappush(runs, (begin + 1 - end, i + begin + 1, j + begin + 1))
    return matches, chunks


def _common_prefix(first: Tokens, second: Tokens) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(first), len(second)))


def cider(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) of each slide, 0 to 10: cosine of TF-IDF vectors of 1- to
    4-grams, a caption's counts clipped to the reference's, less for another length (sigma 6). The IDF is that of the
    references; where all slides have one text nothing is informative, and the score is 0."""
    wanted = [[_ngrams(r) for r in several] for several in references]
    slides_with = Counter(gram for several in wanted for gram in set().union(*several))
    idf = {gram: math.log(len(references) / count) for gram, count in slides_with.items()}

    def vectors(counts: Counter) -> list[dict]:
        by_order: list[dict] = [{} for _ in _ORDERS]
        for gram, count in counts.items():  # unknown: as rare as what one slide has
            by_order[len(gram) - 1][gram] = count * idf.get(gram, math.log(len(references)))
        return by_order

    scores = []
    for tokens, texts, several in zip(captions, references, wanted, strict=True):
        caption, total = vectors(_ngrams(tokens)), 0.0
        for text, counts in zip(texts, several, strict=True):
            alike = sum(_clipped_cosine(c, r) for c, r in zip(caption, vectors(counts), strict=True)) / len(_ORDERS)
            total += alike * math.exp(-((len(tokens) - len(text)) ** 2) / (2 * 6**2))
        scores.append(10 * total / len(texts))
    return np.array(scores)


def _clipped_cosine(caption: dict, reference: dict) -> float:
    norms = math.hypot(*caption.values()) * math.hypot(*reference.values())
    common = sum(min(v, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, v in caption.items())
    return common / norms if norms else 0.0


def _ngrams(tokens: Tokens) -> Counter:
    return Counter(tuple(tokens[i:i + n]) for n in _ORDERS for i in range(len(tokens) - n + 1))


def _sacre_bleu(references: Sequence[Sequence[str]]):
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=language(references), effective_order=True)  # else a text of 3 tokens is unlike itself


def _bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    library = _sacre_bleu(references)
    scored = [library.sentence_score(c, list(r)) for c, r in zip(captions, references, strict=True)]
    rows = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scored])

    def bleu(order: int, indices: np.ndarray) -> float:
        length, reference_length, *counts = rows[indices].sum(0).tolist()
        return library.compute_bleu(counts[:order], counts[4:4 + order], length, reference_length, smooth_method="exp",
                                    effective_order=True, max_ngram_order=order).score / 100

    return {f"bleu_{n}": lambda indices, n=n: bleu(n, indices) for n in _ORDERS}


def _chrf(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistic]:
    from sacrebleu.metrics import CHRF

    library = CHRF()
    # sacreBLEU gives its rows away by a private name only; tests hold the sum of them to its public corpus score
    rows = np.array([library._extract_corpus_statistics([c], [[text] for text in r])[0]
                     for c, r in zip(captions, references, strict=True)])
    return {"chrf": lambda indices: library._compute_f_score(rows[indices].sum(0).tolist()) / 100}


def phrase_accuracy(captions: Sequence[str], references: Sequence[str]) -> list[float] | None:
    """Accuracy of each phrase by its place, where all references are of one template (equal numbers of phrases)."""
    split = [phrases(r) for r in references]
    count = len(split[0])
    if any(len(s) != count for s in split):
        return None
    written = [phrases(c) for c in captions]
    return [sum(place < len(w) and w[place] == s[place] for w, s in zip(written, split, strict=True)) / len(split)
            for place in range(count)]


def distinct_share(captions: Sequence[str]) -> float:
    """Number of different captions over the number of captions; 1 caption for all slides is a collapsed model."""
    return len(set(captions)) / len(captions)


def phrases(text: str) -> list[str]:
    """The phrases of a text, between Chinese or English punctuation."""
    return [p.strip() for p in _SEPARATORS.split(text) if p.strip()]
