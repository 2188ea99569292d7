"""A stock head on the unpadded encoder scores as the stock model does on padded rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForNextSentencePrediction,
)

from bert_pipeline.model.fixed_shapes import round_up_tokens
from bert_pipeline.model.task_model import TaskBatch, TaskModel
from bert_pipeline.model.unpadded_batch import HeadPositions
from bert_pipeline.tasks.classification import SINGLE, Classification

LENGTHS = [5, 9, 2, 7]
SIZE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 20},
    "roberta": {"max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 1},
    "modernbert": {"local_attention": 5},
    "modernbert, mean": {"local_attention": 5, "classifier_pooling": "mean"},
    # Without the unpadded path.
    "distilbert": {"max_position_embeddings": 20},
    "electra": {"max_position_embeddings": 20},
}
HEADS: dict[str, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
    "choices": AutoModelForMultipleChoice,
}


def make_network(name: str, head: str) -> Any:
    torch.manual_seed(0)
    kind = name.partition(",")[0]
    fields = SIZE | CONFIGS[name]
    if kind == "distilbert":
        fields |= {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
    if head == "spans":
        fields["num_labels"] = 2
    config = AutoConfig.for_model(kind, **fields)
    network = HEADS[head].from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def make_batch(rows: list[torch.Tensor], reads_tokens: bool) -> TaskBatch:
    lengths = torch.tensor([len(row) for row in rows])
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    others = positions.nonzero()[:, 0] if reads_tokens else positions[:0]
    return TaskBatch(
        tokens=torch.cat(rows),
        segment_ids=(positions >= 3).long(),
        positions=positions,
        cu_seqlens=bounds,
        max_seqlen=int(lengths.max()),
        head_positions=HeadPositions.select(bounds, others),
        reads_tokens=reads_tokens,
        labels=torch.empty(0),
        choices=bounds,
    )


def score_with_stock_model(network: Any, row: torch.Tensor, head: str) -> torch.Tensor:
    ids = row[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if network.config.model_type in ("bert", "electra"):
        inputs["token_type_ids"] = (torch.arange(len(row)) >= 3).long()[None]
    if head == "choices":
        inputs = {name: values[None] for name, values in inputs.items()}
    output = network(**inputs)
    if head == "spans":
        return torch.stack([output.start_logits[0], output.end_logits[0]], -1)
    logits: torch.Tensor = output.logits
    return logits[0] if head == "tagger" else logits


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_the_stock_model(name: str, head: str) -> None:
    network = make_network(name, head)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, 60, (length,), generator=generator) for length in LENGTHS]
    batch = make_batch(rows, head in ("tagger", "spans"))
    with torch.no_grad():
        stock = torch.cat([score_with_stock_model(network, row, head) for row in rows])
        found = TaskModel(network).eval()(batch)
    torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert, mean"])
def test_padding_examples_have_no_scores(name: str) -> None:
    """In bf16 on a CPU, token counts are rounded up."""
    network = make_network(name, "classifier")
    batch = make_batch([torch.arange(5, 5 + length) for length in LENGTHS], False)
    with torch.no_grad():
        expected = TaskModel(network)(batch)
        found = TaskModel(network)(round_up_tokens(batch, 32, padding=0))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "modernbert, mean"])
def test_scores_and_losses_do_not_synchronize_with_the_device(name: str) -> None:
    """In fake tensors nothing has a value, so reading one fails."""
    network = make_network(name, "classifier").train()
    batch = make_batch([torch.arange(5, 5 + length) for length in LENGTHS], False)
    batch = replace(batch, labels=torch.zeros(len(LENGTHS), dtype=torch.long))
    unused: Any = None
    weights = (0.5, 2.0, 0.123)
    task = Classification(unused, 16, unused, SINGLE, unused, class_weights=weights)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = batch.map(mode.from_tensor)
        task.loss(TaskModel(network)(fake), fake).backward()


def test_gradients_are_those_of_the_stock_model() -> None:
    rows = [torch.arange(5, 5 + length) for length in LENGTHS]
    stock = make_network("bert", "classifier")
    torch.cat(
        [score_with_stock_model(stock, row, "classifier") for row in rows]
    ).square().sum().backward()
    network = make_network("bert", "classifier")
    TaskModel(network).eval()(make_batch(rows, False)).square().sum().backward()
    for (name, mine), expected in zip(network.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_next_sentence_scores_are_those_of_the_stock_model() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **SIZE, max_position_embeddings=20)
    network = BertForNextSentencePrediction(config).eval()
    rows = [torch.arange(5, 5 + length) for length in LENGTHS]
    with torch.no_grad():
        stock = torch.cat([score_with_stock_model(network, row, "classifier") for row in rows])
        found = TaskModel(network).eval()(make_batch(rows, False))
    torch.testing.assert_close(found, stock, rtol=1e-4, atol=1e-5)
