"""A pretrained language model as decoder against CoCa from scratch, on slides made after reports.

    python -m benchmarks language_model [--captions FILE.csv] [--sizes 300] [--seeds 7] [--work DIR] [--small]

No weights of a real language model can be had here, so a small one is pretrained for each task: a Qwen2 of 1 M
parameters, on the texts of the training side alone, until the validation texts get less probable again. It knows the
language of these reports and nothing else, so what it can show is whether the way from the slide into a language model
works, and what the three ways to train it cost. Then `train_finetune.py` and `inference.py` as a user runs them;
captions are the decoders' own (--rerank false). Without --captions the slides are made after texts of our own.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.evaluation.text_metrics import text_statistics

from .learning import run_folder, train_and_caption
from .learning_baselines import Answer, score
from .learning_data import Task, made_tasks, report_tasks

END = "<|endoftext|>"
_LOOK = 25  # steps of pretraining between two looks at the validation texts
# pooling as in CoCa of size small; a model that knows the language needs fewer epochs than the 50 that auto gives CoCa
_PREFIX = ["model.dim=128", "model.heads=4", "model.dim_head=32", "model.dim_latents=128", "training.epochs=20"]
_WAYS: dict[str, list[str]] = {
    "CoCa from scratch": [],
    "language model, frozen": ["model.decoder=hf:{folder}", *_PREFIX, "training.learning_rate=2e-3"],
    "language model, LoRA 16": ["model.decoder=hf:{folder}", *_PREFIX, "model.lora_rank=16",
                                "training.learning_rate=5e-4", "training.decoder_learning_rate=1e-3"],
    "language model, all of it": ["model.decoder=hf:{folder}", *_PREFIX, "model.freeze_decoder=false",
                                  "training.decoder_learning_rate=1e-4"],
}
_HEADINGS = "| data | decoder | word F1 | exact | BLEU-4 | CPU minutes to train |\n|---|---|---|---|---|---|"


def table(arguments: Sequence[str]) -> tuple[str, bool]:
    """Run what the arguments ask for; (section for RESULTS.md, whether it is for keeping)."""
    args = _parser().parse_args(arguments)
    work = Path(args.work).resolve()
    rows, notes = [], []
    if args.small:
        tasks = made_tasks([24], [7], work)
    elif args.captions:
        tasks = report_tasks(args.captions, args.sizes, args.seeds, work)
    else:
        tasks = made_tasks(args.sizes, args.seeds, work)
    results: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for task in tasks:
        folder, note = _pretrained(task, 20 if args.small else args.steps)
        notes.append(f"- {task.data_set}, seed {task.seed}: {note}")
        for name in args.ways or _WAYS:
            print(f"{task.data_set}, seed {task.seed}: {name}", file=sys.stderr, flush=True)
            results[task.data_set, name].append(_judge(task, name, folder, args.small))
    for (data_set, name), judged in results.items():
        means = {key: sum(one[key] for one in judged) / len(judged) for key in judged[0]}
        rows.append(f"| {data_set} | {name} | {means['f1']:.3f} | {means['exact']:.3f} | {means['bleu']:.3f} | "
                    f"{means['minutes']:.1f} |")
    shown = [Path(a).name if "/" in a else a for a in arguments]
    head = (f"`python -m benchmarks language_model {shlex.join(shown)}`: {platform.processor() or 'CPU'}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}; --prism random-tiny")
    return "\n".join([head, "", _HEADINGS, *rows, "", *notes]), not args.small


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks language_model", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", metavar="FILE.csv", type=Path, help="reports (column text)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[300], metavar="N", help="slides (default 300)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[7], help="of data and training")
    parser.add_argument("--ways", nargs="+", choices=list(_WAYS), help="some of the rows (default: all)")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining at most (default 600)")
    parser.add_argument("--work", default=".bench/language_model", help="where slides, models and runs are kept")
    parser.add_argument("--small", action="store_true", help="only check that every step runs")
    return parser


def _judge(task: Task, name: str, language_model: Path, small: bool) -> dict[str, float]:
    """Scores of the captions of the test slides."""
    variant = replace(task, name=f"{task.name}-{list(_WAYS).index(name)}")
    settings = [setting.format(folder=language_model) for setting in _WAYS[name]]
    run = train_and_caption(variant, small, settings, ("--rerank", "false"))
    for folder in (run_folder(variant), task.folder / "prism_latents"):  # each run encodes its slides
        shutil.rmtree(folder, ignore_errors=True)
    test = task.ids("test")
    truth, captions = [task.texts[i] for i in test], [run["captions"][i] for i in test]
    f1, exact = score([Answer.of(caption) for caption in captions], truth).mean(0)
    bleu = text_statistics(captions, [[text] for text in truth])["bleu_4"](np.arange(len(test)))
    return {"f1": float(f1), "exact": float(exact), "bleu": float(bleu), "minutes": run["cpu_seconds"] / 60}


def _pretrained(task: Task, steps: int) -> tuple[Path, str]:
    """(folder of a language model of the training texts, how it came about), made once."""
    folder = task.folder / f"{task.name}-lm"
    note = folder / "note.json"
    if not note.exists():
        texts = [task.texts[i] for i in task.ids("train")]
        validation = [task.texts[i] for i in task.ids("val")]
        note.parent.mkdir(parents=True, exist_ok=True)
        about = _pretrain(folder, texts, validation, steps)
        note.write_text(json.dumps(about), encoding="utf-8")
    about = json.loads(note.read_text(encoding="utf-8"))
    size = f"{about['parameters'] / 1e6:.1f} M parameters, {about['words']} tokens"
    return folder, (f"language model of {size}, trained for {about['steps']} steps ({about['seconds'] / 60:.1f} CPU "
                    f"min) on {about['texts']} training texts; loss per token without slide {about['loss']:.2f} on the "
                    "validation texts")


def _pretrain(folder: Path, texts: list[str], validation: list[str], steps: int) -> dict[str, Any]:
    """Train a language model on texts and save it as Hugging Face has them."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    start = time.process_time()
    tokenizer = _save_tokenizer(folder, texts)
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=384,
                         num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         max_position_embeddings=512, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    best, best_state = math.inf, {}
    for step in range(steps):
        chosen = [texts[i] for i in torch.randint(len(texts), (16,), generator=torch.Generator().manual_seed(step))]
        _loss(model, tokenizer, chosen).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % _LOOK == _LOOK - 1 or step == steps - 1:
            with torch.no_grad():
                held_out = float(_loss(model, tokenizer, validation))
            if held_out > best:  # from here on it learns the training texts by heart, which no real one has seen
                break
            best, best_state = held_out, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_state or model.state_dict())
    model.eval().save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters()), "words": tokenizer.get_vocab_size(),
            "texts": len(texts), "seconds": time.process_time() - start, "steps": step + 1, "loss": best}


def _save_tokenizer(folder: Path, texts: list[str]) -> Any:
    """Byte-level byte pairs of the texts, with an end token, as `tokenizers` has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, min_frequency=2, special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return tokenizer


def _loss(model: torch.nn.Module, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Mean cross-entropy of [end, text, end], as documents follow each other in pretraining."""
    rows = [torch.tensor([0, *tokenizer.encode(text, add_special_tokens=False).ids[:250], 0]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    return model(input_ids=ids, labels=labels).loss
