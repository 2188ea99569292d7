"""Tokenizer: a corpus becomes a WordPiece or byte-level BPE vocabulary."""
