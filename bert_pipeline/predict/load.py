"""Finding a model folder and loading it, safetensors only."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import hash_file, hash_json
from bert_pipeline.storage.manifest import read_manifest_file
from bert_pipeline.tokenizer.load import list_tokenizer_files

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
"""The files of a model's weights, as globs."""
MASK = "[MASK]"
"""Stands for the model's mask token in the texts of users."""
MAX_NAMES = 3
"""Names of weights in an error message."""
NUMBERED_LAYER = re.compile(r"\.layers?\.\d+\.")
"""In the name of a weight."""
MAX_LAYERS = 1000
"""More than any encoder has; the time to create one grows with them."""


def find_model(path: Path) -> Path:
    """The model folder at `path`, or in it if `path` is the folder of a run or its pretrain stage.

    Raises `BertpipeError` if there is none, or it has changed since its run was finished.
    """
    for candidate in (path, path / "model", path / "pretrain" / "model"):
        if (candidate / CONFIG).is_file():
            _check_hashes(candidate)
            return candidate
    unfinished = (
        " Training has not finished; run it again to resume."
        if (path / "checkpoints").is_dir()
        else ""
    )
    raise BertpipeError(
        f"{path}: no model found (expected config.json and model.safetensors).{unfinished}"
    )


def read_architectures(folder: Path) -> list[str]:
    """The names of the classes that a model folder was saved as."""
    path = folder / CONFIG
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
        return [str(name) for name in names]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        raise BertpipeError(f"{path}: not the config of a transformers model.") from None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder."""
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))


def hash_model(folder: Path) -> str:
    """A hash of the config and the weights of a model folder."""
    files = [folder / CONFIG, *weight_files(folder)]
    return hash_json({file.name: hash_file(file) for file in files})


def load_model(folder: Path, auto_class: Any, **options: Any) -> Any:
    """Load with an auto class of transformers, without running code from the folder.

    Raises `BertpipeError` if the folder is incomplete or damaged: transformers itself would fill
    missing weights with random ones.
    """
    network, report = _load(folder, auto_class, **options)
    _check_weights(folder, network, report, sorted(report["missing_keys"]))
    return network


def load_encoder(folder: Path) -> Any:
    """The encoder alone, without heads, in fp32. Its pooler, if any, may have random weights.

    Raises `BertpipeError` as `load_model`, and for a model that is not an encoder.
    """
    import torch
    from transformers import AutoModel

    network, report = _load(folder, AutoModel, dtype=torch.float32)
    lacking = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    _check_weights(folder, network, report, sorted(lacking))
    if network.config.is_encoder_decoder:
        raise BertpipeError(f"{folder}: {type(network).__name__} has a decoder. Use an encoder.")
    return network


def load_with_new_heads(folder: Path, auto_class: Any, config: Any = None) -> tuple[Any, list[str]]:
    """As `load_model` in fp32, with random weights in heads that are missing, and their names.

    The encoder must be complete. With a `config` for other heads, those with another shape than in
    the folder are new too.
    """
    import torch

    options = {} if config is None else {"config": config, "ignore_mismatched_sizes": True}
    network, report = _load(folder, auto_class, dtype=torch.float32, **options)
    encoder = f"{network.base_model_prefix}."
    other_heads = {
        mismatch for mismatch in report["mismatched_keys"] if not mismatch[0].startswith(encoder)
    }
    report = {**report, "mismatched_keys": set(report["mismatched_keys"]) - other_heads}
    missing = sorted({*report["missing_keys"], *(key for key, *_ in other_heads)})
    lacking = [name for name in missing if name.startswith(encoder) and "pooler" not in name]
    _check_weights(folder, network, report, lacking)
    return network, missing


def _load(folder: Path, auto_class: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """The network, and the report of transformers on its weights."""
    from safetensors import SafetensorError

    _check_index(folder)
    try:
        with _no_warnings():  # such as those about weights of heads that the class lacks
            network, report = auto_class.from_pretrained(
                folder,
                config=options.pop("config", None) or load_config(folder, auto_class),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except BertpipeError:  # ours, or raised by a signal handler
        raise
    except SafetensorError as error:
        raise BertpipeError(
            f"{folder}: its weights are damaged or incomplete ({error}). Copy or export them again."
        ) from None
    except Exception as error:  # a malformed config.json can raise any class
        raise BertpipeError(f"{folder}: cannot be loaded ({_describe(error)}).") from None
    return network, report


def load_config(folder: Path, auto_class: Any = None) -> Any:
    """The config of a model folder. Raises `BertpipeError` for one of an absurd size."""
    from transformers import AutoConfig

    config_class = getattr(auto_class, "config_class", AutoConfig)
    config = config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "num_hidden_layers", 0) > MAX_LAYERS:
        raise BertpipeError(
            f"{folder}: config.json asks for {config.num_hidden_layers:,} layers; at most "
            f"{MAX_LAYERS:,} are loaded."
        )
    return config


def _check_index(folder: Path) -> None:
    """Weights in several files must be safetensors files in the folder.

    transformers reads any path that the index names, also a pickle, or a device without end.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        is_safe = all(
            Path(name).name == name and name.endswith(".safetensors") and (folder / name).is_file()
            for name in names
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_safe = False
    if not is_safe:
        raise BertpipeError(f"{index}: must name existing safetensors files in its folder only.")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep transformers from writing to the terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _describe(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_weights(
    folder: Path, network: Any, report: Mapping[str, Any], lacking: list[str]
) -> None:
    unusable = {
        "lacks": lacking,
        "has weights of another shape": sorted(key for key, *_ in report["mismatched_keys"]),
        "has weights of layers that are not in config.json": sorted(
            key for key in report["unexpected_keys"] if NUMBERED_LAYER.search(key)
        ),
        "has weights that are not finite": [
            name for name, weight in network.named_parameters() if not weight.isfinite().all()
        ],
    }
    for problem, names in unusable.items():
        if names:
            shown = ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
            raise BertpipeError(
                f"{folder}: as {type(network).__name__} it {problem}: {shown}. Use a complete "
                "model of this class."
            )


def _check_hashes(folder: Path) -> None:
    """Compare the model of a finished run with the hashes in the manifest of the run."""
    manifest = read_manifest_file(folder.parent)
    if manifest is None or manifest.stage != "pretrain":
        return
    for name, entry in manifest.files.items():
        file = folder.parent / name
        if file.parent != folder:
            continue
        if not file.is_file() or hash_file(file) != entry["sha256"]:
            raise BertpipeError(
                f"{file}: missing, or changed since it was written. Rebuild {folder.parent} with "
                "--overwrite, or copy the folder elsewhere to use it as it is."
            )


def load_auto_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model folder; `BertpipeError` if there is none."""
    from transformers import AutoTokenizer

    list_tokenizer_files(folder)  # without any, transformers makes an empty tokenizer
    with _explain_tokenizer(folder), _no_warnings():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_vocabulary(folder: Path, tokenizer: Any, network: Any) -> None:
    """Raise `BertpipeError` if the tokenizer has ids that the model lacks."""
    size = getattr(network.config, "vocab_size", None)
    last = max(tokenizer.get_vocab().values(), default=0)
    if size is not None and last >= size:
        raise BertpipeError(
            f"{folder}: its tokenizer has ids up to {last}, the model only below {size}. Use the "
            "tokenizer of the model."
        )


def read_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of `tokenizer.json` in a model folder; None without that file."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    with _explain_tokenizer(folder):
        return Tokenizer.from_file(str(file))


@contextmanager
def _explain_tokenizer(folder: Path) -> Iterator[None]:
    try:
        yield
    except BertpipeError:  # raised by a signal handler
        raise
    except Exception as error:  # the libraries raise any class for malformed files
        raise BertpipeError(
            f"{folder}: its tokenizer cannot be loaded ({_describe(error)})."
        ) from None
