"""A step's gradients: chunked, cut into micro-batches, after running out of memory. And the batch size found by trying."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo

from coca_pytorch import CoCa
from finetune.common.device import Precision
from finetune.common.distributed import ALONE
from finetune.data.batch import Sample
from finetune.training import batch_size_finder as probe
from finetune.training.batch_size_finder import largest_batch, search
from finetune.training.custom_loss import LossInputs
from finetune.training.objective import Objective
from tests.helpers.files import refused
from tests.helpers.training import CPU, a_batch, everything, gradients, objective_of, plain_gradients, tiny_model

BATCHES = [a_batch(1, 3, [5, 2, 4]), a_batch(2, 4), a_batch(3, 1, [3])]


def assert_as_one_batch(objective: Objective, micro_batches: list) -> None:
    wanted_losses, wanted = plain_gradients(tiny_model(2.0, 0.5), everything(micro_batches))
    losses, found = gradients(objective, micro_batches)
    assert {k: losses[k] for k in wanted_losses} == pytest.approx(wanted_losses, abs=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 17, 1 << 24])
@pytest.mark.parametrize("count", [1, 3])
def test_micro_batches_and_chunks_give_the_gradients_of_one_batch(chunk, count):
    objective = objective_of(ALONE)
    objective.chunk = chunk
    assert_as_one_batch(objective, BATCHES[:count])


def test_a_prism_that_is_trained_gets_the_gradients_of_one_batch_too():
    models = [tiny_model(2.0, 0.5) for _ in range(2)]
    for model in models:
        model.prism.unfreeze()
    _, wanted = plain_gradients(models[0], everything(BATCHES))
    _, found = gradients(Objective(models[1], Precision("fp32", CPU, "test"), ALONE), BATCHES)
    assert found.keys() == wanted.keys() and any(name.startswith("prism.") for name in found)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=2e-5)


def test_dropout_masks_are_the_same_in_both_passes():
    """With a random layer, the second pass must reproduce the latents that the gradient was computed for."""
    objective = objective_of(ALONE)
    forward, latents = objective.model.forward, []

    def noisy(batch, *more):
        outputs = forward(batch, *more)
        dropped = torch.nn.functional.dropout(outputs.text_latents, 0.5)
        latents.append(dropped.detach())
        return replace(outputs, text_latents=dropped)

    objective.model.forward = noisy
    gradients(objective, BATCHES)
    assert len(latents) == 6 and all(torch.equal(a, b) for a, b in zip(latents[:3], latents[3:], strict=True))
    assert not torch.equal(latents[0][0] == 0, latents[1][0] == 0), "each micro-batch its own"


def test_the_contrastive_loss_takes_memory_of_its_chunk_and_not_of_the_square():
    """Most bytes alive at a time in any tensor of the loss of 1024 pairs: 64 rows of them, not 1024."""
    from coca_pytorch.losses import contrastive_loss

    text, image = (torch.nn.functional.normalize(torch.randn(1024, 8), dim=-1).requires_grad_() for _ in range(2))
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        contrastive_loss(text, image, torch.tensor(10.0), torch.arange(1024), slice(0, 64)).backward()
    assert max(sizes) == 64 * 1024


class Small:
    """Simulated memory for a number of slides: larger batches raise an error in the forward or backward pass."""

    def __init__(self, model, room: int, where: str) -> None:
        self.room, self.where, self.errors = room, where, 0
        forward = model.forward

        def limited(batch, caption=True, logits=False):
            outputs = forward(batch, caption, logits)
            if len(batch.ids) > room and where == "forward":
                self.fail()
            if len(batch.ids) > room and where == "backward" and outputs.caption_loss.requires_grad:
                outputs.caption_loss.register_hook(lambda _: self.fail())
            return outputs

        model.forward = limited

    def fail(self) -> None:
        self.errors += 1
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["contrastive", "captions only"])
def test_R03_a_step_that_runs_out_of_memory_is_done_in_halves_with_the_same_result(where, count, weight, log_lines):
    wanted_losses, wanted = gradients(Objective(tiny_model(2.0, weight), Precision("fp32", CPU, "test"), ALONE),
                                      BATCHES[:count])
    objective = Objective(tiny_model(2.0, weight), Precision("fp32", CPU, "test"), ALONE)
    memory, state = Small(objective.model, 1, where), torch.get_rng_state()
    losses, found = gradients(objective, BATCHES[:count])
    assert memory.errors == 2 and objective.max_slides == 1
    assert losses == pytest.approx(wanted_losses, abs=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum("micro-batches are halved (2 times" in line for line in log_lines) == 1
    gradients(objective, BATCHES[:count])
    assert memory.errors == 2, "what did not fit is not tried again"


def test_R03_validation_is_done_in_halves_too_and_sees_each_slide_once():
    wanted, objective = objective_of(ALONE).losses(BATCHES), objective_of(ALONE)
    memory, seen = Small(objective.model, 1, "forward"), []
    losses = objective.losses(BATCHES, lambda batch, outputs: seen.extend(batch.ids))
    assert memory.errors and objective.max_slides == 1 and seen == [i for b in BATCHES for i in b.ids]
    assert (losses.caption_loss, losses.contrastive_loss) == pytest.approx((wanted.caption_loss, wanted.contrastive_loss),
                                                                           abs=1e-5)


def test_R03_a_single_slide_that_does_not_fit_is_an_error():
    objective = objective_of(ALONE)
    Small(objective.model, 0, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        gradients(objective, BATCHES)


@pytest.mark.parametrize("room", [1, 2, 3, 7, 8, 9, 100, 333, 1000])
@pytest.mark.parametrize("most", [1, 2, 5, 8, 300, 5000])
def test_the_largest_batch_is_found_to_within_an_eighth(room, most):
    tried: list[int] = []
    found = search(lambda size: (tried.append(size), size <= room)[1], most)
    best = min(room, most)
    assert found <= best < found + max(2, found / 8 + 1) and all(size <= most for size in tried)
    assert len(tried) <= 14 and len(set(tried)) == len(tried)


@pytest.mark.parametrize("cached", [True, False])
def test_auto_probes_with_the_longest_text_and_the_largest_slide_and_leaves_no_trace(cached, monkeypatch, log_lines):
    monkeypatch.setattr(probe, "_PROBED", ("cpu",))
    objective, seen = objective_of(ALONE), []
    memory, state = Small(objective.model, 5, "backward"), torch.get_rng_state()
    forward = objective.model.forward
    objective.model.forward = lambda batch, *wanted: (seen.append(batch), forward(batch, *wanted))[1]
    samples = [Sample(SimpleNamespace(num_tiles=n), [1] * 4, choices=([1] * 4, [1] * t)) for n, t in
               [(3, 9), (40, 4), (2, 6)] * 10]
    before = {k: v.clone() for k, v in objective.model.state_dict().items()}
    assert largest_batch(objective, samples, 12, cached) == 5 and memory.errors == 2
    assert all(b.text.shape[1] == 8 and b.text_mask.all() for b in seen) and [len(b.ids) for b in seen] == [2, 4, 8, 6, 5]
    assert all(b.image_tokens.shape[1:] == (4, 16) if cached else b.tile_embeddings.shape[1:] == (12, 8) for b in seen)
    assert torch.equal(torch.get_rng_state(), state) and objective.max_slides is None
    assert all(torch.equal(v, before[k]) for k, v in objective.model.state_dict().items())
    assert all(p.grad is None for p in objective.model.parameters()) 
    assert any("auto: 5" in line and "8 does not fit" in line for line in log_lines)


def deep_model(length: int = 127) -> tuple[Objective, list]:
    """6 + 6 layers and texts of `length` tokens, where what the layers keep is most of the memory."""
    objective = objective_of(ALONE)
    torch.manual_seed(0)
    objective.model.decoder = CoCa(dim=16, num_tokens=11, unimodal_depth=6, multimodal_depth=6, dim_latents=8, image_dim=16,
                                num_img_queries=2, dim_head=8, heads=2)
    return objective, [a_batch(1, 2, [length, length - 3])]


def kept_bytes(objective: Objective, micro_batches: list) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that the graph of a step keeps, each storage once, and its gradients."""
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        objective._forward(micro_batches[0])
    return sum(storages.values()), gradients(objective, micro_batches)[1]


def test_grad_checkpointing_keeps_a_fraction_and_gives_the_same_gradients():
    objective, batches = deep_model()
    plain, wanted = kept_bytes(objective, batches)
    objective.model.decoder.grad_checkpointing = True
    kept, found = kept_bytes(objective, batches)
    print(f"kept {kept / plain:.3f} of {plain} bytes")
    assert kept < 0.25 * plain
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_captioner_compiles_without_a_graph_break_and_keeps_its_keys(backend):
    """`fullgraph` raises at the first break."""
    torch._dynamo.reset()
    objective, plain = objective_of(ALONE), objective_of(ALONE)
    keys = list(objective.model.state_dict())
    objective.model.decoder.compile(backend=backend)
    for batches in [BATCHES[:1]] if backend == "eager" else [BATCHES[:1], [a_batch(5, 4, [6, 3, 2, 2])], BATCHES]:
        found, wanted = gradients(objective, batches)[1], gradients(plain, batches)[1]
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
    assert list(objective.model.state_dict()) == keys
    assert not torch._dynamo.utils.counters["graph_break"] and torch._dynamo.utils.counters["stats"]["unique_graphs"] > 2


def test_fp32_on_cuda_uses_tf32_and_nothing_else_does():
    before = torch.get_float32_matmul_precision()
    try:
        for name, device, wanted in (("fp16", "cuda", before), ("fp32", "cpu", before), ("fp32", "cuda", "high")):
            Precision(name, torch.device(device), "test").use_tf32()
            assert torch.get_float32_matmul_precision() == wanted
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("chunk", [17, 1 << 24])
def test_siglip_in_micro_batches_gives_the_gradients_of_one_batch(chunk):
    model = tiny_model(2.0, 0.5)
    model.decoder.use_siglip()
    _, wanted = plain_gradients(model, everything(BATCHES))
    objective = Objective(model, Precision("fp32", CPU, "test"), ALONE, chunk=chunk)
    _, found = gradients(objective, BATCHES)
    assert wanted["decoder.logit_bias"].abs() > 1e-3
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


def per_slide(inputs):
    """A mean over the slides that depends on every input of a custom loss."""
    words = (inputs.logits.logsumexp(-1) * inputs.text_mask).sum(1) + (inputs.labels * inputs.text_mask).sum(1)
    pairs = (inputs.text_latents * inputs.image_latents).sum(1) * inputs.logit_scale
    return {"my_words": words.mean() * 1e-2, "my_pairs": pairs.square().mean()}


def test_a_loss_of_the_users_own_in_micro_batches_is_the_mean_over_all_slides():
    _, plain = plain_gradients(tiny_model(2.0, 0.5), everything(BATCHES))
    model, batch = tiny_model(2.0, 0.5), everything(BATCHES)
    outputs = model(batch, logits=True)
    parts = per_slide(LossInputs(outputs.logits, batch.labels, batch.text_mask, outputs.text_latents,
                                 outputs.image_latents, model.decoder.logit_scale))
    sum(parts.values()).backward()
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    objective = Objective(tiny_model(2.0, 0.5), Precision("fp32", CPU, "test"), ALONE, per_slide)
    losses, found = gradients(objective, BATCHES)
    assert losses["custom"] == pytest.approx({k: v.item() for k, v in parts.items()}, rel=1e-4)
    for name, gradient in found.items():
        wanted = plain.get(name, 0) + alone.get(name, 0)
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)
    assert objective.losses(BATCHES).custom == pytest.approx(losses["custom"], rel=1e-4)


def test_what_the_users_function_raises_is_one_line_but_memory_errors_pass():
    def fails(inputs: LossInputs) -> dict:
        raise error

    objective = Objective(tiny_model(), Precision("fp32", CPU, "test"), ALONE, fails)
    error: Exception = AttributeError("no such thing")
    with refused("training.loss", "AttributeError: no such thing"):
        objective.losses(BATCHES)
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        objective.losses(BATCHES)
