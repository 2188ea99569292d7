"""The registry of tokenizer kinds.

To add one: write a module with its `TokenizerKind` record, and list it here.
"""

from bert_pipeline.tokenizer.byte_bpe import BYTE_BPE
from bert_pipeline.tokenizer.kind import TokenizerKind
from bert_pipeline.tokenizer.unigram import UNIGRAM
from bert_pipeline.tokenizer.wordpiece import WORDPIECE

KINDS: dict[str, TokenizerKind] = {kind.name: kind for kind in (WORDPIECE, BYTE_BPE, UNIGRAM)}
"""Kinds by name, the value of `--kind`."""
