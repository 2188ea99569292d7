"""The registry of source kinds: what `--source` accepts, and the module that implements each kind.

To add a source, write a module in this package with a function
`open_source(spec: str, config: CorpusConfig) -> Source` (see `bert_pipeline.corpus.documents`), and
add one line to `SOURCES`. The modules are imported when a source of their kind is opened, because
some of them take seconds to import.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One kind of source."""

    usage: str
    """What the user writes: `NAME`, or `NAME:ARGUMENT`."""
    module: str
    """The module of this package whose `open_source` makes the source."""
    is_hub: bool = False
    """Whether it reads from the Hugging Face Hub, so that options such as `--revision` apply."""

    @property
    def name(self) -> str:
        """The part of `usage` before the colon."""
        return self.usage.partition(":")[0]

    @property
    def takes_argument(self) -> bool:
        """Whether the name is followed by a colon and an argument."""
        return ":" in self.usage


SOURCES = {
    kind.name: kind
    for kind in (
        SourceKind("python-docs", "python_docs.source"),
        SourceKind("wikitext-2", "wikitext", is_hub=True),
        SourceKind("wikitext-103", "wikitext", is_hub=True),
        SourceKind("oscar:LANG", "oscar", is_hub=True),
        SourceKind("hub:REPO[:CONFIG]", "hub_datasets", is_hub=True),
        SourceKind("text:GLOB", "plain_text"),
        SourceKind("jsonl:GLOB", "json_lines"),
        SourceKind("csv:GLOB", "delimited"),
        SourceKind("tsv:GLOB", "delimited"),
        SourceKind("parquet:GLOB", "parquet"),
    )
}


def find_kind(spec: str) -> SourceKind | None:
    """The kind of a `--source` value; None when no kind matches."""
    kind = SOURCES.get(spec.partition(":")[0])
    return kind if kind and kind.takes_argument == (":" in spec) else None


def is_hub(spec: str) -> bool:
    """Whether a `--source` value names a dataset on the Hub."""
    kind = find_kind(spec)
    return kind is not None and kind.is_hub
