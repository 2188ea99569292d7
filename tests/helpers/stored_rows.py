"""Rows of an examples folder, as training reads them and straight from its columns."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bert_pipeline.pretraining.batches import Examples
from bert_pipeline.storage.manifest import read_manifest


@cache
def load_examples(folder: Path, seed: int = 0) -> Examples:
    """The training rows of a folder, as `bertpipe pretrain` reads them."""
    manifest = read_manifest(folder, "examples")
    return Examples.open(folder, manifest, "train", manifest.counts["vocab_size"], seed=seed)


def read_rows(folder: Path, column: str, rows: Any) -> list[Any]:
    """Rows of one column of the training shards, as they are stored in the files."""
    files = sorted(folder.glob("train-*"))
    values = pa.concat_tables(pq.read_table(file, columns=[column]) for file in files)[column]
    return [values[int(row)].as_py() for row in rows]


def stock_batch(folder: Path, rows: Any) -> dict[str, torch.Tensor]:
    """Rows padded as the stock model takes them."""
    names = ("tokens", "segment_ids", "masked_positions", "masked_labels", "is_random_next")
    tokens, segment_ids, positions, hidden, is_random_next = (
        read_rows(folder, name, rows) for name in names
    )
    shape = len(rows), max(map(len, tokens))
    batch = {
        name: torch.zeros(shape, dtype=torch.long)
        for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    batch["labels"] = torch.full(shape, -100)
    for row, length in enumerate(map(len, tokens)):
        batch["input_ids"][row, :length] = torch.tensor(tokens[row])
        batch["token_type_ids"][row, :length] = torch.tensor(segment_ids[row])
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, positions[row]] = torch.tensor(hidden[row])
    return batch | {"next_sentence_label": torch.tensor(np.array(is_random_next).astype(np.int64))}
