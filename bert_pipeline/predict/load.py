"""Finding a model folder and loading it, safetensors only."""

from pathlib import Path
from typing import Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.tokenizer.load import list_tokenizer_files

MASK = "[MASK]"
"""Stands for the model's mask token in the texts of users."""


def find_model(path: Path) -> Path:
    """The model folder at `path`, or in it if `path` is the folder of a run or its pretrain stage.

    Raises `BertpipeError` if there is none.
    """
    for candidate in (path, path / "model", path / "pretrain" / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    unfinished = (
        " Training has not finished; run it again to resume."
        if (path / "checkpoints").is_dir()
        else ""
    )
    raise BertpipeError(
        f"{path}: no model found (expected config.json and model.safetensors).{unfinished}"
    )


def load_model(folder: Path, auto_class: Any) -> Any:
    """Load with an auto class of transformers; `BertpipeError` if the folder is incomplete."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # no warnings about weights of heads that the class lacks
    try:
        return auto_class.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise BertpipeError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]}).") from None
    except SafetensorError as error:
        raise BertpipeError(
            f"{folder}: its weights are damaged or incomplete ({error}). Copy or export them again."
        ) from None
    finally:
        logging.set_verbosity_warning()


def load_auto_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model folder; `BertpipeError` if there is none."""
    from transformers import AutoTokenizer

    list_tokenizer_files(folder)  # without any, transformers makes an empty tokenizer
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BertpipeError(
            f"{folder}: no tokenizer found ({str(error).splitlines()[0]})."
        ) from None
