"""A custom loss. Copy it to the root of the repository (git ignores it there), edit it, and train with

    python train_with_config.py --config config.yaml --set training.loss=my_losses:focal model.caption_loss_weight=0

The function gets one argument, not (pred, target), and returns {name: scalar tensor}; see docs/extending.md.
"""


def focal(inputs):
    """Focal loss, https://arxiv.org/abs/1708.02002: tokens predicted with low probability weigh more.

    inputs.logits: (b, t, v) of the next token. inputs.labels: (b, t), that token. inputs.text_mask: (b, t), true = a
    token, false = padding.
    """
    log_p = inputs.logits.log_softmax(-1).gather(-1, inputs.labels.unsqueeze(-1)).squeeze(-1)  # (b, t)
    losses = -((1 - log_p.exp()) ** 2) * log_p * inputs.text_mask
    return {"focal": (losses.sum(1) / inputs.text_mask.sum(1)).mean()}
