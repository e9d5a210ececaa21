"""The state of a run: everything that changes during training besides tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Everything that changes during training besides tensors. Saved in full; plain numbers only."""

    epoch: int = 0  # epochs finished
    batches_done: int = 0  # finished steps of the current epoch; with fp16 some of them may have been skipped
    batch_size: int = 0  # slides in a micro-batch: training.batch_size, or the size that `auto` found
    micro_batches: int = 0  # in a step: accum_freq x processes at the start of the run, kept when resumed
    step: int = 0  # optimizer steps taken
    skipped: int = 0  # steps skipped by the fp16 loss scaler, in all
    skipped_in_row: int = 0
    best_loss: float = math.inf  # the best monitored score; with its sign changed if higher is better
    best_epoch: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl that belongs to this state
    sums: dict[str, float] = field(default_factory=dict)  # running sums of the epoch's losses and of their counts
