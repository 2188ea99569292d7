"""Sizes of the presets, and errors for other fields of a model."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForPreTraining

from bert_pipeline.errors import UsageError
from bert_pipeline.model.architectures import PRESETS, make_config
from bert_pipeline.tokenizer.load import SpecialIds

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
PUBLISHED = {
    "tiny": 4.4,
    "mini": 11.3,
    "small": 29.1,
    "medium": 41.7,
    "base": 110.1,
    "large": 335.1,
}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("bert-")])
def test_presets_have_the_published_sizes(name: str) -> None:
    config = make_config(name, 30522, SPECIAL, None)
    with torch.device("meta"):
        size = (
            sum(parameter.numel() for parameter in BertForPreTraining(config).bert.parameters())
            / 1e6
        )
    # Millions: Turc et al. 2019, table 1 (the papers print 110 and 340 for base and large).
    assert size == pytest.approx(PUBLISHED[name.removeprefix("bert-")], rel=0.03)


@pytest.mark.parametrize(
    ("preset", "vocab_size", "millions"),
    # Parameters in the safetensors files of the models on the Hub.
    [("roberta-base", 50265, 124.7), ("modernbert-base", 50368, 149.7)],
)
def test_masked_lms_have_the_published_sizes(preset: str, vocab_size: int, millions: float) -> None:
    with torch.device("meta"):
        network = AutoModelForMaskedLM.from_config(make_config(preset, vocab_size, SPECIAL, None))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(
        millions, rel=2e-3
    )


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "medium"])
def test_presets_of_modernbert_have_the_sizes_of_bert(size: str) -> None:
    """In parameters, layers and width."""
    bert, modernbert = (
        make_config(f"{kind}-{size}", 30522, SPECIAL, None) for kind in ("bert", "modernbert")
    )
    with torch.device("meta"):
        counts = [
            sum(
                parameter.numel() for parameter in AutoModelForMaskedLM.from_config(it).parameters()
            )
            for it in (bert, modernbert)
        ]
    assert counts[1] == pytest.approx(counts[0], rel=0.03)
    assert modernbert.num_hidden_layers == bert.num_hidden_layers
    assert modernbert.hidden_size == bert.hidden_size
    assert modernbert.hidden_size // modernbert.num_attention_heads == 64
    assert modernbert.intermediate_size % 64 == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_sise": 64}, "hidden_sise"),
        ({"vocab_size": 64}, "vocab_size"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "num_attention_heads"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_unknown_model_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_config(fields, 100, SPECIAL, None)
