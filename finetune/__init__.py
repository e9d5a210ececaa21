"""What the three scripts share: config, data, model, training loop, checkpoints, captioning."""
