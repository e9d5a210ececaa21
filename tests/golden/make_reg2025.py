"""Golden values of the REG2025 score, by other libraries than ours. Run in an environment of its own:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install nltk==3.10.4 rouge_score==0.1.2 scikit-learn==1.9.1
    /tmp/golden/bin/python make_reg2025.py > reg2025.json

ROUGE is Google's rouge_score (rougeL, words at white space), BLEU nltk's clipped 4-gram precision, for texts without a
repeated 4-gram, where the challenge's peculiar count is the usual one; keywords nltk's Jaccard distance; the cosine is
scikit-learn's. The stretch above 0.5 and the sum are written out from the challenge's formula.
"""
import json
import random
import sys

from nltk.metrics import jaccard_distance
from nltk.translate.bleu_score import modified_precision
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sklearn.metrics.pairwise import cosine_similarity


class Words(Tokenizer):
    def tokenize(self, text):
        return text.lower().split()


def words_of(text):  # the keyword model of the test: capitalised words
    return [word.strip(".,;") for word in text.split() if word[:1].isupper()]


def vector_of(text):  # the embedding model of the test: how often some letters occur
    return [text.lower().count(letter) + 0.25 for letter in "aeiorstn"]


TEXTS = [
    "Breast, core-needle biopsy; Invasive carcinoma of no special type, grade II (Tubule formation: 3, Nuclear grade: 2, Mitoses: 1)",
    "Breast, core-needle biopsy; Ductal carcinoma in situ - Type: Cribriform - Nuclear grade: Low - Necrosis: Absent",
    "Stomach, endoscopic biopsy; Tubular adenoma with low grade dysplasia",
    "Stomach, endoscopic biopsy; Chronic gastritis with Intestinal metaplasia",
    "Lung, biopsy; No evidence of malignancy",
    "Prostate, biopsy; Acinar adenocarcinoma, Gleason's score 7 (3+4), grade group 2, tumor volume: 30%",
    "Urinary bladder, transurethral resection; Non-invasive papillary urothelial carcinoma, high grade",
    "Chronic gastritis",
    "no keyword here at all",
]
scorer = RougeScorer(["rougeL"], tokenizer=Words())
random.seed(0)
rows = []
pairs = [(a, b) for a in TEXTS for b in TEXTS]
edited = [" ".join(w for w in t.split() if random.random() < 0.8) for t in TEXTS]  # some words are missing
swapped = [" ".join(reversed(t.split(" ", 4))) for t in TEXTS]  # in another order
pairs = [*random.sample(pairs, 12), *zip(edited, TEXTS, strict=True), *zip(TEXTS, swapped, strict=True), *((t, t) for t in TEXTS)]
for caption, reference in pairs:
    said, true = caption.split(), reference.split()
    rouge = scorer.score(reference, caption)["rougeL"].fmeasure
    bleu = float(modified_precision([true], said, 4)) if len(said) >= 4 else 0.0
    keys = [{k.lower() for k in words_of(t) if len(k) >= 3} for t in (caption, reference)]
    keywords = 1 - jaccard_distance(*keys) if any(keys) else 0.0
    cosine = float(cosine_similarity([vector_of(caption)], [vector_of(reference)])[0][0])
    embedding = (cosine - 0.5) / 0.5 if cosine > 0.5 else cosine
    rows.append({"caption": caption, "reference": reference, "reg2025_rouge": rouge, "reg2025_bleu": bleu,
                 "reg2025_keywords": keywords, "reg2025_embedding": embedding,
                 "reg2025": 0.15 * (rouge + bleu) + 0.4 * keywords + 0.3 * embedding})
json.dump({"made_by": "make_reg2025.py: nltk 3.10.4, rouge_score 0.1.2, scikit-learn 1.9.1", "rows": rows}, sys.stdout, indent=1)
