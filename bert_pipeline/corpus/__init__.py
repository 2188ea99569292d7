"""Corpus: converts any source to documents in parquet."""
