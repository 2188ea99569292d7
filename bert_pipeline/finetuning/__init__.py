"""Fine-tuning: a pretrained model on a task, on the training engine."""
