"""Corpus: any source becomes documents in parquet."""
