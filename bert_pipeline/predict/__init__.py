"""Predict: using a trained model."""
