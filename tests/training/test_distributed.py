"""Several processes against one: the same losses, gradients, runs. gloo on this machine's CPU."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.common.distributed import World, join_world
from finetune.common.errors import UserError
from finetune.training.collapse_check import CollapseCheck
from finetune.training.loop import train_step
from finetune.training.state import TrainState
from tests.helpers.files import ROOT
from tests.helpers.training import (
    CPU,
    a_batch,
    everything,
    free_port,
    gradients,
    objective_of,
    parts_of,
    plain_gradients,
    tiny_model,
)

pytestmark = pytest.mark.full

# the slides of each rank, step by step: even, uneven, several micro-batches, ranks without any
STEPS = {"even": [[3], [3], [3], [3]], "uneven": [[3], [1], [2], [3]], "micro-batches": [[2, 3], [3, 1], [2], [1, 1, 2]],
         "empty ranks": [[2], [], [2, 1], []]}


def a_step(layout: list[list[int]]) -> list[list]:
    """Micro-batches of each rank; the first text of each also occurs in the others."""
    ranks, seed = [], 0
    for sizes in layout:
        ranks.append([])
        for size in sizes:
            seed += 1
            batch = a_batch(seed, size, [2 + (seed + i) % 4 for i in range(size)])
            first = a_batch(99, 1, [batch.text_mask[0].sum().item()])
            batch.text[0, :first.text.shape[1]], batch.labels[0, :first.text.shape[1]] = first.text[0], first.labels[0]
            ranks[-1].append(batch)
    return ranks










def overflow(world: World, folder: Path) -> tuple[float, int, bool]:
    """A gradient that overflows on the last rank alone: scale, steps skipped, whether the weights stayed."""
    parts = parts_of(tiny_model(), folder, world=world, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**120))
    if world.rank == world.size - 1:
        for p in parts.model.trained_parameters():
            p.register_hook(lambda g: g * 2.0**30)
    before, state = copy.deepcopy(parts.model.state_dict()), TrainState()
    train_step(parts, [a_batch(world.rank, 2)], 1e-2, state)
    return parts.scaler.get_scale(), state.skipped, all(torch.equal(v, before[k]) for k, v in
                                                         parts.model.state_dict().items())


def poisoned(world: World, folder: Path) -> str:
    """The error of each rank for a NaN on the last one."""
    batch = a_batch(world.rank, 2)
    if world.rank == world.size - 1:
        batch.tile_embeddings[0, 0, 0] = torch.nan
    with pytest.raises(UserError) as caught:
        train_step(parts_of(tiny_model(), folder, world=world), [batch], 1e-2, TrainState())
    return caught.value.line()


VALIDATION = [[[2], [3], [1], [2]], [[1], [], [2], []], [[1], [], [], []]]


def validated(world: World, folder: Path) -> dict[str, float]:
    steps = [a_step(layout[:world.size])[world.rank] for layout in VALIDATION]
    return parts_of(tiny_model(), folder, world=world, validation=steps, observers=[CollapseCheck()]).validate(1)


def worker(folder: Path) -> None:
    """One rank: computes and saves everything that the tests compare."""
    with join_world(CPU) as world:
        found = {name: gradients(objective_of(world), a_step(layout[:world.size])[world.rank])
                 for name, layout in STEPS.items()}
        found |= {"overflow": overflow(world, folder), "poisoned": poisoned(world, folder),
                  "validated": validated(world, folder), "any": [world.any(world.rank == 1), world.any(False)],
                  "share": world.broadcast_object(lambda: os.getpid())}
        torch.save(found, folder / f"{world.rank}.pt")




@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[dict]:
    """What `worker` found on each rank of 2 and of 4 processes."""
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    code = f"from pathlib import Path; from tests.training.test_distributed import worker; worker(Path({str(folder)!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port),
        "WORLD_SIZE": str(request.param), "MASTER_ADDR": "127.0.0.1"}) for rank in range(request.param)]
    assert [p.wait(120) for p in processes] == [0] * request.param
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("step", STEPS)
def test_ranks_have_the_losses_and_gradients_of_one_process_with_the_whole_batch(ranks, step):
    micro_batches = [b for rank in a_step(STEPS[step][:len(ranks)]) for b in rank]
    wanted_losses, wanted = plain_gradients(tiny_model(2.0, 0.5), everything(micro_batches))
    for losses, found in (rank[step] for rank in ranks):
        assert {k: losses[k] for k in wanted_losses} == pytest.approx(wanted_losses, abs=1e-5)
        assert found.keys() == wanted.keys() and "decoder.temperature" in found
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
            assert torch.equal(found[name], ranks[0][step][1][name]), "ranks must not drift apart"


@pytest.mark.parametrize("step", STEPS)
def test_the_number_of_true_negatives_is_that_of_the_whole_batch(ranks, step):
    micro_batches = [b for rank in a_step(STEPS[step][:len(ranks)]) for b in rank]
    texts = [tuple(row[m].tolist()) for b in micro_batches for row, m in zip(b.text, b.text_mask, strict=True)]
    wanted = sum(a != b for a in texts for b in texts) / len(texts)
    assert all(rank[step][0]["negatives"] == pytest.approx(wanted) for rank in ranks)


def test_N02_an_overflow_on_one_rank_skips_the_step_on_all(ranks):
    assert all(rank["overflow"] == (2.0**119, 1, True) for rank in ranks)


def test_N01_a_number_that_is_not_finite_on_one_rank_ends_all_with_its_slides(ranks):
    last = len(ranks) - 1
    assert {rank["poisoned"] for rank in ranks} == {ranks[0]["poisoned"]}
    assert f"slides s{last}_0, s{last}_1" in ranks[0]["poisoned"]


def test_N08_validation_is_exact_over_ranks(ranks, tmp_path):
    micro_batches = [[b for rank in a_step(layout[:len(ranks)]) for b in rank] for layout in VALIDATION]
    whole = parts_of(tiny_model(), tmp_path, validation=[everything(step) for step in micro_batches]).validate(1)
    watched = parts_of(tiny_model(), tmp_path, validation=micro_batches, observers=[CollapseCheck()]).validate(1)
    for rank in ranks:
        assert {k: rank["validated"][k] for k in whole} == pytest.approx(whole, abs=1e-5)
        assert rank["validated"]["val_shuffled_gap"] == pytest.approx(watched["val_shuffled_gap"], abs=1e-5)


def test_ranks_agree_and_share(ranks):
    assert all(rank["any"] == [True, False] and rank["share"] == ranks[0]["share"] for rank in ranks)
