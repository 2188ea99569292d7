"""Named model sizes, and BertConfig out of a preset, a JSON file or a mapping."""

import json
from pathlib import Path
from typing import Any

from transformers import BertConfig

from bert_pipeline.errors import BertpipeError, UsageError

# Layers, hidden size and heads: Devlin et al. 2019, section 3, and Turc et al. 2019, table 1, for the small ones.
PRESETS = {
    "bert-tiny": (2, 128, 2),
    "bert-mini": (4, 256, 4),
    "bert-small": (4, 512, 8),
    "bert-medium": (8, 512, 8),
    "bert-base": (12, 768, 12),
    "bert-large": (24, 1024, 16),
}
FROM_ELSEWHERE = {"vocab_size": "the tokenizer", "pad_token_id": "the tokenizer"}


def make_config(model: str | dict[str, Any], vocab_size: int, pad_id: int, dropout: float | None) -> BertConfig:
    """The model's config; `UsageError` when `model` is no preset, file or mapping of BertConfig fields."""
    fields = dict(model) if isinstance(model, dict) else _named_fields(model)
    known = set(BertConfig().to_dict()) - {"transformers_version", "architectures", "model_type"}
    for name in fields:
        if name in FROM_ELSEWHERE:
            raise UsageError(f"--model: leave out {name}; it comes from {FROM_ELSEWHERE[name]}.")
        if name not in known:
            raise UsageError(f"--model: BertConfig has no field {name!r}.")
    if dropout is not None:
        fields |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    try:
        config = BertConfig(vocab_size=vocab_size, pad_token_id=pad_id, **fields)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--model: {' '.join(str(error).split())}") from None
    if config.hidden_size % config.num_attention_heads:
        raise UsageError(
            f"--model: hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
            f"{config.num_attention_heads}."
        )
    if config.is_decoder or config.add_cross_attention:
        raise UsageError("--model: BERT is an encoder; leave out is_decoder and add_cross_attention.")
    return config


def _named_fields(model: str) -> dict[str, Any]:
    if model in PRESETS:
        layers, hidden, heads = PRESETS[model]
        return {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
        }
    path = Path(model)
    if path.suffix != ".json":
        raise UsageError(f"--model {model}: neither a preset ({', '.join(PRESETS)}) nor a .json file.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BertpipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: a JSON object of BertConfig fields was expected.")
    # A config.json of transformers may be given as it is.
    ignored = ("transformers_version", "architectures", "model_type", "dtype", "torch_dtype", *FROM_ELSEWHERE)
    return {name: value for name, value in fields.items() if name not in ignored}
