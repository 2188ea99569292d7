"""BERT pretraining on top of the training engine."""
