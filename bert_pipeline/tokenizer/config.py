"""Options of `bertpipe tokenize`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bert_pipeline.config import StageConfig, available_cores


class TokenizeConfig(StageConfig):
    """Train a tokenizer on a corpus."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {"corpus", "workers"}

    corpus: Path
    """Folder made by `bertpipe corpus`."""
    kind: Literal["wordpiece", "byte-bpe"] = "wordpiece"
    """`wordpiece` is BERT's; `byte-bpe` knows no unknown character and suits any language."""
    vocab_size: int = Field(30522, ge=16)
    """Entries of the vocabulary, special tokens included."""
    lowercase: bool | None = None
    """Fold case; by default as the BERT release's uncased model for wordpiece, and not for byte-bpe."""
    strip_accents: bool | None = None
    """Remove accents (wordpiece); by default when lowercasing, as BERT does."""
    chinese_characters: bool = True
    """Take each CJK character as a word (wordpiece), as BERT does."""
    min_frequency: int = Field(2, ge=1)
    """A piece that occurs less often gets no entry."""
    alphabet_size: int = Field(1000, ge=1)
    """Single characters that get an entry, the most frequent first (wordpiece); others are unknown."""
    sample_mb: float = Field(1000.0, gt=0)
    """Megabytes of text to learn from; from a larger corpus, documents are drawn at random."""
    seed: int = Field(0, ge=0)
    """Seed of that draw."""
    workers: int = Field(default_factory=available_cores, ge=1)
    """Threads to count with; the result is the same for any number."""

    @model_validator(mode="after")
    def _check_kind(self) -> "TokenizeConfig":
        only_wordpiece = {"strip_accents", "chinese_characters", "alphabet_size"} & self.model_fields_set
        if self.kind == "byte-bpe" and only_wordpiece:
            raise ValueError(f"byte-bpe knows no {' or '.join(sorted(only_wordpiece))}; leave it out.")
        return self
