"""Loading a tokenizer from any source, with the ids of its special tokens."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.atomic import hash_file, hash_json
from bert_pipeline.storage.manifest import MANIFEST, UNFINISHED, Manifest, read_manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "tokenize"
ROLES = ("pad", "unk", "cls", "sep", "mask")
NEEDED = ("pad", "cls", "sep", "mask")
MISSING_ID = -1
"""The id of a special token that a tokenizer lacks, where it is not required."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
"""The files that transformers loads a tokenizer from."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens."""

    pad: int
    unk: int | None
    """None if the tokenizer has no unknown token."""
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A loaded tokenizer, of the `tokenizers` library: workers need not import transformers."""

    tokenizer: "Tokenizer"
    vocab_size: int
    special: SpecialIds
    manifest: Manifest


def find_tokenizer(
    name: str | Path, revision: str | None = None, *, max_wait: float = 120, quiet: bool = False
) -> Path:
    """The folder of a tokenizer that is given as a folder, or as a name on the Hub.

    From the Hub only the tokenizer's files are downloaded. Raises `UsageError` when `name` is
    neither, and `BertpipeError` when the Hub has no such tokenizer or does not respond for
    `max_wait` seconds.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"--revision {revision}: {folder} is a local folder. Use a name on the Hub."
            )
        return folder
    if not is_hub_name(str(name)):
        raise UsageError(
            f"{name}: no such folder. Use the folder of a tokenizer, or a name on the Hugging Face "
            "Hub such as OWNER/NAME."
        )
    from bert_pipeline.hub.downloads import download_files
    from bert_pipeline.progress import err

    if "/" not in str(name) and not quiet:  # it may be a misspelt folder
        err.print(f"{name}: no such folder, downloading from the Hub.", markup=False)
    # In older repositories only `config.json` names the class of the tokenizer.
    return download_files(str(name), revision, [*TOKENIZER_FILES, "config.json"], max_wait, quiet)


def is_hub_name(name: str) -> bool:
    """Whether a name that is no folder may be one on the Hub."""
    parent = Path(name).expanduser().parent
    # `runs/my/tokenizer`, or `runs/tokenizr` beside an existing folder `runs`, is a wrong path.
    return bool(_HUB_NAME.fullmatch(name)) and not (parent.name and parent.is_dir())


def list_tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in `folder`. Raises `BertpipeError` if there are none."""
    files = [folder / name for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()]
    if not files:
        raise BertpipeError(
            f"{folder}: no tokenizer found. Expected tokenizer.json and tokenizer_config.json, or "
            "vocab.txt."
        )
    return files


def load_tokenizer(folder: Path, needed: Sequence[str] = NEEDED) -> LoadedTokenizer:
    """Load a folder of `bertpipe tokenize`, or any that transformers loads a fast tokenizer from.

    Raises `BertpipeError` when the folder has no tokenizer, or the tokenizer lacks one of the
    special tokens in `needed`.
    """
    if any((folder / name).exists() for name in (MANIFEST, UNFINISHED)) or not folder.is_dir():
        return _load_stage_folder(folder)
    tokenizer_files = list_tokenizer_files(folder)
    pretrained = _read_pretrained(folder)
    tokenizer = pretrained.backend_tokenizer
    tokens = {role: getattr(pretrained, f"{role}_token") for role in ROLES}
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in tokenizer_files
    }
    manifest = Manifest(
        stage=STAGE,
        config={},
        inputs={},
        counts={},
        files=files,
        versions={},
        fingerprint=hash_json(files),
    )
    return _loaded(folder, tokenizer, tokens, manifest, needed)


def _load_stage_folder(folder: Path) -> LoadedTokenizer:
    from tokenizers import Tokenizer

    manifest = read_manifest(folder, STAGE)
    for name, entry in manifest.files.items():
        if hash_file(folder / name) != entry["sha256"]:
            raise BertpipeError(
                f"{folder / name}: changed since it was written. Rebuild {folder} with --overwrite."
            )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return _loaded(
        folder, tokenizer, {role: names.get(f"{role}_token") for role in ROLES}, manifest, NEEDED
    )


def resolve_special_ids(
    tokenizer: "Tokenizer",
    tokens: Mapping[str, str | None],
    where: Path,
    needed: Sequence[str] = NEEDED,
) -> SpecialIds:
    """Ids of the special tokens, which are given by role; `MISSING_ID` where there is none.

    Raises `BertpipeError` naming the missing ones that are `needed`.
    """
    ids = {
        role: None if token is None else tokenizer.token_to_id(token)
        for role, token in tokens.items()
    }
    if missing := [role for role in needed if ids.get(role) is None]:
        has_config = (where / "tokenizer_config.json").exists()
        cause = "" if has_config else " (no tokenizer_config.json names one)"
        raise BertpipeError(
            f"{where}: the tokenizer has no {' and no '.join(missing)} token{cause}, which masked "
            "examples require. Use the tokenizer of a BERT-like model, or train one."
        )
    for role in ("cls", "sep"):
        # These characters have a meaning in the template of the post-processor.
        if not set(":$ \t\n").isdisjoint(tokens.get(role) or ""):
            raise BertpipeError(
                f"{where}: the {role} token {tokens[role]!r} contains a colon, a dollar sign or a "
                "space, which is not supported."
            )
    found = {role: ids.get(role) for role in NEEDED}
    return SpecialIds(
        unk=ids.get("unk"),
        **{role: MISSING_ID if number is None else number for role, number in found.items()},
    )


def special_tokens(loaded: LoadedTokenizer) -> dict[str, str]:
    """The special tokens that the tokenizer has, by role."""
    ids = {role: number for role in ROLES if (number := getattr(loaded.special, role)) is not None}
    tokens = {role: loaded.tokenizer.id_to_token(number) for role, number in ids.items()}
    return {role: token for role, token in tokens.items() if token is not None}


def _loaded(
    folder: Path,
    tokenizer: "Tokenizer",
    tokens: Mapping[str, str | None],
    manifest: Manifest,
    needed: Sequence[str],
) -> LoadedTokenizer:
    special = resolve_special_ids(tokenizer, tokens, folder, needed)
    return LoadedTokenizer(tokenizer, count_ids(tokenizer), special, manifest)


def hash_vocabulary(tokenizer: "Tokenizer") -> str:
    """A hash of all entries and their ids."""
    return hash_json(tokenizer.get_vocab())


def count_ids(tokenizer: "Tokenizer") -> int:
    """The highest id plus one: the ids of an existing vocabulary may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def _read_pretrained(folder: Path) -> Any:
    """Load with transformers, without running code from the folder."""
    from transformers import AutoTokenizer, BertTokenizer

    with _reading(folder):
        if [file.name for file in list_tokenizer_files(folder)] == ["vocab.txt"] and not (
            folder / "config.json"
        ).exists():
            # The BERT release says whether a vocabulary is cased only in the name of its folder.
            pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
            is_cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
            return BertTokenizer.from_pretrained(
                folder, local_files_only=True, do_lower_case=not is_cased
            )
        pretrained = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if not pretrained.is_fast:
            raise ValueError(f"{type(pretrained).__name__} has no tokenizer.json")
        return pretrained


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except BertpipeError:  # raised by a signal handler
        raise
    except Exception as error:  # the libraries raise any class for malformed files
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertpipeError(
            f"{folder}: no tokenizer that can be loaded without running its code ({detail})."
        ) from None
    finally:
        logging.set_verbosity(verbosity)
