"""Opens the sources that `--source` names."""

from importlib import import_module
from pathlib import Path

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.documents import Source
from bert_pipeline.corpus.sources.files import FileSource
from bert_pipeline.corpus.sources.registry import SOURCES, find_kind
from bert_pipeline.corpus.sources.suggest import suggest
from bert_pipeline.errors import UsageError


def open_sources(config: CorpusConfig) -> dict[str, Source]:
    """The sources by their `--source` values; a file that matches several patterns is read once.

    Raises `UsageError` for an unknown source, `BertpipeError` for a pattern that matches no file.
    """
    sources = {spec: open_source(spec, config) for spec in dict.fromkeys(config.source)}
    first: dict[Path, Path] = {}
    for source in sources.values():
        if isinstance(source, FileSource):
            # A symbolic link and its target are the same file.
            source.files = [
                file for file in source.files if first.setdefault(file.resolve(), file) is file
            ]
    return sources


def open_source(spec: str, config: CorpusConfig) -> Source:
    """The source that one `--source` value names. Raises `UsageError` when it is unknown."""
    kind = find_kind(spec)
    if kind is None:
        known = ", ".join(kind.usage for kind in SOURCES.values())
        raise UsageError(f"--source {spec}: unknown source.{suggest(spec)} Known sources: {known}.")
    module = import_module(f"bert_pipeline.corpus.sources.{kind.module}")
    source: Source = module.open_source(spec, config)
    return source
