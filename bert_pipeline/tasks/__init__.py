"""Tasks: rows of labelled text as batches, losses, predictions and metrics, for any model."""
