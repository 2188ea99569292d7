"""The texts of a source, without building a corpus: to evaluate a model on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bert_pipeline.config import build_config
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.load import open_source
from bert_pipeline.corpus.sources.registry import find_kind


def read_texts(source: str) -> Iterator[str]:
    """The documents of a source (as `bertpipe corpus --source` takes it) or of a text file.

    Raises `BertpipeError` if the source is missing or broken.
    """
    spec = source if find_kind(source) or not Path(source).exists() else f"text:{source}"
    config = build_config(CorpusConfig, {"source": spec, "out": "corpus"})
    for task in open_source(spec, config).tasks(config):
        for document in task.documents(Counter()):
            yield document.text
