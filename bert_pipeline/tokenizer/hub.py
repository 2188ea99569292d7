"""Tokenizers on the hub, downloaded into its usual cache: their files alone, and no code."""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from bert_pipeline.artifact import explain_full_disk
from bert_pipeline.corpus.documents import SourceUnreachable
from bert_pipeline.corpus.hub_client import REFUSALS, connect, explain, patiently
from bert_pipeline.progress import err
from bert_pipeline.tokenizer.load import TOKENIZER_FILES

WANTED = [*TOKENIZER_FILES, "config.json"]
"""`config.json` names the kind of tokenizer where older repositories do not."""


def download_tokenizer(name: str, revision: str | None, max_wait: float, quiet: bool) -> Path:
    """The folder of a tokenizer's files in the cache, named by their commit.

    When the hub is silent, what the cache holds of this revision is taken. Raises `BertpipeError` when there is none.
    """
    connect(max_wait, quiet)
    if "/" not in name and not quiet:  # as likely a folder that is not there
        err.print(f"{name}: no folder here; asking the hub.", markup=False)
    constants.HF_HUB_DISABLE_XET = True  # it has a client of its own, which would try again as often as it likes

    def ask(cached: bool = False) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED, local_files_only=cached))

    try:
        with explain_full_disk(Path(constants.HF_HUB_CACHE)):
            return patiently(ask, max_wait, quiet)
    except SourceUnreachable:
        try:
            folder = ask(cached=True)
        except LocalEntryNotFoundError:
            pass
        else:
            if not quiet:
                err.print(f"{name}: the hub gives no answer; taking what was downloaded before.", markup=False)
            return folder
        raise
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        raise explain(cause if isinstance(cause, Exception) else error, name, "model") from None
    except REFUSALS as error:
        raise explain(error, name, "model") from None
