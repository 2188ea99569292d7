"""Training: examples become a pretrained model."""
