"""The columns of example shards, named as the training instances of the BERT release.

https://github.com/google-research/bert/blob/master/create_pretraining_data.py
"""

import pyarrow as pa

STAGE = "examples"
TOKEN_COUNTS = "token_counts.npy"
"""Occurrences of each id in the training documents, int64 of shape (vocab_size,); gives the unigram
baseline of the evaluation."""

SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("segment_ids", pa.list_(pa.int8())),
        ("is_random_next", pa.bool_()),
        ("masked_positions", pa.list_(pa.int32())),
        ("masked_labels", pa.list_(pa.int32())),
    ]
)

WORD_STARTS = pa.field("word_starts", pa.list_(pa.bool_()))
"""Additional column where dynamic masking masks whole words or spans: which tokens begin a word."""

SOURCE = pa.field("source", pa.dictionary(pa.int32(), pa.string()))
"""Additional column of validation shards where the corpus has several sources: the source of the
document that a row begins with."""
