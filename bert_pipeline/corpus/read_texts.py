"""The texts of a source, without building a corpus: to evaluate a model on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bert_pipeline.config import build_config
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.load import open_source
from bert_pipeline.corpus.sources.registry import find_kind
from bert_pipeline.errors import UsageError


def read_texts(source: str) -> Iterator[str]:
    """The documents of a source (as `bertpipe corpus --source` takes it) or of a text file.

    Raises `UsageError` if it is neither, and `BertpipeError` if it is missing or broken.
    """
    is_source = find_kind(source) is not None
    if not is_source and not Path(source).is_file():
        raise UsageError(f"{source}: no such file, and no source such as wikitext-2 or text:GLOB.")
    spec = source if is_source else f"text:{source}"
    config = build_config(CorpusConfig, {"source": spec, "out": "corpus"})
    for task in open_source(spec, config).tasks(config):
        for document in task.documents(Counter()):
            yield document.text
