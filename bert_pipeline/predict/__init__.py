"""Predict: what a model folder can do."""
