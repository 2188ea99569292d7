"""Cleaning: the steps of `--clean` that look at one document at a time."""
