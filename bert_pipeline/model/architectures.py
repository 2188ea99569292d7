"""Architectures: presets, and configs of any masked LM from a preset, a JSON file or a mapping."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
)

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.tokenizer.load import SpecialIds

# Layers, hidden size, heads: Devlin et al. 2019, section 3 (https://arxiv.org/abs/1810.04805), and
# for the small ones Turc et al. 2019, table 1 (https://arxiv.org/abs/1908.08962).
_SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


def _fields(size: str, intermediate: int) -> dict[str, Any]:
    layers, hidden, heads = _SIZES[size]
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


def _modernbert(size: str, intermediate: int) -> dict[str, Any]:
    """ModernBERT with the size of a BERT.

    Its feed-forward network has three matrices where BERT's has two, so the intermediate size is
    about 2/3 of BERT's: 8/3 × hidden, to the nearest multiple of 64, which suits matrix units.
    """
    return {"model_type": "modernbert"} | _fields(size, intermediate)


PRESETS: dict[str, dict[str, Any]] = {
    f"bert-{size}": _fields(size, 4 * hidden) for size, (_, hidden, _) in _SIZES.items()
} | {
    # The published config: no segments, and two positions for padding (Liu et al. 2019,
    # https://arxiv.org/abs/1907.11692).
    "roberta-base": {
        "model_type": "roberta",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "modernbert-tiny": _modernbert("tiny", 320),
    "modernbert-mini": _modernbert("mini", 704),
    "modernbert-small": _modernbert("small", 1344),
    "modernbert-medium": _modernbert("medium", 1344),
    # The architecture's defaults (Warner et al. 2024, table 4, https://arxiv.org/abs/2412.13663).
    "modernbert-base": {"model_type": "modernbert"},
}
# Fields that transformers adds to the config.json of a saved model.
_SAVED_FIELDS = frozenset(
    {"transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"}
)
# What architectures raise for values that they do not support.
_INVALID_VALUE_ERRORS = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)
# Parts of field names of heads that pretraining does not use.
_OTHER_HEADS = ("classif", "qa_", "summary", "pooler")


def make_config(
    model: str | dict[str, Any],
    vocab_size: int,
    special: SpecialIds,
    dropout: float | None,
    attention_dropout: float | None = None,
) -> Any:
    """The transformers config of a preset, a JSON file or a mapping of config fields.

    `model_type` among the fields selects the architecture, by default BERT. `dropout` sets all
    dropout fields except those of heads for other tasks, and `attention_dropout` after it those of
    attention weights. Raises `UsageError` for an unknown preset,
    field or architecture, and for values that the architecture does not support.
    """
    fields = dict(model) if isinstance(model, dict) else _named_fields(model)
    kind = fields.pop("model_type", "bert")
    defaults = _find_architecture(kind)
    known = defaults.to_dict()
    ids = _special_ids(special)
    for name in fields:
        if name in ids or name == "vocab_size":
            raise UsageError(f"--model: remove {name}; it comes from the tokenizer.")
        if name in _SAVED_FIELDS or not (name in known or name in defaults.attribute_map):
            raise UsageError(f"--model: {type(defaults).__name__} has no field {name!r}.")
    fields |= _set_dropout(known, dropout, attention_dropout)
    # Ids that an architecture leaves unset by default are not part of its model.
    fields |= {
        name: value
        for name, value in ids.items()
        if known.get(name) is not None or name == "pad_token_id"
    }
    try:
        config = AutoConfig.for_model(kind, vocab_size=vocab_size, **fields)
        _check_network(config)
    except UsageError:
        raise
    except _INVALID_VALUE_ERRORS as error:
        raise UsageError(f"--model: {' '.join(str(error).split())}") from None
    return config


def adapt_config(
    folder: Path,
    vocab_size: int,
    special: SpecialIds,
    dropout: float | None,
    attention_dropout: float | None = None,
) -> Any:
    """The config of a model folder, with room for a vocabulary and the ids of its special tokens.

    `dropout` and `attention_dropout` are as in `make_config`. Raises `BertpipeError` if the folder
    has no config of a masked LM that is an encoder.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BertpipeError:  # raised by a signal handler
        raise
    except Exception as error:  # a malformed config.json can raise any class
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertpipeError(f"{folder}: its config cannot be loaded ({detail}).") from None
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise BertpipeError(f"{folder}: {config.model_type} is not a masked-LM encoder.")
    known = config.to_dict()
    # Weights are trained in fp32, whatever the type in which they were saved.
    config.dtype = torch.float32
    # Some vocabularies are padded to a multiple that suits the hardware.
    config.vocab_size = max(config.vocab_size, vocab_size)
    for name, value in _special_ids(special).items():
        if known.get(name) is not None:
            setattr(config, name, value)
    for name, rate in _set_dropout(known, dropout, attention_dropout).items():
        setattr(config, name, rate)
    return config


def count_positions(config: Any) -> int | None:
    """The maximum number of tokens per example; None without a limit."""
    with torch.device("meta"):
        return count_positions_of(AutoModelForMaskedLM.from_config(config))


def count_positions_of(network: Any) -> int | None:
    """As `count_positions`, of a model of any class."""
    most = getattr(network.config, "max_position_embeddings", None)
    if most is None:
        return None
    # RoBERTa-like models number positions from their padding index + 1 on.
    first = [
        module.padding_idx + 1
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding)
        and "position" in name
        and module.padding_idx is not None
    ]
    return int(most) - max(first, default=0)


def _find_architecture(kind: Any) -> Any:
    """The default config of an architecture."""
    if (
        not isinstance(kind, str)
        or kind not in CONFIG_MAPPING
        or CONFIG_MAPPING[kind] not in MODEL_FOR_MASKED_LM_MAPPING
    ):
        raise UsageError(
            f"--model: transformers has no masked-LM architecture {kind!r} (model_type)."
        )
    defaults = CONFIG_MAPPING[kind]()
    if defaults.is_encoder_decoder:
        raise UsageError(f"--model: {kind} has a decoder; an encoder was expected.")
    return defaults


def _special_ids(special: SpecialIds) -> dict[str, int]:
    """The special tokens by their config names: `[CLS]` begins a text and `[SEP]` ends it."""
    return {
        "pad_token_id": special.pad,
        "bos_token_id": special.cls,
        "cls_token_id": special.cls,
        "eos_token_id": special.sep,
        "sep_token_id": special.sep,
        "mask_token_id": special.mask,
    }


def set_dropout(config: Any, dropout: float | None) -> None:
    """Set all dropout fields of a config; None leaves them."""
    for name, rate in _set_dropout(config.to_dict(), dropout, None).items():
        setattr(config, name, rate)


def _set_dropout(
    known: dict[str, Any], dropout: float | None, attention_dropout: float | None
) -> dict[str, float]:
    """The dropout fields with their new values; those that do not change are left out.

    Raises `UsageError` if attention has no dropout in this architecture.
    """
    names = [
        name
        for name, value in known.items()
        if "dropout" in name
        and type(value) in (int, float)
        and not any(head in name for head in _OTHER_HEADS)
    ]
    values = {} if dropout is None else dict.fromkeys(names, dropout)
    if attention_dropout is None:
        return values
    of_attention = [name for name in names if "attention" in name]
    if not of_attention:
        raise UsageError("--attention-dropout: this architecture has no dropout in attention.")
    return values | dict.fromkeys(of_attention, attention_dropout)


def _check_network(config: Any) -> None:
    """Raise an error if no encoder can be built from the config."""
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise UsageError(
            f"--model: num_hidden_layers {config.num_hidden_layers} must be at least 1."
        )
    hidden = getattr(config, "hidden_size", 0)
    heads = getattr(config, "num_attention_heads", 1)
    if hidden % heads:
        raise UsageError(
            f"--model: hidden_size {hidden} must be a multiple of num_attention_heads {heads}."
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise UsageError(
            "--model: an encoder was expected; remove is_decoder and add_cross_attention."
        )
    with torch.device("meta"):
        AutoModelForMaskedLM.from_config(config)


def _named_fields(model: str) -> dict[str, Any]:
    if model in PRESETS:
        return dict(PRESETS[model])
    path = Path(model)
    if path.suffix != ".json":
        raise UsageError(
            f"--model {model}: neither a preset ({', '.join(PRESETS)}) nor a .json file."
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BertpipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: a JSON object of config fields was expected.")
    # A config.json that transformers saved is accepted unchanged.
    ignored = {"vocab_size", *_special_ids(SpecialIds(0, 0, 0, 0, 0))}
    return {name: value for name, value in fields.items() if name not in _SAVED_FIELDS | ignored}
