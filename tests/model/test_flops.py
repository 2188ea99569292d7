"""FLOPs by arithmetic against torch's counter."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bert_pipeline.model import heads as heads_module
from bert_pipeline.model.architectures import make_config
from bert_pipeline.model.flops import training_flops
from bert_pipeline.model.pretraining_model import PretrainingModel, make_network
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.tokenizer.load import SpecialIds
from tests.helpers.model_rows import flatten, make_rows

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    **options: bool,
) -> torch.Tensor:
    """The loss by products that torch's counter knows; it misses in-place ones."""
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")


@pytest.mark.parametrize(
    ("kind", "with_pairs"),
    [("bert", True), ("bert", False), ("roberta", False), ("modernbert", False)],
)
@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "intermediate", "examples", "length"),
    [(2, 128, 2, 512, 5, 64), (1, 64, 4, 256, 3, 20), (4, 96, 3, 200, 2, 128)],
)
def test_flops_equal_torch_flop_counter(
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    examples: int,
    length: int,
    kind: str,
    with_pairs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads_module, "masked_cross_entropy", cross_entropy)
    fields: dict[str, Any] = {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }
    if kind == "modernbert":
        # Wider than the examples, because torch counts what a mask hides.
        fields["local_attention"] = 2 * length
    network = make_network(make_config(fields, 97, SPECIAL, 0.0), with_pairs=with_pairs)
    # Equal lengths and numbers of masks, because torch counts padding too.
    rows = make_rows([length] * examples, 0)
    for row in rows:
        row["positions"] = torch.tensor([2, 5, 9])
        row["labels"] = torch.tensor([7, 8, 9])
    batch = flatten(rows, with_pairs)
    # The plain kernel: torch's counter does not know the CPU's fused one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sum(PretrainingModel(network)(batch)).backward()
    flops = training_flops(network.config, batch)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def make_batch(length: int, masks: int) -> PretrainingBatch:
    """100 examples of one length with the same masks."""
    rows = make_rows([length] * 100, 0)
    for row in rows:
        row["positions"] = torch.arange(1, masks + 1)
        row["labels"] = torch.zeros(masks, dtype=torch.long)
    return flatten(rows, True)


@pytest.mark.parametrize(("length", "masks", "saved"), [(128, 19, 0.065), (512, 77, 0.058)])
def test_flops_per_token_of_bert_base(length: int, masks: int, saved: float) -> None:
    """Six FLOPs per weight and token, attention, and less for positions that no head reads."""
    config = make_config("bert-base", 30522, SPECIAL, None)
    flops = training_flops(config, make_batch(length, masks))
    encoder = 6 * 12 * 12 * 768**2
    attention = 6 * 12 * 2 * length * 768
    head = 6 * (768**2 + 768 * 30522) * masks / length
    assert flops is not None
    assert flops / (100 * length) == pytest.approx(
        (1 - saved) * (encoder + attention + head), rel=0.01
    )


@pytest.mark.parametrize(
    ("layer_types", "pairs"),
    [
        (["full_attention", "full_attention"], 40 * 40 + 3 * 3 + 5 * 40 + 1 * 3),
        # Of the longer example, each end lacks 4 + 3 + 2 + 1 of the 9 tokens in a window.
        (["sliding_attention", "full_attention"], 40 * 9 - 2 * 10 + 3 * 3 + 5 * 40 + 1 * 3),
        (["full_attention", "sliding_attention"], 40 * 40 + 3 * 3 + 5 + 9 + 9 + 9 + 6 + 3),
    ],
)
def test_keys_outside_windows_are_not_counted(layer_types: list[str], pairs: int) -> None:
    """An example of 40 tokens with masks at 12, 20, 30 and 38, and one of 3 tokens without."""
    rows = make_rows([40, 3], 0)
    rows[0]["positions"] = torch.tensor([12, 20, 30, 38])
    rows[1]["positions"] = torch.tensor([], dtype=torch.long)
    for row in rows:
        row["labels"] = torch.zeros(len(row["positions"]), dtype=torch.long)
    fields = {"model_type": "modernbert", "num_hidden_layers": 2, "hidden_size": 32}
    fields |= {"num_attention_heads": 2, "intermediate_size": 48, "layer_types": layer_types}
    narrow = make_config(fields | {"local_attention": 8}, 97, SPECIAL, 0.0)
    batch = flatten(rows, False)
    everywhere = make_config(fields | {"local_attention": 80}, 97, SPECIAL, 0.0)
    all_pairs = 40 * 40 + 3 * 3 + 5 * 40 + 1 * 3
    per_pair = 6 * 2 * 32
    found, most = (training_flops(config, batch) for config in (narrow, everywhere))
    assert found is not None
    assert most is not None
    assert most - found == (all_pairs - pairs) * per_pair


def test_flops_are_none_for_other_architectures() -> None:
    config = make_config({"model_type": "distilbert"}, 300, SPECIAL, None)
    assert training_flops(config, make_batch(20, 3)) is None
