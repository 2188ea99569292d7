"""Tokenizers of whatever origin, with the ids that example generation and training ask for."""

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
NONE = -1
"""The id of a special token that a tokenizer lacks, which is only to be measured."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
)
"""What transformers makes tokenizers of, as far as no other package is needed."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens."""

    pad: int
    unk: int | None
    """None where every text has tokens."""
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer folder in memory; plain `tokenizers`, so that no worker has to load transformers for ours."""

    tokenizer: "Tokenizer"
    vocab_size: int
    special: SpecialIds
    manifest: Manifest


def find_tokenizer(
    name: str | Path, revision: str | None = None, *, max_wait: float = 120, quiet: bool = False
) -> Path:
    """The folder of a tokenizer that is given as a folder or by its name on the hub, of which only it is downloaded.

    Raises `UsageError` when `name` is neither, and `BertpipeError` when the hub has no such tokenizer or is silent for
    `max_wait` seconds.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"--revision {revision}: {folder} is a folder here, and has no revisions."
            )
        return folder
    # `runs/my/tokenizer` or `runs/tokenizr` where there is a folder `runs` is no name on the hub.
    if not _HUB_NAME.fullmatch(str(name)) or (folder.parent.name and folder.parent.is_dir()):
        raise UsageError(
            f"{name}: no such folder. Give one of a tokenizer, or a name on the hub such as OWNER/NAME."
        )
    from bert_pipeline.hub.downloads import download_files
    from bert_pipeline.progress import err

    if "/" not in str(name) and not quiet:  # as likely a folder that is not there
        err.print(f"{name}: no such folder here; asking the Hub.", markup=False)
    # `config.json` names the kind of tokenizer where older repositories do not.
    return download_files(str(name), revision, [*TOKENIZER_FILES, "config.json"], max_wait, quiet)


def load_tokenizer(folder: Path, needed: Sequence[str] = NEEDED) -> LoadedTokenizer:
    """Load a folder made by `bertpipe tokenize`, or any that transformers loads a fast tokenizer from.

    Raises `BertpipeError` when it holds none, or one without the special tokens that are needed, by role.
    """
    if any((folder / name).exists() for name in (MANIFEST, UNFINISHED)) or not folder.is_dir():
        return _load_ours(folder)
    if not _tokenizer_files(folder):
        raise BertpipeError(
            f"{folder}: no tokenizer. The folder of one holds tokenizer.json and tokenizer_config.json, or a vocab.txt."
        )
    pretrained = _read_pretrained(folder)
    tokenizer = pretrained.backend_tokenizer
    tokens = {role: getattr(pretrained, f"{role}_token") for role in ROLES}
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in _tokenizer_files(folder)
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


def _load_ours(folder: Path) -> LoadedTokenizer:
    from tokenizers import Tokenizer

    manifest = read_manifest(folder, STAGE)
    for name, entry in manifest.files.items():
        if hash_file(folder / name) != entry["sha256"]:
            raise BertpipeError(
                f"{folder / name}: changed since it was written; make {folder} again with --overwrite."
            )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return _loaded(
        folder, tokenizer, {role: names.get(f"{role}_token") for role in ROLES}, manifest, NEEDED
    )


def find_special_ids(
    tokenizer: "Tokenizer",
    tokens: Mapping[str, str | None],
    where: Path,
    needed: Sequence[str] = NEEDED,
) -> SpecialIds:
    """Ids of the special tokens, given by role; `NONE` where there is none and none is needed.

    Raises `BertpipeError` naming those that examples cannot do without.
    """
    ids = {
        role: None if token is None else tokenizer.token_to_id(token)
        for role, token in tokens.items()
    }
    if missing := [role for role in needed if ids.get(role) is None]:
        unnamed = (
            ""
            if (where / "tokenizer_config.json").exists()
            else " named by a tokenizer_config.json"
        )
        raise BertpipeError(
            f"{where}: this tokenizer has no {' and no '.join(missing)} token{unnamed}, which masked examples need. "
            "Take one that was made for a BERT, or train one."
        )
    for role in ("cls", "sep"):
        # They become parts of a template, where these mean something else.
        if not set(":$ \t\n").isdisjoint(tokens.get(role) or ""):
            raise BertpipeError(
                f"{where}: its {role} token {tokens[role]!r} has a colon, a dollar or a space in it."
            )
    return SpecialIds(
        unk=ids.get("unk"),
        **{role: NONE if (found := ids.get(role)) is None else found for role in NEEDED},
    )


def special_tokens(loaded: LoadedTokenizer) -> dict[str, str]:
    """The special tokens by role, as far as there are."""
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
    special = find_special_ids(tokenizer, tokens, folder, needed)
    return LoadedTokenizer(tokenizer, count_ids(tokenizer), special, manifest)


def hash_vocabulary(tokenizer: "Tokenizer") -> str:
    """A fingerprint of which id stands for what."""
    return hash_json(tokenizer.get_vocab())


def count_ids(tokenizer: "Tokenizer") -> int:
    """The highest id and one more: a vocabulary from elsewhere may have holes."""
    return max(tokenizer.get_vocab().values()) + 1


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()]


def _read_pretrained(folder: Path) -> Any:
    """What transformers loads; nothing is run that lies in the folder."""
    from transformers import AutoTokenizer, BertTokenizer

    with _reading(folder):
        if [file.name for file in _tokenizer_files(folder)] == ["vocab.txt"] and not (
            folder / "config.json"
        ).exists():
            # The BERT release says beside the vocabulary what case it is for, in the name of its folder.
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
    except BertpipeError:  # a signal's
        raise
    except (
        Exception
    ) as error:  # the libraries raise anything, down to bare `Exception`, over what others wrote
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertpipeError(
            f"{folder}: no tokenizer that can be read without running code of its own ({detail})."
        ) from None
    finally:
        logging.set_verbosity(verbosity)
