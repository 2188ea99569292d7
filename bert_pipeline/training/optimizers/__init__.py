"""Optimizers: one module per optimizer, and their registry."""
