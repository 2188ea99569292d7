"""The training engine: loop, optimizers, checkpoints, metrics. It knows no BERT."""
