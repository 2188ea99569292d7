"""Deduplication: exact and near duplicates in the complete corpus."""
