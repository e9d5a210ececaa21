"""Near duplicates within one set of texts."""

from __future__ import annotations

import random

from finetune.data.near_duplicates import near_duplicate_pairs


def grams(text: str) -> set[str]:
    text = "".join(filter(str.isalnum, text.lower()))
    return {text[i:i + 3] for i in range(len(text) - 2)}


def test_the_pairs_are_those_that_brute_force_finds():
    rng = random.Random(1)
    words = ["adenocarcinoma", "stomach", "grade", "poorly", "well", "tubular", "signet", "ring", "mucosa", "of", "the", "with"]
    texts = [" ".join(rng.choices(words, k=rng.randint(5, 20))) for _ in range(150)]
    for text in texts[:60]:
        changed = text.split()
        changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    texts += [text.upper() + "." for text in texts[:10]] + ["", "。", ""]
    rng.shuffle(texts)
    pairs = near_duplicate_pairs(texts)
    alike = {i: {j for j in range(i) if grams(texts[i]) and len(grams(texts[i]) & grams(texts[j])) >= 0.8 * len(grams(texts[i]) | grams(texts[j]))}
             for i in range(len(texts))}
    assert [number for number, _ in pairs] == [i for i in alike if alike[i]] and len(pairs) > 40
    assert all(earlier in alike[number] for number, earlier in pairs)
