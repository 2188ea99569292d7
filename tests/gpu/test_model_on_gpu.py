"""Losses and gradients on a GPU against stock transformers in fp32 on the CPU.

In 16-bit precision the yardstick is the stock model under the same autocast: our error must not be
much larger than its error. The CPU runs the same tests, with the GPU's attention kernel replaced.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bert_pipeline.model import attention
from bert_pipeline.model.fixed_shapes import BatchShape, fill_up
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from tests.helpers.devices import DEVICES
from tests.helpers.flash_attention import flash_attention_on_cpu
from tests.helpers.model_rows import flatten, make_rows, pad

LENGTHS = [64, 17, 3, 50, 33, 64, 8, 29]
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
BERT = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# One global layer, then two with a window of 16 tokens before and after.
MODERN = SIZES | {"local_attention": 33, "pad_token_id": 0}
NETWORKS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertForPreTraining(BertConfig(**BERT)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**BERT, pad_token_id=0)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**MODERN)),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Found = tuple[Tensor, dict[str, Tensor]]
pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture
def kernel(device: str) -> Iterator[None]:
    """The kernel of variable-length attention: the GPU's own, or a replacement on a CPU."""
    if device == "cuda":
        yield
        return
    with pytest.MonkeyPatch.context() as patch, flash_attention_on_cpu():
        patch.setattr(attention, "has_varlen_kernel", lambda hidden, size: True)
        yield


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["varlen", "grid", "fixed shape"])
@pytest.mark.usefixtures("kernel")
def test_losses_and_gradients_are_those_of_the_stock_model(
    name: str, precision: str, layout: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if layout == "grid" or precision == "fp32":
        monkeypatch.setattr(attention, "has_varlen_kernel", lambda hidden, size: False)
    network = make_network(name)
    batch = make_batch(name)
    if layout == "fixed shape":
        batch = fill_up(batch, BatchShape.from_budget(400, 33.0, 64, 0.1), padding=0)
    check(network, PretrainingModel(network), batch, device, precision)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.usefixtures("kernel")
def test_compiled_layers_too(name: str, device: str) -> None:
    torch._dynamo.reset()
    network = make_network(name)
    model = PretrainingModel(network, compiled=True)
    check(network, model, make_batch(name), device, "bf16")
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_dropout_in_attention_on_the_grid(name: str, device: str) -> None:
    """Variable-length attention has no dropout."""
    network = make_network(name, dropout=0.1).to(device)
    batch = make_batch(name).to(torch.device(device))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.autocast(device, torch.bfloat16):
            found.append(torch.stack(PretrainingModel(network)(batch)))
    found[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-3)


def make_network(name: str, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    return network


def make_batch(name: str) -> PretrainingBatch:
    return flatten(make_rows(LENGTHS, 0), name == "bert")


def check(
    network: Any, model: PretrainingModel, batch: PretrainingBatch, device: str, precision: str
) -> None:
    """Compare our losses and gradients with those of the stock model in fp32 on the CPU."""
    expected = stock(network.cpu(), "cpu", "fp32")
    of_stock = stock(network.to(device), device, precision)
    with autocast(device, precision):
        losses = torch.stack(model(batch.to(torch.device(device))))
    ours = read(network, losses)
    rounding = torch.finfo(PRECISIONS[precision]).eps
    floor = max(rounding / 10, 1e-5)
    assert error(ours[0], expected[0]) <= 2 * error(of_stock[0], expected[0]) + floor
    joined = [join(found[1]) for found in (ours, of_stock, expected)]
    assert error(joined[0], joined[2]) <= 2 * error(joined[1], joined[2]) + floor
    # Single parameters: our hidden states between BERT's layers are rounded, those of the stock
    # model are not. The gradient of a key's bias is 0 in exact arithmetic.
    allowed = max(8 * rounding, 1e-3)
    for parameter, gradient in expected[1].items():
        if "key.bias" not in parameter:
            assert error(ours[1][parameter], gradient) <= allowed, parameter


def stock(network: Any, device: str, precision: str) -> Found:
    """The stock model's losses, summed as ours are, and its gradients."""
    with_pairs = isinstance(network, BertForPreTraining)
    padded = {k: v.to(device) for k, v in pad(make_rows(LENGTHS, 0), with_pairs).items()}
    labels = padded.pop("labels")
    pairs = padded.pop("next_sentence_label", None)
    if isinstance(network, ModernBertForMaskedLM):
        del padded["token_type_ids"]
    with autocast(device, precision):
        scores = network(**padded)
    logits = scores.prediction_logits if with_pairs else scores.logits
    mlm = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="sum"
    )
    nsp = torch.zeros_like(mlm)
    if pairs is not None:
        nsp = torch.nn.functional.cross_entropy(
            scores.seq_relationship_logits.float(), pairs, reduction="sum"
        )
    return read(network, torch.stack([mlm, nsp]))


def autocast(device: str, precision: str) -> Any:
    dtype = PRECISIONS[precision]
    return torch.autocast(device, dtype) if precision != "fp32" else nullcontext()


def read(network: Any, losses: Tensor) -> Found:
    """Losses and gradients on the CPU; the network's gradients are cleared."""
    losses.sum().backward()
    gradients = {}
    for name, parameter in network.named_parameters():
        gradients[name] = parameter.grad.float().cpu()
        parameter.grad = None
    return losses.detach().cpu().float(), gradients


def join(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to that of what is expected."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-9))
