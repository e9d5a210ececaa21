"""Signals in long phases: they end at once, and nothing is changed by what was under way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
import torch

from finetune.checkpoints.format import RunDescription
from finetune.common.distributed import World
from finetune.training.loop import fit
from finetune.training.saver import Saver
from finetune.training.signals import StopRequested, StopSignals
from finetune.training.state import TrainState
from tests.helpers.training import a_batch, parts_of, tiny_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals between processes")


class Slow:
    """An observer that takes a minute for a micro-batch."""

    def begin(self, epoch: int) -> None:
        pass

    def observe(self, observed) -> None:
        time.sleep(60)


class TwoRanks(World):
    """The rank 0 of two; the other one has got a signal after the second question."""

    asked = 0

    def any(self, flag: bool) -> bool:
        TwoRanks.asked += 1
        return flag or self.asked > 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_K17_a_signal_ends_a_validation_at_once_and_leaves_the_state_that_is_saved(tmp_path, number):
    saved: list[TrainState] = []
    model = tiny_model()
    parts = parts_of(model, tmp_path, [a_batch(0, 2)], [a_batch(9, 2)], saved, observers=[Slow()])
    state, signals = TrainState(), parts.validate.signals
    with signals:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
        timer.start()
        started = time.monotonic()
        with pytest.raises(StopRequested):
            fit(parts, state)
    assert time.monotonic() - started < 10 and signals.received == number
    assert state == saved[-1] and (state.epoch, state.batches_done) == (0, 1) and model.training
    assert not (tmp_path / "metrics.jsonl").exists()


def test_K17_an_epoch_that_is_not_late_is_saved_when_the_signal_comes(tmp_path):
    saved: list[TrainState] = []
    parts = parts_of(tiny_model(), tmp_path, [a_batch(0, 2)] * 2, [a_batch(9, 2)], saved, is_late=lambda: False)
    parts.validate.observers = [type("Stops", (Slow,), {"observe": lambda *_: os.kill(os.getpid(), signal.SIGTERM)})()]
    with parts.validate.signals, pytest.raises(StopRequested):
        fit(parts, TrainState())
    assert [(s.epoch, s.batches_done, s.step) for s in saved] == [(0, 2, 2)]


def test_K17_saving_before_a_validation_takes_a_small_part_of_the_time(tmp_path):
    model = tiny_model()
    saver = Saver(tmp_path, 0, model, torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", enabled=False),
                  RunDescription(config={}, tokenizer={}, prism={}, data={}, versions={}))
    assert saver.is_late(), "nothing is saved"
    saver.save(TrainState(), False)
    assert 0 < saver._save_seconds < 60 and time.monotonic() - saver._saved_at < 60
    for seconds, is_late in ((19, False), (21, True)):
        saver._save_seconds, saver._saved_at = 4.0, time.monotonic() - seconds
        assert saver.is_late() == is_late


def test_K17_a_signal_of_before_ends_a_long_phase_when_it_begins(tmp_path):
    signals = StopSignals(World())
    with signals:
        os.kill(os.getpid(), signal.SIGTERM)
        for together in (False, True):
            with pytest.raises(StopRequested), signals.interruptible(together=together):
                pytest.fail("must not begin")


def test_K17_several_ranks_leave_a_validation_together_after_a_step(tmp_path):
    TwoRanks.asked = 0
    batches = [a_batch(i, 2) for i in range(5)]
    parts = parts_of(tiny_model(), tmp_path, [a_batch(9, 2)], batches)
    seen: list[int] = []
    parts.validate.observers = [type("Counts", (), {"begin": lambda *_: None, "observe": lambda *_: seen.append(1)})()]
    parts.validate.signals = StopSignals(TwoRanks(0, 2))
    with pytest.raises(StopRequested):
        parts.validate(1)
    assert len(seen) == 2, "asked before the pass, and after each of its steps"


def test_K17_a_signal_does_not_leave_such_a_block_of_several_ranks_alone():
    signals = StopSignals(TwoRanks(0, 2))
    TwoRanks.asked = 0
    with signals, contextlib.suppress(StopRequested), signals.interruptible(together=True):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        signals.raise_if_any()
        pytest.fail("the answer to the question is yes")
    assert signals.received == signal.SIGTERM
