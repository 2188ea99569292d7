"""Options of `bertpipe examples`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from bert_pipeline.config import ShardedConfig


class ExamplesConfig(ShardedConfig):
    """Make training examples by the BERT release's algorithm."""

    execution: ClassVar[frozenset[str]] = ShardedConfig.execution | {"corpus", "tokenizer"}

    corpus: Path
    """Folder made by `bertpipe corpus`."""
    tokenizer: Path
    """Folder made by `bertpipe tokenize`."""
    max_seq_length: int = Field(128, ge=8, le=65535)
    """Longest example in tokens, special tokens included."""
    objective: Literal["mlm+nsp", "mlm"] = "mlm+nsp"
    """`mlm+nsp` makes sentence pairs (BERT); `mlm` takes consecutive sentences of one document (RoBERTa)."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens to predict in training examples."""
    validation_mask_rate: float = Field(0.15, gt=0, lt=1)
    """The same for validation examples; left at BERT's 15%, figures of runs with different mask rates compare."""
    max_predictions: int | None = Field(None, ge=1)
    """Most tokens to predict in one example; by default the mask rate of the longest example."""
    short_seq_prob: float = Field(0.1, ge=0, le=1)
    """Share of the documents that are cut to a random shorter length, so that short inputs are seen too."""
    dupe_factor: int = Field(5, ge=1)
    """Passes over the training documents, each with new pairs and new masks."""
    validation_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents held out; 0 holds out none."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice."""
