"""Downloads files of a model repository to the cache of the Hub; nothing in them is executed."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from bert_pipeline.errors import SourceUnreachable
from bert_pipeline.hub.client import PERMANENT_ERRORS, connect, explain, with_retries
from bert_pipeline.progress import err
from bert_pipeline.storage.atomic import explain_full_disk


def download_files(
    repository: str, revision: str | None, patterns: Sequence[str], max_wait: float, quiet: bool
) -> Path:
    """Download the files of a model repository that match `patterns`; returns the cache folder.

    The folder is named by the commit. When the Hub does not respond, the files of this revision in
    the cache are used. Raises `BertpipeError` when there are none.
    """
    connect(max_wait, quiet)
    # The Xet client has its own retries.
    constants.HF_HUB_DISABLE_XET = True

    def ask(cached: bool = False) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=cached,
            )
        )

    try:
        with explain_full_disk(Path(constants.HF_HUB_CACHE)):
            return with_retries(ask, max_wait, quiet)
    except SourceUnreachable:
        try:
            folder = ask(cached=True)
        except LocalEntryNotFoundError:
            pass
        else:
            if not quiet:
                err.print(
                    f"{repository}: the Hub does not respond; using the files in the cache.",
                    markup=False,
                )
            return folder
        raise
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        raise explain(
            cause if isinstance(cause, Exception) else error, repository, "model"
        ) from None
    except PERMANENT_ERRORS as error:
        raise explain(error, repository, "model") from None
