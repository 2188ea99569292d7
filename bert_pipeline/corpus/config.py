"""Options of `bertpipe corpus`."""

from typing import Literal

from pydantic import Field

from bert_pipeline.config import ShardedConfig


class CorpusConfig(ShardedConfig):
    """Turn sources into documents in parquet."""

    source: tuple[str, ...] = Field(min_length=1)
    """`python-docs`, `text:GLOB`, `jsonl:GLOB` or `parquet:GLOB` (plain, .gz or .zst); may be given several times."""
    text_field: str | None = None
    """Field or column that holds the text in jsonl and parquet; by default `text`, else `content`."""
    language: str = "en"
    """ISO 639 code of the documents' language; it chooses the sentence rules."""
    on_error: Literal["fail", "skip"] = "fail"
    """On a broken row or file: `fail` names it and stops, `skip` leaves it out and counts it."""
    shard_mb: float = Field(16.0, gt=0)
    """Megabytes of source text that a shard takes in, about."""
