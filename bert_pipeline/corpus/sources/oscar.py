"""`oscar:LANG`: OSCAR, web text of Common Crawl by language.

Source: Abadji et al., 2022, "Towards a Cleaner Document-Oriented Multilingual Crawled Corpus",
https://arxiv.org/abs/2201.06642; https://huggingface.co/datasets/oscar-corpus/OSCAR-2301.
"""

import re

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.hub_source import DatasetSpec, HubSource
from bert_pipeline.errors import UsageError

REPOSITORY = "oscar-corpus/OSCAR-2301"


def open_source(spec: str, config: CorpusConfig) -> HubSource:
    """OSCAR in one language, from `--repository` or the default repository."""
    language = spec.partition(":")[2].lower()
    if not re.fullmatch(r"[a-z]{2,5}", language):
        raise UsageError(
            f"--source {spec}: not a language code. Write oscar:LANG, such as oscar:fa."
        )
    if config.split != "train":
        raise UsageError(f"--source {spec}: no split {config.split}; OSCAR has only train.")
    return HubSource(spec, DatasetSpec(config.repository or REPOSITORY, language=language), config)
