"""The columns of example shards, named as the BERT release names its training instances."""

import pyarrow as pa

STAGE = "examples"
TOKEN_COUNTS = "token_counts.npy"
"""Occurrences of each id in the training documents, int64 of shape (vocab_size,): the unigram baseline's source."""

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
"""Beside the others where words are masked as wholes later on, in training: which tokens begin a word."""
