"""`hub:REPO[:CONFIG]`: any dataset on the Hugging Face Hub."""

import re

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources import wikitext
from bert_pipeline.corpus.sources.hub_source import DatasetSpec, HubSource
from bert_pipeline.errors import UsageError
from bert_pipeline.progress import err

MOVED = {
    "ag_news": "fancyzhx/ag_news",
    "bookcorpus": "bookcorpus/bookcorpus",
    "c4": "allenai/c4",
    "cc_news": "vblagoje/cc_news",
    "imdb": "stanfordnlp/imdb",
    "mc4": "allenai/c4",
    "openwebtext": "Skylion007/openwebtext",
    "wikipedia": "wikimedia/wikipedia",
    "wikitext": wikitext.REPOSITORY,
}
"""Old names without an owner, which the Hub no longer accepts, and the current names."""


def open_source(spec: str, config: CorpusConfig) -> HubSource:
    """The dataset that `spec` names. Raises `UsageError` for a malformed name."""
    dataset = parse_spec(spec, config)
    if dataset.repository == wikitext.REPOSITORY:
        return wikitext.WikiTextSource(spec, dataset, config)
    return HubSource(spec, dataset, config)


def parse_spec(spec: str, config: CorpusConfig) -> DatasetSpec:
    """Repository and config of a value `hub:REPO[:CONFIG]`."""
    repository, _, name = spec.partition(":")[2].partition(":")
    if repository in MOVED:
        moved = MOVED[repository]
        if not config.quiet:
            err.print(f"--source {spec}: {repository} is now {moved}.", markup=False)
        return DatasetSpec(moved, name or None)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return DatasetSpec(repository, name or None)
    hint = "oscar:LANG, such as oscar:fa" if repository == "oscar" else "hub:OWNER/NAME[:CONFIG]"
    raise UsageError(f"--source {spec}: not a dataset on the Hub. Write {hint}.")
