"""Learning rate against hand values and torch's schedulers; what decays; which device and precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from finetune.common.device import resolve_device, resolve_precision
from finetune.training.optim import build_optimizer, warmup_cosine
from tests.helpers.files import refused

CPU = torch.device("cpu")


@pytest.mark.parametrize(("step", "rate"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (7, 0.5 + 0.5 * math.cos(math.pi / 2)),
                                            (9, 0.5 + 0.5 * math.cos(math.pi * 5 / 6)), (10, 0.0), (99, 0.0)])
def test_the_rate_warms_up_in_a_line_and_falls_as_a_cosine(step, rate):
    assert warmup_cosine(step, total_steps=10, peak=2.0, warmup=4) == pytest.approx(2 * rate, abs=1e-12)


def test_below_one_the_warm_up_is_a_share_of_all_steps():
    for step in range(100):
        assert warmup_cosine(step, 100, 1e-4, 0.03) == warmup_cosine(step, 100, 1e-4, 3)
    assert warmup_cosine(0, 10, 1.0, 0.0) == 1.0 and warmup_cosine(0, 10, 1.0, 0.04) == 1.0, "no warm-up at all"


@pytest.mark.parametrize(("total", "warm"), [(50, 1), (50, 7), (200, 20)])
def test_the_rate_is_that_of_torchs_own_schedulers(total, warm):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    line = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, 1.0, max(warm - 1, 1))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warm)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [line, cosine], [warm])
    for step in range(total):
        assert warmup_cosine(step, total, 3e-4, warm) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        optimizer.step()
        both.step()


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.03), (1, 5), (3, 100), (10, 10)])
def test_the_rate_stays_between_zero_and_the_peak(total, warmup):
    assert all(0 <= warmup_cosine(s, total, 1e-4, warmup) <= 1e-4 for s in range(2 * total))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.frozen = nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2).requires_grad_(False)
        self.queries, self.temperature = nn.Parameter(torch.randn(1, 4, 3)), nn.Parameter(torch.tensor(2.0))


def test_only_matrices_decay_and_frozen_weights_do_not_move():
    model = Model()
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = build_optimizer(model.named_parameters(), learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient AdamW only decays, by lr x decay
    decayed = {"linear.weight", "queries"}
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, before[name] * (0.95 if name in decayed else 1.0), rtol=1e-6, atol=0), name


def test_every_trained_parameter_is_in_one_group():
    model = Model()
    optimizer = build_optimizer(model.named_parameters(), 1e-3, 0.01)
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for k, p in model.named_parameters() if not k.startswith("frozen"))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
    assert all(g["lr"] == 1e-3 for g in optimizer.param_groups)


def test_auto_is_the_gpu_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cuda:x", "meta", "mps", "cuda:-1"])
def test_R04_a_device_that_is_not_here_is_refused(name):
    with refused("training.device", repr(name), "auto"):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_R04_cuda_without_a_gpu_is_refused():
    with refused("training.device", "'cuda'", "0 CUDA devices", "auto or cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_C10_a_cpu_runs_bf16_or_fp32_and_says_why(monkeypatch, has_bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    best = "bf16" if has_bf16 else "fp32"
    assert resolve_precision("auto", CPU).name == resolve_precision("fp16", CPU).name == best
    assert "CUDA" in resolve_precision("fp16", CPU).reason
    assert resolve_precision("fp32", CPU).name == "fp32" and resolve_precision("bf16", CPU).name == "bf16"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_product_has_the_precision_that_was_chosen(name, dtype):
    precision = resolve_precision(name, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype
    assert not precision.scaler().is_enabled(), "only fp16 scales its loss"


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert resolve_device("auto", 2) == resolve_device("cuda", 2) == torch.device("cuda:2")
    assert resolve_device("cpu", 2) == CPU and resolve_device("cuda:1") == torch.device("cuda:1")
    with refused("'cuda:1' is one device for all processes"):
        resolve_device("cuda:1", 2)
    with refused("'cuda:4' asked for, 4 CUDA devices"):
        resolve_device("auto", 4)
