"""Finding a model folder and loading it, safetensors only."""

from pathlib import Path
from typing import Any

from bert_pipeline.errors import BertpipeError


def find_model(path: Path) -> Path:
    """The Hugging Face folder at `path`, or in it when `path` is the folder of a run or of its pretrain stage."""
    for candidate in (path, path / "model", path / "pretrain" / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    unfinished = (
        " Its training has not finished: run it again." if (path / "checkpoints").is_dir() else ""
    )
    raise BertpipeError(
        f"{path}: no model folder (one with config.json and model.safetensors).{unfinished}"
    )


def load_model(folder: Path, auto_class: Any) -> Any:
    """Load with one of transformers' auto classes; `BertpipeError` when the folder is incomplete."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a head that the class does not use is no news to a user
    try:
        return auto_class.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise BertpipeError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]}).") from None
    finally:
        logging.set_verbosity_warning()


def load_auto_tokenizer(folder: Path) -> Any:
    """The model folder's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BertpipeError(f"{folder}: no tokenizer ({str(error).splitlines()[0]}).") from None
