"""Where a run stands: integers and scores, everything that moves while training besides tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class TrainState:
    """All that moves while training, besides the tensors. Saved whole; plain numbers only."""

    epoch: int = 0  # epochs finished
    batches_done: int = 0  # steps of the running epoch already done; with fp16 not all of them moved the weights
    batch_size: int = 0  # slides in a micro-batch: training.batch_size, or what `auto` has found
    micro_batches: int = 0  # in a step: accum_freq x processes when the run began, kept if it is resumed with others
    step: int = 0  # optimizer steps taken
    skipped: int = 0  # steps skipped by the fp16 loss scaler, in all
    skipped_in_row: int = 0
    best_loss: float = math.inf  # the best monitored score; with its sign changed if higher is better
    best_epoch: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl that belongs to this state
    sums: dict[str, float] = field(default_factory=dict)  # running sums of the epoch's losses and their weights
