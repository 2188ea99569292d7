"""Finding a model folder and loading it, safetensors only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import hash_file
from bert_pipeline.storage.manifest import read_manifest_file
from bert_pipeline.tokenizer.load import list_tokenizer_files

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
"""The files of a model's weights, as globs."""
MASK = "[MASK]"
"""Stands for the model's mask token in the texts of users."""
MAX_NAMES = 3
"""Names of weights in an error message."""


def find_model(path: Path) -> Path:
    """The model folder at `path`, or in it if `path` is the folder of a run or its pretrain stage.

    Raises `BertpipeError` if there is none.
    """
    for candidate in (path, path / "model", path / "pretrain" / "model"):
        if (candidate / CONFIG).is_file():
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
    """Load with an auto class of transformers, without running code from the folder.

    Raises `BertpipeError` if the folder is incomplete or damaged: transformers itself would fill
    missing weights with random ones.
    """
    network, report = _load(folder, auto_class)
    _check_weights(folder, network, report, sorted(report["missing_keys"]))
    return network


def load_with_new_heads(folder: Path, auto_class: Any) -> tuple[Any, list[str]]:
    """As `load_model` in fp32, with random weights in heads that are missing, and their names.

    The encoder must be complete.
    """
    import torch

    network, report = _load(folder, auto_class, dtype=torch.float32)
    missing = sorted(report["missing_keys"])
    encoder = f"{network.base_model_prefix}."
    lacking = [name for name in missing if name.startswith(encoder) and "pooler" not in name]
    _check_weights(folder, network, report, lacking)
    return network, missing


def _load(folder: Path, auto_class: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """The network, and the report of transformers on its weights."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    _check_hashes(folder)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # no warnings about weights of heads that the class lacks
    try:
        network, report = auto_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except BertpipeError:  # raised by a signal handler
        raise
    except SafetensorError as error:
        raise BertpipeError(
            f"{folder}: its weights are damaged or incomplete ({error}). Copy or export them again."
        ) from None
    except Exception as error:  # a malformed config.json can raise any class
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertpipeError(f"{folder}: cannot be loaded ({detail}).") from None
    finally:
        logging.set_verbosity_warning()
    return network, report


def _check_weights(
    folder: Path, network: Any, report: Mapping[str, Any], lacking: list[str]
) -> None:
    unusable = {
        "lacks": lacking,
        "has weights of another shape": sorted(key for key, *_ in report["mismatched_keys"]),
        "has weights that are not finite": [
            name for name, weight in network.named_parameters() if not weight.isfinite().all()
        ],
    }
    for problem, names in unusable.items():
        if names:
            shown = ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
            raise BertpipeError(
                f"{folder}: as {type(network).__name__} it {problem}: {shown}. Use a complete "
                "masked language model."
            )


def _check_hashes(folder: Path) -> None:
    """Compare the model of a finished run with the hashes in the manifest of the run."""
    manifest = read_manifest_file(folder.parent)
    if manifest is None or manifest.stage != "pretrain":
        return
    for name, entry in manifest.files.items():
        file = folder.parent / name
        if file.parent == folder and file.is_file() and hash_file(file) != entry["sha256"]:
            raise BertpipeError(
                f"{file}: changed since it was written. Rebuild {folder.parent} with --overwrite, "
                "or copy the folder elsewhere to use it as it is."
            )


def load_auto_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model folder; `BertpipeError` if there is none."""
    from transformers import AutoTokenizer

    list_tokenizer_files(folder)  # without any, transformers makes an empty tokenizer
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BertpipeError:  # raised by a signal handler
        raise
    except Exception as error:  # the libraries raise any class for malformed files
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertpipeError(f"{folder}: its tokenizer cannot be loaded ({detail}).") from None
