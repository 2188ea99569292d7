"""Training steps without data: in fake tensors nothing has a value, so reading one fails."""

from typing import Any

import pytest
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import BertConfig, BertForPreTraining, ModernBertConfig, ModernBertForMaskedLM
from transformers.initialization import no_init_weights

from bert_pipeline.model.parameters import parameter_kinds
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.optimizers.combined import Optimizer
from bert_pipeline.training.optimizers.groups import group_parameters
from bert_pipeline.training.step import AllRanks
from tests.helpers.model_rows import flatten, make_rows
from tests.helpers.training_runs import SHAPE, make_inputs, make_trainer


def make_network(kind: str, dropout: float) -> Any:
    """BERT, or a ModernBERT with a global and a local layer."""
    if kind == "bert":
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return BertForPreTraining(BertConfig(vocab_size=97, **SHAPE, **rates))
    rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), dropout)
    fields = {"vocab_size": 97, "local_attention": 12, "pad_token_id": 0} | SHAPE | rates
    return ModernBertForMaskedLM(ModernBertConfig(**fields))


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize(("dropout", "kernel"), [(0.0, "grid"), (0.1, "grid"), (0.0, "varlen")])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_training_step_does_not_synchronize_with_the_device(
    kind: str, optimizer: str, dropout: float, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches, forward and backward, norm and update; also with a GPU's attention."""
    monkeypatch.setattr(
        "bert_pipeline.model.attention.has_varlen_kernel", lambda hidden, size: kernel == "varlen"
    )
    config: dict[str, Any] = {
        "examples": "e",
        "tokenizer": "t",
        "out": "o",
        "max_steps": 10,
        "optimizer": optimizer,
    }
    is_bert = kind == "bert"
    batches = [flatten(make_rows(lengths, 0), is_bert) for lengths in ([12, 25, 7], [30, 9])]
    # ModernBERT's initial weights depend on random values.
    with FakeTensorMode() as mode, no_init_weights():
        model = PretrainingModel(make_network(kind, dropout))
        groups = group_parameters(model.network, parameter_kinds(model.network))
        updates = Optimizer(model.network, groups, PretrainConfig(**config))
        trainer = make_trainer(model, {"mlm_loss": 1.0, "nsp_loss": 1.0}, updates)
        parts = [batch.map(mode.from_tensor) for batch in batches]
        inputs = make_inputs(parts, (9, 5))
        result = trainer.train_step(inputs, AllRanks(0.0, 0, (9.0, 5.0), None), 0.3)
        assert any(updates.state_tensors())
        with pytest.raises(DataDependentOutputException):
            result.read()
