"""A trained tokenizer with the ids that example generation and training ask for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pipeline.artifact import Manifest, hash_file, read_manifest
from bert_pipeline.errors import BertpipeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "tokenize"
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer folder in memory; plain `tokenizers`, so that no worker has to load transformers."""

    tokenizer: "Tokenizer"
    vocab_size: int
    special: SpecialIds
    manifest: Manifest


def load_tokenizer(folder: Path) -> LoadedTokenizer:
    """Load a folder made by `bertpipe tokenize`; `BertpipeError` when it is none."""
    from tokenizers import Tokenizer

    manifest = read_manifest(folder, STAGE)
    for name, entry in manifest.files.items():
        if hash_file(folder / name) != entry["sha256"]:
            raise BertpipeError(f"{folder / name}: changed since it was written; make {folder} again with --overwrite.")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer.get_vocab()
    ids = {role: vocabulary[names[f"{role}_token"]] for role in SPECIAL_TOKENS}
    return LoadedTokenizer(tokenizer, tokenizer.get_vocab_size(), SpecialIds(**ids), manifest)
