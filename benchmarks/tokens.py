"""Compare tokenizers on your texts: python -m benchmarks.tokens labels.json vocab bpe hf:NAME_OR_FOLDER ...

Each is trained on nine tenths of the cases and tested on the last tenth: share of texts reproduced exactly, share of
unknown tokens, tokens per text with begin and end token.
"""

import argparse

from finetune.common.errors import run_script
from finetune.data.labels import load_labels
from finetune.data.splits import split_ids
from finetune.data.tokenizer import build_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels_file")
    parser.add_argument("kinds", nargs="+", metavar="tokenizer", help="as data.tokenizer")
    args = parser.parse_args()
    labels = load_labels(args.labels_file)[0]
    sides = [[labels[i].text for i in ids] for ids in split_ids(list(labels), 0.1, 42)]
    print("| tokenizer | size | exact, training | exact, held out | unknown, held out | mean | longest |")
    print("|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        tokenizer = build_tokenizer(kind, sides[0], normalize=False)
        ids = [[tokenizer.encode(text) for text in texts] for texts in sides]
        exact = [sum(tokenizer.decode(i) == t for i, t in zip(its, texts, strict=True)) / len(texts)
                 for its, texts in zip(ids, sides, strict=True)]
        unknown = sum(i.count(tokenizer.unk_id) for i in ids[1]) / sum(map(len, ids[1]))
        lengths = [len(i) + 2 for its in ids for i in its]
        print(f"| {kind.split('/')[-1]} | {len(tokenizer)} | {exact[0]:.4f} | {exact[1]:.4f} | {unknown:.5f} | "
              f"{sum(lengths) / len(lengths):.1f} | {max(lengths)} |")


if __name__ == "__main__":
    run_script(main)
