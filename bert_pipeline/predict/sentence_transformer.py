"""Folders that the library sentence-transformers saved: `modules.json` beside an encoder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.predict.load import find_model
from bert_pipeline.predict.pooling import CLS, MEAN

MODULES = "modules.json"
KNOWN = ("Transformer", "Pooling", "Normalize")
POOLINGS = (MEAN, CLS)
OLD_POOLING = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS}
"""The fields of versions before 5.4, of which one is true."""


@dataclass(frozen=True, slots=True)
class EncoderFolder:
    """An encoder, and how its vectors are made by default."""

    folder: Path
    pooling: str = MEAN
    max_length: int | None = None
    normalize: bool = False


def read_encoder_folder(path: Path) -> EncoderFolder:
    """The encoder at `path` (see `find_model`), with the settings of sentence-transformers, if any.

    Raises `BertpipeError` if there is no model, or one whose vectors this package cannot make.
    """
    if not (path / MODULES).is_file():
        return EncoderFolder(find_model(path))
    modules = {kind: path / folder for kind, folder in _list_modules(path)}
    if unknown := [kind for kind in modules if kind not in KNOWN]:
        raise BertpipeError(
            f"{path / MODULES}: {', '.join(unknown)} is not supported, only {', '.join(KNOWN)}. "
            "Use the library sentence-transformers."
        )
    _check_prompt(path)
    encoder = modules.get("Transformer", path)
    length = _read(encoder / "sentence_bert_config.json").get("max_seq_length")
    return EncoderFolder(
        find_model(encoder),
        _read_pooling(modules["Pooling"] / "config.json") if "Pooling" in modules else MEAN,
        length if isinstance(length, int) else None,
        "Normalize" in modules,
    )


def _list_modules(path: Path) -> list[tuple[str, str]]:
    """The class and the folder of each module."""
    try:
        entries = json.loads((path / MODULES).read_text(encoding="utf-8"))
        modules = [(str(entry["type"]).rpartition(".")[2], entry["path"]) for entry in entries]
        is_within = all(folder in ("", Path(folder).name) for _, folder in modules)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_within = False
    if not is_within:
        raise BertpipeError(
            f"{path / MODULES}: a list of modules in folders beside it is expected."
        )
    return modules


def _read_pooling(file: Path) -> str:
    fields = _read(file)
    found = fields.get("pooling_mode", [OLD_POOLING.get(n, n) for n in fields if fields[n] is True])
    modes = [found] if isinstance(found, str) else [m for m in found if m != "include_prompt"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise BertpipeError(
            f"{file}: its pooling is {' and '.join(map(str, modes)) or 'unknown'}; supported are "
            f"{' and '.join(POOLINGS)}. Use the library sentence-transformers."
        )
    return str(modes[0])


def _check_prompt(path: Path) -> None:
    file = path / "config_sentence_transformers.json"
    if name := _read(file).get("default_prompt_name"):
        raise BertpipeError(
            f"{file}: it puts the prompt {name!r} before each text, which is not supported. Put it "
            "into the texts, and remove default_prompt_name from the file."
        )


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty without the file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BertpipeError(f"{file}: not a JSON object.")
    return value
