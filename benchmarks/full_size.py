"""One training step and one caption at the published sizes: seconds and peak memory on this machine.

    python -m benchmarks.full_size [--decoder coca|prism|qwen] [--lora_rank 0] [--precision fp32|bf16|fp16]
                                   [--tiles 1000] [--grad_checkpointing] [--contrastive_loss_weight 1]

Prism's 99 M encoder with 512 latents; CoCa of dim 1024, 6 + 6 layers, latents 5120, a vocabulary of 42384, or
Prism's own decoder, of which the upper half or adapters train, or a language model of the shape of Qwen2.5-0.5B behind
a prefix of 32, frozen or with adapters; random weights.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from pathlib import Path

import torch

from coca_pytorch import CoCa
from finetune.common.device import Precision, keep_freed_memory, resolve_device, resolve_precision
from finetune.common.distributed import World
from finetune.config.auto import resolve
from finetune.config.schema import Config
from finetune.data.batch import Batch
from finetune.models.captioner import SlideCaptioner
from finetune.models.generation import generate
from finetune.models.language_model import LanguageModel, LanguageModelDecoder
from finetune.models.language_model_folder import LanguageModelFolder
from finetune.models.prism_decoder import PrismDecoder
from finetune.training.objective import Objective
from finetune.training.optim import build_optimizer
from prism import GenerationOptions, Prism, load_prism

_SLIDES, _TOKENS, _WORDS, _PAD, _BOS = 4, 128, 42384, 0, 1
_NO_END = -1  # never generated: the caption has its full length


def random_batch(tiles: int) -> Batch:
    """Four slides of `tiles` tiles each, with texts of 128 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, _WORDS, (_SLIDES, _TOKENS + 1), generator=generator)
    return Batch([f"slide_{i}" for i in range(_SLIDES)], torch.randn(_SLIDES, tiles, 2560, generator=generator),
                 torch.ones(_SLIDES, tiles, dtype=torch.bool), ids[:, :-1], ids[:, 1:],
                 torch.ones(_SLIDES, _TOKENS, dtype=torch.bool))


def timed(work, device: torch.device) -> tuple[str, object]:
    """(seconds by the clock and of CPU time, which says more where the machine is shared; the result) of one call."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return f"{time.perf_counter() - start:.2f} s (CPU {time.process_time() - used:.1f} s)", result


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def train_step(model: SlideCaptioner, optimizer: torch.optim.Optimizer, batch: Batch, precision: Precision) -> None:
    Objective(model, precision, World()).backward([batch], precision.scaler())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Special:
    """In place of Qwen2.5's tokenizer: its number of tokens and its end token."""

    eos_id = 151643

    def __len__(self) -> int:
        return 151665


def qwen(lora_rank: int, contrastive_loss_weight: float, precision: Precision) -> LanguageModelDecoder:
    """A decoder around a random model of the shape of Qwen2.5-0.5B (its config.json), in bfloat16 as published."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768,
                        tie_word_embeddings=True, rope_theta=1e6, rms_norm_eps=1e-6)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    config = Config()
    config.model.decoder, config.model.lora_rank = "hf:Qwen2.5-0.5B", lora_rank
    config.model.contrastive_loss_weight = contrastive_loss_weight
    folder = LanguageModelFolder(Path(), "Qwen2.5-0.5B", None, {})
    decoder = LanguageModelDecoder(LanguageModel(model, folder, None), _Special(), resolve(config, 1000))
    decoder.cast_frozen(precision.dtype)
    return decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    parser.add_argument("--tiles", type=int, default=1000, help="tiles per slide (default 1000)")
    parser.add_argument("--decoder", default="coca", choices=("coca", "prism", "qwen"))
    parser.add_argument("--lora_rank", type=int, default=0, help="not for coca: train adapters of this rank")
    parser.add_argument("--grad_checkpointing", action="store_true", help="not for prism")
    parser.add_argument("--contrastive_loss_weight", type=float, default=1.0, help="of qwen (default 1)")
    args = parser.parse_args()
    device = resolve_device("auto")
    keep_freed_memory(device)  # as a run does
    precision = resolve_precision(args.precision, device, wide_range=args.decoder == "qwen")
    if args.decoder == "prism":
        seconds, whole = timed(lambda: Prism.from_pretrained("random"), device)
        print(f"make Prism: {seconds}")
        prism, coca = whole.slide_encoder(), PrismDecoder(whole)
        coca.train_upper_half(args.lora_rank)
    elif args.decoder == "qwen":
        prism, coca = load_prism("random"), qwen(args.lora_rank, args.contrastive_loss_weight, precision)
    else:
        prism = load_prism("random")
        coca = CoCa(dim=1024, num_tokens=_WORDS, unimodal_depth=6, multimodal_depth=6, dim_latents=5120, image_dim=1280,
                    pad_id=_PAD)
    coca.grad_checkpointing = args.grad_checkpointing
    model = SlideCaptioner(prism, coca, "latents").to(device)
    optimizer = build_optimizer(model.named_parameters(), 1e-4, 0.01)
    batch = random_batch(args.tiles).to(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor()} CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision.name}; "
          f"{millions(prism):.1f} M + {millions(coca):.1f} M parameters, "
          f"{sum(p.numel() for p in model.trained_parameters()) / 1e6:.1f} M of them trained")
    for attempt in ("first step", "second step"):
        seconds, _ = timed(lambda: train_step(model, optimizer, batch, precision), device)
        print(f"{attempt}: encode {_SLIDES} x {args.tiles} tiles, {_SLIDES} x {_TOKENS} tokens, AdamW: {seconds}")
    model.eval()
    with torch.no_grad(), precision.autocast():
        seconds, tokens = timed(lambda: model.image_tokens(batch.tile_embeddings[:1], batch.tile_mask[:1]), device)
        print(f"encode 1 slide of {args.tiles} tiles: {seconds}")
        seconds, _ = timed(lambda: generate(coca, tokens, GenerationOptions(max_length=101), bos_id=_BOS,
                                            eos_id=_NO_END, pad_id=_PAD), device)
    print(f"greedy caption of 100 tokens: {seconds}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    if device.type == "cuda":
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
